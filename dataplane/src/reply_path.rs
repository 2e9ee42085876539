//! The way back: on a node with several links, an answer leaves by the link that the request came in by.
//!
//! ```text
//!   client ──▶ eth1: first packet to an lb_ip ── connection gets the mark of eth1 ──▶ endpoint
//!                                                                                      │ answer
//!   client ◀── eth1 ◀── table 76002: routes by eth1 ◀── rule: mark ── packet gets it ◀─┘
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`plan`](mod@plan) | which links, rules and routes (pure) |
//! | [`kernel`] | reads and changes what the kernel has (shell) |
//! | [`run`](mod@run) | the loop |
//!
//! Without this, an answer takes the node's own route to the client, by whatever link that leads. A firewall on the way
//! then sees half of a connection, and a router that filters by source drops it.
//!
//! Nothing of anybody else is changed: the marks use a few bits alone, the routing tables are ours (76001 and following)
//! and hold copies of the routes that the table `main` has by that link, and the rules that lead there are made under
//! protocol number 76, which is how they are known again. Where a table of ours has no route to the client, the node's own
//! routes are used, as without it. Everything is taken away again when no address is in use, and by [`remove`].

pub mod kernel;
pub mod plan;
pub mod run;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crds::ProblemReason;
use crds::service::Family;

pub use kernel::remove;
pub use plan::{Plan, plan};
pub use run::run;

use crate::snapshot::LinkName;

/// What must be known to decide whether packets have to be told apart by their links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The links that packets to lb_ips may come in by: those that lb_ips can be announced on, but not those of pods.
    pub links: BTreeSet<LinkName>,
    /// The families of the lb_ips in use.
    pub families: BTreeSet<Family>,
}

/// A link whose connections are answered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Return {
    /// The family of the packets.
    pub family: Family,
    /// The link.
    pub link: LinkName,
    /// What marks them.
    pub mark: Mark,
}

/// Some bits of the mark of a packet or of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// What they are. No other bits are set, and not all of them are zero.
    pub value: u32,
    /// Which bits.
    pub mask: Mask,
}

/// Which bits of marks are Landfall's: between 1 and 8 that stand side by side. All others are left as they are.
///
/// With N bits, 2^N - 1 links can be told apart. The default is `0x70`: bits that neither kube-proxy (`0xc000`), Cilium
/// (`0xffff0f00`), Calico (`0xffff0000`), the port mapping of CNI (`0x2000`), AWS (`0x80`) nor Tailscale (`0xff0000`) use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask(u32);

impl Default for Mask {
    fn default() -> Self {
        Self(0x70)
    }
}

impl Mask {
    /// These bits; `None` if they are none, too many, or not side by side.
    pub fn new(bits: u32) -> Option<Self> {
        let side_by_side = bits.checked_shr(bits.trailing_zeros()).is_some_and(|low| low & low.wrapping_add(1) == 0);
        (side_by_side && (1..=8).contains(&bits.count_ones())).then_some(Self(bits))
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// How many links can be told apart.
    pub fn slots(self) -> u32 {
        (1 << self.0.count_ones()) - 1
    }

    /// The mark of the link with this number, from 1 to [`Mask::slots`].
    pub fn mark(self, slot: u32) -> Mark {
        Mark { value: (slot << self.0.trailing_zeros()) & self.0, mask: self }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl FromStr for Mask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let mask = bits.ok().and_then(Self::new);
        mask.ok_or_else(|| format!("{text:?} is no mask: 1 to 8 bits side by side are needed, such as 0x70"))
    }
}

/// Why an answer may leave by another link than the request came in by, although there are several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// No router is known on the link, or several and none of them for everybody: clients beyond it are answered by the
    /// node's own routes.
    NoRouter(Family, LinkName),
    /// There are more links than marks.
    NoMark(LinkName),
    /// Others have put something into a routing table that would be ours, and it is left alone.
    TakenTable(u32),
    /// The kernel drops what comes in by this link from clients that it would not answer by it.
    StrictFilter(LinkName),
}

impl Gap {
    /// Why this is worth saying of an lb_ip of `family` that is announced on `link`, and what it is about in a few words;
    /// `None` if it does not concern it.
    pub fn about(&self, family: Family, link: LinkName) -> Option<(ProblemReason, String)> {
        match self {
            Self::NoRouter(of, on) if (*of, *on) == (family, link) => {
                Some((ProblemReason::AnswersElsewhere, format!("no router is known on link {link}")))
            }
            Self::NoMark(on) if *on == link => {
                let what = format!("there are not enough bits of marks for link {link}");
                Some((ProblemReason::AnswersElsewhere, what))
            }
            Self::StrictFilter(on) if family == Family::V4 && *on == link => {
                Some((ProblemReason::RequestsFiltered, format!("link {link}")))
            }
            // One of several tables, and where none is left, there is no mark.
            Self::TakenTable(_) | Self::NoRouter(..) | Self::NoMark(_) | Self::StrictFilter(_) => None,
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRouter(family, link) => write!(
                f,
                "clients beyond link {link} are answered by the node's own routes ({family}): no router is known there. Give \
                 the node a default route by that link, with a higher metric than the one it uses"
            ),
            Self::NoMark(link) => write!(
                f,
                "connections that come in by link {link} are answered by the node's own routes: there are not enough bits of \
                 marks. Choose more with --return-mark"
            ),
            Self::TakenTable(table) => {
                write!(f, "routing table {table} has routes or rules of others in it, and is left to them")
            }
            Self::StrictFilter(link) => write!(
                f,
                "the kernel drops what comes in by link {link} from clients that its routes don't lead to by that link: set \
                 net.ipv4.conf.{link}.rp_filter to 2 (loose)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_few_bits_side_by_side() {
        let mask = |text: &str| text.parse::<Mask>().ok();
        assert_eq!(mask("0x70"), Some(Mask::default()));
        assert_eq!(mask("112"), Some(Mask::default()));
        assert!(mask("0x80000000").is_some());
        for wrong in ["", "0", "0x50", "0x1ff", "0x100000000", "mark", "-1"] {
            assert_eq!(mask(wrong), None, "{wrong}");
        }
        let mask = Mask::default();
        let values: Vec<u32> = (1..=mask.slots()).map(|slot| mask.mark(slot).value).collect();
        assert_eq!(values, [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70]);
    }
}
