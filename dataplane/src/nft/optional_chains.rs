//! Base chains that exist only while some Service needs them. Pure.
//!
//! Every packet at a hook passes all filter chains there, and the first packet of a connection also passes the nat
//! chains. So an optional function has a chain of its own, and not a rule in a permanent chain.

/// A base chain that exists only while some Service needs it, since it has a cost for packets of all Services and
/// programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OptionalChain {
    /// Counts packets and bytes.
    CountTraffic,
    /// Learns the endpoint of new connections that stay on this node, for session affinity.
    LearnInput,
    /// Learns the endpoint of new connections that are forwarded.
    LearnPostrouting,
    /// Hands segments of unknown connections on. Needed while a port has a ring.
    SecondChance,
}

impl OptionalChain {
    pub const ALL: [Self; 4] = [Self::CountTraffic, Self::LearnInput, Self::LearnPostrouting, Self::SecondChance];

    pub fn name(self) -> &'static str {
        match self {
            Self::CountTraffic => "count",
            Self::LearnInput => "learn-input",
            Self::LearnPostrouting => "learn-postrouting",
            Self::SecondChance => "second-chance",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|chain| chain.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crds::Protocol;

    use super::*;
    use crate::nft::chain_name::ChainName;
    use crate::nft::elements::ElementKey;
    use crate::nft::layout::Table;
    use crate::nft::projection::ruleset_elements;
    use crate::rules::{Endpoint, LbIp, Pick, Ruleset, Target};

    /// The optional chains for one IPv4 Service with these settings.
    fn needed_chains(counted: bool, affinity: Option<u32>) -> Vec<OptionalChain> {
        let address = "10.0.0.1:80".parse().expect("an address");
        let all = Pick { from: 0, count: 1 };
        let endpoints = vec![Endpoint { remote: false, address }];
        let target = Target { endpoints, outside: all, inside: all, affinity, ..Target::default() };
        let ports = BTreeMap::from([((Protocol::Tcp, 80), Box::new(target))]);
        let mut ruleset = Ruleset::default();
        let lb_ip = LbIp { ports, counted, ..LbIp::default() };
        ruleset.set("192.0.2.10".parse().expect("an address"), Some(lb_ip));
        let optional = |key: &ElementKey| match key {
            ElementKey::Chain(Table::V4, ChainName::Optional(chain)) => Some(*chain),
            ElementKey::Chain(Table::V6, ChainName::Optional(chain)) => panic!("{chain:?} without an address"),
            _ => None,
        };
        ruleset_elements(&ruleset).keys().filter_map(optional).collect()
    }

    #[test]
    fn each_chain_exists_only_while_it_is_needed() {
        assert_eq!(needed_chains(false, None), []);
        assert_eq!(needed_chains(true, None), [OptionalChain::CountTraffic]);
        assert_eq!(needed_chains(false, Some(60)), [OptionalChain::LearnInput, OptionalChain::LearnPostrouting]);
    }
}
