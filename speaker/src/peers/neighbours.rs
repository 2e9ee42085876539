//! Which nodes are on which link. The dataplane re-sends frames to these nodes on these links.
//!
//! Equal prefixes do not prove that two nodes share a link: two racks may both use 10.0.0.0/24. A Hello proves it,
//! because it does not leave the link. A node is on a link if its Hello was heard there and lists this node as heard.
//! The source address of that Hello is the MAC address of the node. A node that falls silent stays in the table,
//! because it has probably died, not moved. It moves when it is heard on another link with the same MAC address.

use std::collections::BTreeMap;

use crds::MacAddr;

/// The MAC address of each node that was heard on a link, by the names of the link and the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    links: BTreeMap<String, BTreeMap<String, MacAddr>>,
}

impl Neighbours {
    /// Records a node on a link. Returns whether the table changed.
    pub fn record(&mut self, link: &str, node: &str, mac: MacAddr) -> bool {
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

    /// The MAC address of a node on a link, if it was heard there.
    pub fn mac(&self, link: &str, node: &str) -> Option<MacAddr> {
        self.links.get(link)?.get(node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_is_where_its_mac_was_last_heard() {
        let [a, b] = [1, 2].map(|last| MacAddr(2, 0, 0, 0, 0, last));
        let mut neighbours = Neighbours::default();
        assert!(neighbours.record("eth0", "n2", a));
        assert!(!neighbours.record("eth0", "n2", a), "no change");
        assert_eq!(
            (neighbours.mac("eth0", "n2"), neighbours.mac("eth1", "n2"), neighbours.mac("eth0", "n3")),
            (Some(a), None, None)
        );
        // The node has two links.
        assert!(neighbours.record("eth1", "n2", b));
        assert_eq!((neighbours.mac("eth0", "n2"), neighbours.mac("eth1", "n2")), (Some(a), Some(b)));
        // The cable of the first link is moved.
        assert!(neighbours.record("eth1", "n2", a));
        assert_eq!((neighbours.mac("eth0", "n2"), neighbours.mac("eth1", "n2")), (None, Some(a)));
    }
}
