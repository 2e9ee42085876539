//! Which nodes are dead: for the dataplane, which stops sending connections to them before the API server knows.
//!
//! What is seen of each node on each link in, a set of names out; what is remembered is who is dead, and who said good-bye.
//!
//! Here a mistake costs otherwise than in [`ownership`](crate::ownership::rules). An address that is taken over needlessly moves; a
//! node that is called dead needlessly loses its connections, and if it is this node that can't hear, it would call everybody
//! dead. So it takes more than the silence that moves an address:
//!
//! - The node was heard before, and is silent on *every* link on which it was. One that is heard anywhere, or that somebody
//!   who is heard still hears, is alive; so is one that hears nobody: it is there.
//! - Somebody *agrees*: on one of these links at least, a peer that is alive, heard just now, and hears us, hasn't heard it
//!   within its window either. So who is cut off, has just started or slept calls nobody dead.
//! - Of two nodes each is the only witness. There, the sign that our own ears work is any ARP or neighbour discovery of somebody
//!   else on the LAN since the other fell silent: a router, a client that asks for an address. If the other isn't heard for a
//!   window after that either, the fault isn't ours. As long as there is no such sign, nobody is dead.
//! - One that said good-bye is not dead: its speaker stopped in order, and its pods live.
//!
//! Who is dead stays so until it is heard again, also when all others fall silent later: that they are gone doesn't bring it
//! back. After [`FORGET`], or when this node doesn't speak on that link any more, it is forgotten. The API server has long
//! known by then, and takes its endpoints away; if it still counts them among the ready ones, only the speaker there is gone
//! for good, and the pods serve.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For so long after it died a node is dead in our eyes, unless it is heard: twelve times as long as the API server takes to
/// take the endpoints of a silent node away (50 s by default), so that it may be away itself for a while.
pub const FORGET: Duration = Duration::from_secs(600);

/// What is seen of a node on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// It is silent.
    Silent {
        /// Whether we have reason to believe that this isn't our own fault.
        agreed: bool,
    },
    /// It said good-bye.
    Left,
    /// It is heard, by us or by somebody else.
    Present,
}

/// Who is dead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    dead: BTreeSet<String>,
    /// Nodes that said good-bye on some link, and were not heard on any since.
    left: BTreeSet<String>,
}

impl Deaths {
    /// Takes in what is seen now, of all nodes on all links. Returns who has just died, and who is not dead any more.
    pub fn see<'a>(&mut self, sights: impl Iterator<Item = (&'a str, Sight)>) -> (Vec<String>, Vec<String>) {
        let (mut died, mut back) = (Vec::new(), Vec::new());
        // What shows most that it is alive: `Present`, then `Left`, then silence, agreed on or not.
        let mut seen = BTreeMap::<&str, Sight>::new();
        for (node, sight) in sights {
            let best = seen.entry(node).or_insert(sight);
            *best = sight.max(*best);
        }
        for (node, sight) in &seen {
            match sight {
                Sight::Present => {
                    self.left.remove(*node);
                    back.extend(self.dead.take(*node));
                }
                Sight::Left => {
                    self.left.insert((*node).to_owned());
                    back.extend(self.dead.take(*node));
                }
                Sight::Silent { agreed: true } if !self.dead.contains(*node) && !self.left.contains(*node) => {
                    self.dead.insert((*node).to_owned());
                    died.push((*node).to_owned());
                }
                Sight::Silent { .. } => {}
            }
        }
        // Who is forgotten, or was on a link that we don't listen on any more, could come back unheard.
        self.left.retain(|node| seen.contains_key(node.as_str()));
        back.extend(self.dead.extract_if(.., |node| !seen.contains_key(node.as_str())));
        (died, back)
    }

    /// Who is dead.
    pub fn dead(&self) -> impl Iterator<Item = &str> {
        self.dead.iter().map(String::as_str)
    }

    /// Whether nobody is, and nobody has left.
    pub fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Sight::*;
    use super::*;

    const AGREED: Sight = Silent { agreed: true };
    const ALONE: Sight = Silent { agreed: false };

    fn dead(deaths: &Deaths) -> Vec<&str> {
        deaths.dead().collect()
    }

    #[test]
    fn a_node_is_dead_when_it_is_silent_on_every_link_and_somebody_agrees() {
        for (what, sights, expected) in [
            ("it is heard", vec![Present], false),
            ("somebody agrees that it is silent", vec![AGREED], true),
            ("nobody is there who could agree", vec![ALONE], false),
            ("it is heard on another link", vec![AGREED, Present], false),
            ("nobody is there on one link, and somebody agrees on the other", vec![AGREED, ALONE], true),
            ("nobody is there on any", vec![ALONE, ALONE], false),
            ("it has left", vec![Left], false),
            ("it has left, and its word was lost on the other link", vec![Left, AGREED], false),
            ("it has left one link only", vec![Left, Present], false),
        ] {
            let mut deaths = Deaths::default();
            let (died, back) = deaths.see(sights.into_iter().map(|sight| ("n1", sight)));
            assert_eq!((died.len(), back.len()), (usize::from(expected), 0), "{what}");
            assert_eq!(dead(&deaths).contains(&"n1"), expected, "{what}");
        }
    }

    #[test]
    fn the_dead_stay_dead_until_they_are_heard_or_forgotten() {
        let mut deaths = Deaths::default();
        let mut see = |sights: &[(&'static str, Sight)]| {
            let (died, back) = deaths.see(sights.iter().copied());
            (died.join(" "), back.join(" "), dead(&deaths).join(" "))
        };
        let told = |died: &str, back: &str, dead: &str| (died.to_owned(), back.to_owned(), dead.to_owned());
        assert_eq!(see(&[("n1", AGREED), ("n2", Present)]), told("n1", "", "n1"));
        assert_eq!(see(&[("n1", AGREED), ("n2", AGREED)]), told("n2", "", "n1 n2"));
        assert_eq!(see(&[("n1", ALONE), ("n2", ALONE)]), told("", "", "n1 n2"), "the others are gone too");
        assert_eq!(see(&[("n1", Left), ("n2", Present)]), told("", "n1 n2", ""));
        assert_eq!(see(&[("n1", AGREED), ("n2", AGREED)]), told("n2", "", "n2"), "n1 had left");
        assert_eq!(see(&[("n1", Present)]), told("", "n2", ""), "n2 is forgotten, or its link is gone");
    }
}
