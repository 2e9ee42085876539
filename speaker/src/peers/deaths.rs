//! Which nodes are dead, for the dataplane: it stops sending connections to them before the API server knows.
//!
//! Input are the observations of each node on each link, output is a set of names. The file remembers dead nodes and
//! nodes that sent a goodbye.
//!
//! A mistake here costs more than in [`ownership`](crate::ownership::rules). An address taken over without need only
//! moves. A node called dead without need loses its connections, and a node that has become deaf would call all others
//! dead. So a death needs more evidence than the silence that moves an address:
//!
//! - The node was heard before, and is silent on *every* link on which it was heard. A node heard on any link, by this
//!   node or by a peer that this node hears, is alive. So is a deaf node.
//! - A peer *confirms* the silence: on at least one of these links, a live peer that was heard just now and hears this
//!   node has not heard the node within its window either. So a node that is cut off, has just started or was suspended
//!   calls no node dead.
//! - With two nodes there is no peer to confirm. Instead, any ARP or NDP frame of another host since the peer fell
//!   silent shows that this node can hear: from a router, or from a client that resolves an address. If the peer stays
//!   silent for a window after that frame, it is dead. Without such a frame it is not.
//! - A node that sent a goodbye is not dead: its speaker stopped in order, and its pods live.
//!
//! A dead node stays dead until it is heard again, also when all other nodes fall silent later. It is forgotten after
//! [`FORGET_AFTER`], or when this node no longer sends Hellos on that link. By then the API server has removed its
//! endpoints. If it still reports them as ready, only the speaker there has failed for good, and the pods serve.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A dead node is forgotten after this time: twelve times the 50 s after which the API server removes the endpoints of
/// a silent node by default. So the API server itself may be unavailable for a while.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// The observation of a node on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Observation {
    Silent {
        /// Whether the fault is not this node's own.
        confirmed: bool,
    },
    /// It sent a goodbye.
    Left,
    /// It is heard, by this node or by another peer.
    Present,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    dead: BTreeSet<String>,
    /// Nodes that sent a goodbye on any link and were not heard on any since.
    left: BTreeSet<String>,
}

impl Deaths {
    /// Applies the current observations of all nodes on all links. Returns the nodes that have just died and those that
    /// are no longer dead.
    pub fn update<'a>(
        &mut self,
        observations: impl Iterator<Item = (&'a str, Observation)>,
    ) -> (Vec<String>, Vec<String>) {
        let (mut died, mut back) = (Vec::new(), Vec::new());
        // The strongest evidence of life counts: `Present`, then `Left`, then silence.
        let mut seen = BTreeMap::<&str, Observation>::new();
        for (node, observation) in observations {
            let best = seen.entry(node).or_insert(observation);
            *best = observation.max(*best);
        }
        for (node, observation) in &seen {
            match observation {
                Observation::Present => {
                    self.left.remove(*node);
                    back.extend(self.dead.take(*node));
                }
                Observation::Left => {
                    self.left.insert((*node).to_owned());
                    back.extend(self.dead.take(*node));
                }
                Observation::Silent { confirmed: true } if !self.dead.contains(*node) && !self.left.contains(*node) => {
                    self.dead.insert((*node).to_owned());
                    died.push((*node).to_owned());
                }
                Observation::Silent { .. } => {}
            }
        }
        // A forgotten node, or one of a link without Hellos, might return unheard.
        self.left.retain(|node| seen.contains_key(node.as_str()));
        back.extend(self.dead.extract_if(.., |node| !seen.contains_key(node.as_str())));
        (died, back)
    }

    pub fn dead(&self) -> impl Iterator<Item = &str> {
        self.dead.iter().map(String::as_str)
    }

    /// Whether no node is dead and no node has left.
    pub fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Observation::*;
    use super::*;

    const CONFIRMED: Observation = Silent { confirmed: true };
    const UNCONFIRMED: Observation = Silent { confirmed: false };

    fn dead(deaths: &Deaths) -> Vec<&str> {
        deaths.dead().collect()
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
        ] {
            let mut deaths = Deaths::default();
            let (died, back) = deaths.update(observations.into_iter().map(|observation| ("n1", observation)));
            assert_eq!((died.len(), back.len()), (usize::from(expected), 0), "{case}");
            assert_eq!(dead(&deaths).contains(&"n1"), expected, "{case}");
        }
    }

    #[test]
    fn dead_node_stays_dead_until_heard_or_forgotten() {
        let mut deaths = Deaths::default();
        let mut update = |observations: &[(&'static str, Observation)]| {
            let (died, back) = deaths.update(observations.iter().copied());
            (died.join(" "), back.join(" "), dead(&deaths).join(" "))
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
    }
}
