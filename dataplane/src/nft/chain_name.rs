//! The names of chains: [`ChainName`] ⇄ text. Pure.
//!
//! Some chains exist only while an element, a link or a Service needs them. The name of such a chain contains its
//! parameters.

use std::fmt;

use crds::Backend;

use super::optional_chains::OptionalChain;
use crate::link_name::LinkName;
use crate::reply_path::Mark;
use crate::rules::{Dispatch, Pick};

/// A chain that exists only while it is needed, or to which elements lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainName {
    /// `…pick-N`, `…to-node-port` or `…to-cluster-ip`: sends new connections on.
    Dispatch(Dispatch),
    /// `remember-T`: puts a client into `affinity` for T seconds.
    Remember(u32),
    /// `by-VALUE-of-MASK-LINK`: marks connections that come in by this link.
    MarkConnection(LinkName, Mark),
    /// `back-VALUE-of-MASK`: marks replies that are forwarded.
    MarkForwardedReply(Mark),
    /// `back-from-here-VALUE-of-MASK`: marks replies of this node.
    MarkLocalReply(Mark),
    Optional(OptionalChain),
    /// `tries-N`: hands a segment of an unknown connection on to at most N other nodes.
    Tries(u8),
    /// `on-LINK`: the ingress of a link.
    Ingress(LinkName),
    /// `refuse`, or `restricted-refuse` if source ranges apply. These two always exist.
    Refuse {
        restricted: bool,
    },
}

const RESTRICTED: &str = "restricted-";
const TO_NODE_PORT: &str = "to-node-port";
const TO_CLUSTER_IP: &str = "to-cluster-ip";
const STICKY: &str = "sticky-";
const PICK: &str = "pick-";
const FROM: &str = "-from-";
const REFUSE: &str = "refuse";
const REMEMBER: &str = "remember-";
const TRIES: &str = "tries-";
const ON: &str = "on-";
const BY: &str = "by-";
const BACK: &str = "back-";
const BACK_FROM_HERE: &str = "back-from-here-";
const OF: &str = "-of-";

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dispatch(dispatch) => write_dispatch(*dispatch, f),
            Self::Remember(seconds) => write!(f, "{REMEMBER}{seconds}"),
            Self::MarkConnection(link, mark) => write!(f, "{BY}{:#x}{OF}{}-{link}", mark.value, mark.mask),
            Self::MarkForwardedReply(mark) => write!(f, "{BACK}{:#x}{OF}{}", mark.value, mark.mask),
            Self::MarkLocalReply(mark) => write!(f, "{BACK_FROM_HERE}{:#x}{OF}{}", mark.value, mark.mask),
            Self::Optional(chain) => f.write_str(chain.name()),
            Self::Tries(others) => write!(f, "{TRIES}{others}"),
            Self::Ingress(link) => write!(f, "{ON}{link}"),
            Self::Refuse { restricted } => write!(f, "{}{REFUSE}", if *restricted { RESTRICTED } else { "" }),
        }
    }
}

impl ChainName {
    /// The chain of this name; `None` if no chain has this name. Each chain has exactly one name.
    pub fn parse(name: &str) -> Option<Self> {
        let known = parse_dispatch(name)
            .map(Self::Dispatch)
            .or_else(|| name.strip_prefix(REMEMBER)?.parse().ok().map(Self::Remember))
            .or_else(|| name.strip_prefix(TRIES)?.parse().ok().map(Self::Tries))
            .or_else(|| parse_marking(name))
            .or_else(|| OptionalChain::parse(name).map(Self::Optional))
            .or_else(|| LinkName::new(name.strip_prefix(ON)?).map(Self::Ingress))
            .or_else(|| name.ends_with(REFUSE).then(|| Self::Refuse { restricted: name.starts_with(RESTRICTED) }));
        known.filter(|known| known.to_string() == name)
    }
}

fn write_dispatch(dispatch: Dispatch, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Dispatch { pick: Pick { from, count }, restricted, affinity, backend } = dispatch;
    if restricted {
        f.write_str(RESTRICTED)?;
    }
    match backend {
        Backend::Endpoints => {}
        Backend::NodePort => return f.write_str(TO_NODE_PORT),
        Backend::ClusterIp => return f.write_str(TO_CLUSTER_IP),
    }
    if let Some(seconds) = affinity {
        write!(f, "{STICKY}{seconds}-")?;
    }
    write!(f, "{PICK}{count}")?;
    if from == 0 { Ok(()) } else { write!(f, "{FROM}{from}") }
}

fn parse_dispatch(name: &str) -> Option<Dispatch> {
    let (restricted, rest) = name.strip_prefix(RESTRICTED).map_or((false, name), |rest| (true, rest));
    let proxied = |backend| Some(Dispatch { restricted, backend, ..Dispatch::default() });
    match rest {
        TO_NODE_PORT => return proxied(Backend::NodePort),
        TO_CLUSTER_IP => return proxied(Backend::ClusterIp),
        _ => {}
    }
    let (affinity, rest) = match rest.strip_prefix(STICKY) {
        Some(sticky) => {
            let (seconds, rest) = sticky.split_once('-')?;
            (Some(seconds.parse().ok()?), rest)
        }
        None => (None, rest),
    };
    let numbers = rest.strip_prefix(PICK)?;
    let (count, from) = numbers.split_once(FROM).unwrap_or((numbers, "0"));
    let pick = Pick { from: from.parse().ok()?, count: count.parse().ok()? };
    Some(Dispatch { pick, restricted, affinity, backend: Backend::Endpoints })
}

/// Parses the name of a chain that marks connections or replies.
fn parse_marking(name: &str) -> Option<ChainName> {
    if let Some(rest) = name.strip_prefix(BY) {
        let (value, rest) = rest.split_once(OF)?;
        let (mask, link) = rest.split_once('-')?;
        return Some(ChainName::MarkConnection(LinkName::new(link)?, parse_mark(value, mask)?));
    }
    let local = name.strip_prefix(BACK_FROM_HERE);
    let (value, mask) = local.or_else(|| name.strip_prefix(BACK))?.split_once(OF)?;
    let mark = parse_mark(value, mask)?;
    Some(if local.is_some() { ChainName::MarkLocalReply(mark) } else { ChainName::MarkForwardedReply(mark) })
}

fn parse_mark(value: &str, mask: &str) -> Option<Mark> {
    let value = u32::from_str_radix(value.strip_prefix("0x")?, 16).ok()?;
    Some(Mark { value, mask: mask.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply_path::Mask;

    #[test]
    fn a_reply_path_chain_is_parsed_from_its_name() {
        let mark = Mask::new(0x1800).expect("a mask").mark(2);
        let link = LinkName::new("bond0-by.7").expect("a name");
        for chain in [
            ChainName::MarkConnection(link, mark),
            ChainName::MarkForwardedReply(mark),
            ChainName::MarkLocalReply(mark),
        ] {
            assert_eq!(ChainName::parse(&chain.to_string()), Some(chain));
        }
        for other in ["by-", "by-0x10", "by-0x10-of-0x70", "by-16-of-0x70-eth0", "back-0x10-of-0x50", "back-"] {
            assert_eq!(ChainName::parse(other), None, "{other}");
        }
        assert_eq!(ChainName::parse("on-eth0"), LinkName::new("eth0").map(ChainName::Ingress));
    }
}
