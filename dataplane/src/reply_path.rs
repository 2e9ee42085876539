//! The reply path: on a node with several links, replies leave by the link that the request came in by.
//!
//! ```text
//!   client ──▶ eth1: first packet to an lb_ip ── connection gets the mark of eth1 ──▶ endpoint
//!                                                                                      │ reply
//!   client ◀── eth1 ◀── table 76002: routes by eth1 ◀── rule: mark ── packet gets it ◀─┘
//! ```
//!
//! | file | content |
//! |---|---|
//! | [`plan`](mod@plan) | the links, rules and routes (pure) |
//! | [`routing`] | reads and changes the kernel's rules and routes (shell) |
//! | [`run`](mod@run) | the loop |
//!
//! Without it, a reply takes the node's own route to the client, by any link. A firewall on the path then sees half of
//! a connection, and a router that filters by source drops the reply.
//!
//! Marks, rules and routes of other programs do not change. Our marks use a few bits. Each link has a routing table of
//! ours (76001 and following), with copies of the routes that the main table has by that link. The rules that lead to
//! these tables have protocol number 76, by which Landfall recognises them. If such a table has no route to the client,
//! the node's own routes apply. All our rules and routes are deleted when no address is in use, and by [`remove`].

pub mod plan;
pub mod routing;
pub mod run;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crds::ProblemReason;
use crds::service::Family;

pub use routing::remove;
pub use run::run;

use crate::link_name::LinkName;

/// The input that decides whether connections are marked with their links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyPathInput {
    /// The links that packets to lb_ips may come in by: those that lb_ips can be announced on, but not those of pods.
    pub links: BTreeSet<LinkName>,
    /// The families of the lb_ips in use.
    pub families: BTreeSet<Family>,
}

/// A link whose connections are marked, so that their replies leave by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyPath {
    pub family: Family,
    pub link: LinkName,
    /// The mark of its connections.
    pub mark: Mark,
}

/// Some bits of the mark of a packet or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// Only bits of the mask are set, and at least one.
    pub value: u32,
    pub mask: Mask,
}

/// The bits of marks that Landfall uses: 1 to 8 adjacent bits. All others stay as they are.
///
/// N bits distinguish 2^N - 1 links. The default is `0x70`: bits that neither kube-proxy (`0xc000`), Cilium
/// (`0xffff0f00`), Calico (`0xffff0000`), the port mapping of CNI (`0x2000`), AWS (`0x80`) nor Tailscale (`0xff0000`)
/// use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask(u32);

impl Default for Mask {
    fn default() -> Self {
        Self(0x70)
    }
}

impl Mask {
    /// `None` if there are no bits, more than 8, or gaps between them.
    pub fn new(bits: u32) -> Option<Self> {
        let is_adjacent = bits.checked_shr(bits.trailing_zeros()).is_some_and(|low| low & low.wrapping_add(1) == 0);
        (is_adjacent && (1..=8).contains(&bits.count_ones())).then_some(Self(bits))
    }

    pub fn bits(self) -> u32 {
        self.0
    }

    /// The number of links that it can distinguish.
    pub fn slots(self) -> u32 {
        (1 << self.0.count_ones()) - 1
    }

    /// The mark of the link with this slot, from 1 to [`Mask::slots`].
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
        mask.ok_or_else(|| format!("{text:?} is not a mask: it needs 1 to 8 adjacent bits, such as 0x70"))
    }
}

/// Why, on a node with several links, requests may be lost, or a reply may leave by another link than its request came
/// in by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// No router on the link is known to lead to all destinations: the link has no router, or several and no default
    /// route. Replies to clients beyond the link take the node's own routes.
    NoRouter(Family, LinkName),
    /// There are more links than marks.
    NoMark(LinkName),
    /// A routing table with one of our numbers has routes or rules of other programs, so Landfall does not use it.
    TakenTable(u32),
    /// The kernel drops a packet that comes in by this link if the node's own route to the client leaves by another
    /// link.
    StrictFilter(LinkName),
}

impl Gap {
    /// The reason and subject to report for an lb_ip of `family` that is announced on `link`; `None` if this gap does
    /// not affect it.
    pub fn problem(&self, family: Family, link: LinkName) -> Option<(ProblemReason, String)> {
        match self {
            Self::NoRouter(gap_family, gap_link) if (*gap_family, *gap_link) == (family, link) => {
                Some((ProblemReason::AnswersElsewhere, format!("no router is known on link {link}")))
            }
            Self::NoMark(gap_link) if *gap_link == link => {
                let what = format!("the mask of marks has too few bits for link {link}");
                Some((ProblemReason::AnswersElsewhere, what))
            }
            Self::StrictFilter(gap_link) if family == Family::V4 && *gap_link == link => {
                Some((ProblemReason::RequestsFiltered, format!("link {link}")))
            }
            // Another table is used instead of a taken one. If there is no other, the gap is [`Gap::NoMark`].
            Self::TakenTable(_) | Self::NoRouter(..) | Self::NoMark(_) | Self::StrictFilter(_) => None,
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRouter(family, link) => write!(
                f,
                "replies to clients beyond link {link} take the node's own routes ({family}), since no router is known \
                 there; add a default route by that link, with a higher metric than that of the current default route"
            ),
            Self::NoMark(link) => write!(
                f,
                "replies to clients of link {link} take the node's own routes, since the mask of marks has too few \
                 bits; choose more with --return-mark"
            ),
            Self::TakenTable(table) => {
                write!(f, "routing table {table} has routes or rules of other programs and is not used")
            }
            Self::StrictFilter(link) => write!(
                f,
                "the kernel drops packets that come in by link {link} from clients that its routes reach by another \
                 link; set net.ipv4.conf.{link}.rp_filter to 2 (loose)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_one_to_eight_adjacent_bits() {
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
