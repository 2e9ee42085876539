//! Chains at hooks that come and go. Pure.
//!
//! A packet that passes a hook passes all chains there, those of connections that are open as well. So what not everybody wants
//! is no rule of a chain that is always there, but a chain of its own, which is there only while somebody wants it.

/// A chain at a hook that many packets would pass for nothing if nobody wants what it does: `count`, `learn-…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hooked {
    /// Counts packets and bytes.
    Counts,
    /// Remembers where new connections go that stay on this node.
    LearnsHere,
    /// Remembers where new connections go that are forwarded.
    Learns,
}

impl Hooked {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Counts, Self::LearnsHere, Self::Learns];

    /// The name of the chain.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counts => "count",
            Self::LearnsHere => "learn-input",
            Self::Learns => "learn-postrouting",
        }
    }

    /// Which of them a chain of this name is.
    pub fn called(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crds::Protocol;
    use crds::service::Family;

    use super::*;
    use crate::nft::elements::{Key, elements};
    use crate::rules::ruleset::{Endpoint, LbIp, Pick, Ruleset, Target};

    /// Those that are there for one Service like this.
    fn wanted(counted: bool, affinity: Option<u32>) -> Vec<Hooked> {
        let address = "10.0.0.1:80".parse().expect("an address");
        let all = Pick { from: 0, count: 1 };
        let endpoints = vec![Endpoint { remote: false, address }];
        let target = Target { endpoints, outside: all, inside: all, affinity, ..Target::default() };
        let ports = BTreeMap::from([((Protocol::Tcp, 80), Box::new(target))]);
        let mut ruleset = Ruleset::default();
        let lb_ip = LbIp { ports, counted, ..LbIp::default() };
        ruleset.set("192.0.2.10".parse().expect("an address"), Some(lb_ip));
        let of = |key: &Key| match key {
            Key::Hooked(Family::V4, one) => Some(*one),
            Key::Hooked(Family::V6, one) => panic!("{one:?} where there is no address"),
            _ => None,
        };
        elements(&ruleset).keys().filter_map(of).collect()
    }

    #[test]
    fn each_is_there_only_where_somebody_wants_it() {
        assert_eq!(wanted(false, None), []);
        assert_eq!(wanted(true, None), [Hooked::Counts]);
        assert_eq!(wanted(false, Some(60)), [Hooked::LearnsHere, Hooked::Learns]);
    }
}
