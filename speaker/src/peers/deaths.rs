//! Which nodes are dead. The dataplane sends no new connections to dead nodes, even before Kubernetes notices their
//! death.
//!
//! The input is the observation of each node on each link; the output is a set of names. [`Deaths`] remembers dead
//! nodes and nodes that sent a goodbye.
//!
//! A mistake here costs more than a mistake in [`ownership`](crate::ownership::rules). A needless takeover only moves
//! an address. A node that is wrongly declared dead loses its connections. If silence alone proved a death, a node that
//! becomes deaf would declare all others dead. So a takeover needs only silence, but a death needs more evidence:
//!
//! - The node was heard before, and is silent on *every* link on which it was heard. A node is alive if this node hears
//!   it on any link, or if a peer reports that it hears the node. A deaf node is alive, too, because it still sends
//!   Hellos.
//! - Its kernel does not answer ARP or NDP for the node's own address on any of these links
//!   ([`super::reachability`]). If it answers, only the agent of the node has failed: its addresses move, and its
//!   endpoints stay. Solicitations begin before the window ends, so they do not delay the detection of a death.
//! - On at least one of these links, a peer *confirms* the silence: the peer is alive, was heard just now, hears this
//!   node, and has not heard the silent node within its window either. A node that is cut off, has just started or was
//!   suspended has no such peer, so it declares no node dead.
//! - On a link with a single peer, no other peer can confirm the silence of that peer. Instead, an ARP or NDP frame of
//!   another host (a router, or a client that resolves an address) shows that this node can hear. The peer is dead if
//!   such a frame arrives after the peer and its kernel fell silent, and they stay silent for one more window.
//! - A node that sent a goodbye is not dead: its speaker was shut down, and its pods still run.
//!
//! A dead node stays dead until it is heard again, even if all other nodes fall silent later. (Its kernel is solicited
//! only in the first ten windows of its silence. A later answer might come from a node that is restarting, without
//! pods.) A dead node is forgotten after [`FORGET_AFTER`], or when this node no longer sends Hellos on any link on
//! which it heard that node. By [`FORGET_AFTER`], Kubernetes has reported the endpoints of a dead node as not ready. If
//! they are still ready, the node runs and only its speaker has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A dead node is forgotten after this time. By default Kubernetes reports the endpoints of a silent node as not ready
/// after 50 s (`node-monitor-grace-period`). This time is twelve times as long, so that the API server itself may be
/// unavailable for some minutes.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The observation of a node on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Observation {
    Silent {
        /// Whether there is evidence that this node can hear, so that it is not the cause of the silence.
        confirmed: bool,
    },
    /// It is silent, and it is too early to know whether its kernel answers.
    Undecided,
    /// Its agent is silent, but its kernel answers.
    Answering,
    /// It sent a goodbye.
    Left,
    /// This node or a peer hears it.
    Present,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    dead: BTreeSet<String>,
    /// Nodes that sent a goodbye on any link, and were heard on no link since.
    left: BTreeSet<String>,
    /// Nodes whose agent is silent while their kernel answers.
    silent_agents: BTreeSet<String>,
}

/// The changes of an update.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DeathChanges {
    /// The nodes that have just died.
    pub died: Vec<String>,
    /// The nodes that are no longer dead.
    pub returned: Vec<String>,
    /// The nodes whose agent has just fallen silent while their kernel answers.
    pub silenced: Vec<String>,
}

