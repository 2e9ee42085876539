//! The engine nft: a [`Ruleset`](crate::rules::Ruleset) as elements of three tables. `netdev landfall` re-sends frames
//! to other nodes; `ip landfall` and `ip6 landfall` translate packets for this one.
//!
//! The two IP tables have the same layout, and one transaction changes all three. With one table `inet landfall`, every
//! packet would pass checks of its family, and the table would still need each set twice. Frames of both families pass
//! one hook.
//!
//! The layout is *few maps with many elements*: the cost of a packet, and of changing one Service, is the same with one
//! Service as with 30,000. No chain or map belongs to a single Service.
//!
//! ```text
//!            nat prerouting, output (-110)              filter prerouting, output (-90)
//!                        │                                           │
//!   inside ──────────────┤ lb_ip . proto . port → id → pick-N       │ to one of addresses? then it is
//!   services ────────────┤ lb_ip . proto . port → id → pick-N       │ untranslated, so unserved:
//!   addresses, ping ─────┘ → this node answers                       └→ unserved: in refused → reset, else drop
//!                        │
//!        pick-N: endpoints[ lb_ip . proto . port . random below N ] → destination
//!        restricted-pick-N: the same, for clients whose lb_ip . proto . port . source is in sources
//!                        │
//!        sticky-T-pick-N: affinity[ source . lb_ip . proto . port ] → destination, otherwise the same
//!                        │
//!            nat postrouting (90), input: was the connection's destination one of addresses? then
//!                        ├→ learn: remember[ lb_ip . proto . port ] → add the client and its endpoint to affinity
//!                        └→ source: keep the client's address for an endpoint on this node, otherwise masquerade
//! ```
//!
//! # Example
//!
//! The Service `web` with the lb_ip 192.0.2.10, port 80/TCP, traffic policy Local, and the endpoints 10.244.1.5:8080 on
//! this node and 10.244.2.5:8080 on another has these elements, and the chains `pick-1` and `pick-2`:
//!
//! ```text
//!   addresses { 192.0.2.10 }                             begun     { 192.0.2.10 . tcp . 80 }
//!   services  { 192.0.2.10 . tcp . 80 : ID of pick-1 }   endpoints { 192.0.2.10 . tcp . 80 . 0 : 10.244.1.5 . 8080,
//!   inside    { 192.0.2.10 . tcp . 80 : ID of pick-2 }               192.0.2.10 . tcp . 80 . 1 : 10.244.2.5 . 8080 }
//!   ways      { ID of pick-1 : goto pick-1,              local     { 192.0.2.10 . 10.244.1.5 }
//!               ID of pick-2 : goto pick-2 }             hairpin   { 192.0.2.10 . 10.244.1.5 . 10.244.1.5 }
//! ```
//!
//! 1. A client's SYN to 192.0.2.10:80 comes in. `nat-prerouting` finds it in `services`, and `ways` leads to `pick-1`,
//!    which translates the destination to 10.244.1.5:8080. `nat-postrouting` finds the endpoint in `local`, so the
//!    source stays.
//! 2. A pod of this node connects. Its source is in `pods`, so `inside` decides: `pick-2` selects one of both
//!    endpoints.
//! 3. A SYN to 192.0.2.10:81 is in no map. `filter-prerouting` sends it to `unserved`, which drops it.
//!
//! # Rules
//!
//! - Only the first packet of a connection passes nat chains. Every packet passes one comparison of its connection
//!   state.
//! - nat at -110 runs before kube-proxy's -100, so this table decides about addresses that both have. The filter runs
//!   after both, so a packet that another proxy has translated is not refused.
//! - Only small maps have verdicts that lead to chains: when such a verdict changes, the kernel walks all of the table.
//!   So `services` has an id, and `ways` leads from the id to the chain. In between `meta priority` carries it, and the
//!   chain resets that.
//! - Sets with elements of each Service are created for the number of elements at hand ([`layout::Set::size`]), and
//!   enlarged in a transaction of their own: once for every doubling.
//! - No packet mark is used, so the marks of other programs stay. `nat-postrouting` recognises a translated packet by
//!   the original destination of its connection.
//! - `inside` has only what differs from `services`: Services with the traffic policy Local, for this node and its
//!   pods.
//! - All keys begin with the lb_ip, so elements of different lb_ips are independent, and the cost of a change is that
//!   of the changed ones.
//! - Source ranges are checked here, before kube-proxy gets the packet: the chain that would translate it drops a
//!   packet of a forbidden client. So no change of rules opens a Service for a moment. Only Services with ranges look
//!   into `sources`. (The kernel copies that kind of set for each change of it: with 20,000 ranges, a changed range
//!   costs milliseconds. Other changes do not.)
//! - Rules fill `affinity`, and entries expire. The agent deletes entries of endpoints that are gone (see
//!   [`crate::flows::affinity`]). A replaced table loses its entries.
//! - Refusal happens before routing, so it needs neither forwarding nor a route to the lb_ip.
//! - Packets are counted where they are decided: in `begun` by the chain that translates, in `denied`, `refusals` and
//!   `strays` by those that drop and refuse. `traffic` counts every packet, in the chain `count` before any
//!   translation. That alone has a cost, and can be switched off. Elements of `traffic` and `begun` exist as long as
//!   their port, so a change of endpoints resets nothing, and a diff ignores counts. The other elements are added by
//!   the first packet.
//! - Neighbour discovery for an lb_ip is never dropped here; the speaker answers it.
//!
//! `layout/netdev.rs` describes how frames are spread. That table only supports the others: without it, or for a packet
//! in none of its maps, each node translates the packets it gets.
//!
//! It needs Linux 5.10 or newer (for a reset from prerouting), and does not need the program `nft`.
//!
//! | file | content |
//! |---|---|
//! | `engine` | makes the kernel's tables equal to a ruleset (shell) |
//! | `counters` | reads the kernel's packet counters (shell) |
//! | [`projection`] | ruleset → elements (pure) |
//! | [`elements`] | the elements of sets and maps (pure) |
//! | [`diff`] | changes of elements (pure) |
//! | [`layout`] | the fixed part: sets, chains, rules (pure) |
//! | [`chain_name`], [`optional_chains`] | chains that exist only while they are needed (pure) |
//! | `dispatch_id` | the numbers of dispatch chains (pure) |
//! | [`codec`] | elements and rules ⇄ netlink messages (pure) |
//! | `text` | a ruleset as text, for people (pure) |

pub mod chain_name;
pub mod codec;
mod counters;
pub mod diff;
mod dispatch_id;
pub mod elements;
mod engine;
pub mod layout;
pub mod optional_chains;
pub mod projection;
mod text;

pub use counters::read_kernel_counters;
pub(crate) use engine::removed_ports;
pub use engine::{Engine, EngineError, KernelTable, TableOutcome, TableOutcomes, remove};
pub(crate) use projection::is_needed;
pub use text::print_ruleset;
