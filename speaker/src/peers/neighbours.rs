//! Which nodes are on which link: for the dataplane, which hands them frames there.
//!
//! That two links have addresses of the same network proves nothing: two racks may both use 10.0.0.0/24. What does is a
//! Hello, which goes no farther than the link: who was heard there and said that it hears us is on it, with the MAC address
//! that the Hello came from. It stays so when it falls silent, for then it is dead and not elsewhere, until it is met on
//! another link under the same MAC address.

use std::collections::BTreeMap;

use crds::MacAddr;

/// The nodes that were met on each link, by the names of both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    links: BTreeMap<String, BTreeMap<String, MacAddr>>,
}

impl Neighbours {
    /// This node was met on this link. Returns whether that is news.
    pub fn meet(&mut self, link: &str, node: &str, mac: MacAddr) -> bool {
        if self.mac(link, node) == Some(mac) {
            return false;
        }
        for (_, others) in self.links.iter_mut().filter(|(other, _)| *other != link) {
            if others.get(node) == Some(&mac) {
                others.remove(node);
            }
        }
        self.links.entry(link.to_owned()).or_default().insert(node.to_owned(), mac);
        true
    }

    /// The MAC address of this node on this link, if it was met there.
    pub fn mac(&self, link: &str, node: &str) -> Option<MacAddr> {
        self.links.get(link)?.get(node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_where_it_was_met_last_under_its_mac_address() {
        let [a, b] = [1, 2].map(|last| MacAddr(2, 0, 0, 0, 0, last));
        let mut met = Neighbours::default();
        assert!(met.meet("eth0", "n2", a));
        assert!(!met.meet("eth0", "n2", a), "no news");
        assert_eq!((met.mac("eth0", "n2"), met.mac("eth1", "n2"), met.mac("eth0", "n3")), (Some(a), None, None));
        // It has two links.
        assert!(met.meet("eth1", "n2", b));
        assert_eq!((met.mac("eth0", "n2"), met.mac("eth1", "n2")), (Some(a), Some(b)));
        // The cable of the first is moved.
        assert!(met.meet("eth1", "n2", a));
        assert_eq!((met.mac("eth0", "n2"), met.mac("eth1", "n2")), (None, Some(a)));
    }
}