impl Deaths {
    /// Applies the current observations of all nodes on all links.
    pub fn update<'a>(&mut self, observations: impl Iterator<Item = (&'a str, Observation)>) -> DeathChanges {
        let DeathChanges { mut died, mut returned, mut silenced } = DeathChanges::default();
        // The strongest evidence of life counts: `Present`, then `Left`, then an answering kernel, then silence.
        let mut seen = BTreeMap::<&str, Observation>::new();
        for (node, observation) in observations {
            let best = seen.entry(node).or_insert(observation);
            *best = observation.max(*best);
        }
        for (node, observation) in &seen {
            match observation {
                Observation::Present => {
                    self.left.remove(*node);
                    returned.extend(self.dead.take(*node));
                }
                Observation::Left => {
                    self.left.insert((*node).to_owned());
                    returned.extend(self.dead.take(*node));
                }
                Observation::Answering => {
                    returned.extend(self.dead.take(*node));
                    if !self.left.contains(*node) && self.silent_agents.insert((*node).to_owned()) {
                        silenced.push((*node).to_owned());
                    }
                }
                Observation::Silent { confirmed: true } if !self.dead.contains(*node) && !self.left.contains(*node) => {
                    self.dead.insert((*node).to_owned());
                    died.push((*node).to_owned());
                }
                Observation::Undecided | Observation::Silent { .. } => {}
            }
        }
        // A node without observations was forgotten, or this node no longer sends Hellos on its link. This node would
        // not notice its return, so it does not stay dead.
        self.left.retain(|node| seen.contains_key(node.as_str()));
        returned.extend(self.dead.extract_if(.., |node| !seen.contains_key(node.as_str())));
        let may_answer =
            |node: &String| matches!(seen.get(node.as_str()), Some(Observation::Answering | Observation::Undecided));
        self.silent_agents.retain(may_answer);
        DeathChanges { died, returned, silenced }
    }

    pub fn dead(&self) -> &BTreeSet<String> {
        &self.dead
    }

    /// The nodes whose agent is silent while their kernel answers.
    pub fn silent_agents(&self) -> &BTreeSet<String> {
        &self.silent_agents
    }

    /// Whether no node is dead, no node has left, and no agent is silent.
    pub fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.left.is_empty() && self.silent_agents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Observation::*;
    use super::*;

    const CONFIRMED: Observation = Silent { confirmed: true };
    const UNCONFIRMED: Observation = Silent { confirmed: false };

    fn dead(deaths: &Deaths) -> Vec<&str> {
        deaths.dead.iter().map(String::as_str).collect()
    }

    #[test]
    fn node_is_dead_if_silent_everywhere_and_confirmed() {
        for (case, observations, expected) in [
            ("heard", vec![Present], false),
            ("silent and confirmed", vec![CONFIRMED], true),
            ("silent without a confirming peer", vec![UNCONFIRMED], false),
            ("heard on another link", vec![CONFIRMED, Present], false),
            ("confirmed on one of two links", vec![CONFIRMED, UNCONFIRMED], true),
            ("confirmed on no link", vec![UNCONFIRMED, UNCONFIRMED], false),
            ("goodbye", vec![Left], false),
            ("goodbye lost on the other link", vec![Left, CONFIRMED], false),
            ("goodbye on one link only", vec![Left, Present], false),
            ("kernel answers", vec![Answering], false),
            ("kernel answers on one link only", vec![CONFIRMED, Answering], false),
            ("kernel may still answer on one link", vec![CONFIRMED, Undecided], false),
        ] {
            let mut deaths = Deaths::default();
            let changes = deaths.update(observations.into_iter().map(|observation| ("n1", observation)));
            assert_eq!((changes.died.len(), changes.returned.len()), (usize::from(expected), 0), "{case}");
            assert_eq!(dead(&deaths).contains(&"n1"), expected, "{case}");
        }
    }

    #[test]
    fn dead_node_stays_dead_until_heard_or_forgotten() {
        let mut deaths = Deaths::default();
        let mut update = |observations: &[(&'static str, Observation)]| {
            let DeathChanges { died, returned, .. } = deaths.update(observations.iter().copied());
            (died.join(" "), returned.join(" "), dead(&deaths).join(" "))
        };
        let changes = |died: &str, back: &str, dead: &str| (died.to_owned(), back.to_owned(), dead.to_owned());
        assert_eq!(update(&[("n1", CONFIRMED), ("n2", Present)]), changes("n1", "", "n1"));
        assert_eq!(update(&[("n1", CONFIRMED), ("n2", CONFIRMED)]), changes("n2", "", "n1 n2"));
        assert_eq!(
            update(&[("n1", UNCONFIRMED), ("n2", UNCONFIRMED)]),
            changes("", "", "n1 n2"),
            "all others are silent too"
        );
        assert_eq!(update(&[("n1", Left), ("n2", Present)]), changes("", "n1 n2", ""));
        assert_eq!(update(&[("n1", CONFIRMED), ("n2", CONFIRMED)]), changes("n2", "", "n2"), "n1 had left");
        assert_eq!(update(&[("n1", Present)]), changes("", "n2", ""), "n2 is forgotten, or its link is gone");
        assert_eq!(update(&[("n1", CONFIRMED)]), changes("n1", "", "n1"));
        assert_eq!(update(&[("n1", Undecided)]), changes("", "", "n1"));
        assert_eq!(update(&[("n1", Answering)]), changes("", "n1", ""), "declared dead too early");
    }

    #[test]
    fn silent_agent_is_reported_once_until_its_node_dies() {
        let mut deaths = Deaths::default();
        let mut update = |observation| {
            let DeathChanges { died, returned, silenced } = deaths.update([("n1", observation)].into_iter());
            ([died.len(), returned.len(), silenced.len()], deaths.silent_agents().len(), deaths.is_empty())
        };
        for (observation, changes, silent) in [
            (Undecided, [0, 0, 0], 0),
            (Answering, [0, 0, 1], 1),
            (Answering, [0, 0, 0], 1),
            (Undecided, [0, 0, 0], 1),
            (Present, [0, 0, 0], 0),
            (Answering, [0, 0, 1], 1),
            (CONFIRMED, [1, 0, 0], 0),
            (Answering, [0, 1, 1], 1),
            (UNCONFIRMED, [0, 0, 0], 0),
        ] {
            let is_empty = silent == 0 && changes[0] == 0;
            assert_eq!(update(observation), (changes, silent, is_empty), "{observation:?}");
        }
    }
}
