//! The engine nft: a [`Ruleset`](crate::rules::Ruleset) as elements of three tables. `netdev landfall` re-sends frames
//! to other nodes; `ip landfall` and `ip6 landfall` translate packets for this one.
//!
//! The two IP tables have the same layout, and one transaction changes all three. In one table `inet landfall`, every
//! packet would pass checks of its family, and the table would still need each set twice. For frames one table is
//! enough, since frames of both families pass one hook.
//!
//! The layout is *few maps with many elements*. The cost of a packet, and of changing one Service, is the same with one
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
//!            nat postrouting, input (80): is the connection translated? then
//!                        └→ learn: remember[ lb_ip . proto . port ] → add the client and its endpoint to affinity
//!            nat postrouting (90): was the connection's destination one of addresses? then
//!                        └→ source: keep the client's address for an endpoint on this node, otherwise masquerade
//! ```
//!
//! # Example
//!
//! The Service `web` has the lb_ip 192.0.2.10, port 80/TCP and traffic policy Local. Its endpoints are 10.244.1.5:8080
//! on this node and 10.244.2.5:8080 on another. It has these elements, and the chains `pick-1` and `pick-2`:
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
//! 2. A pod of this node connects. Its link is not in `links`, so `inside` decides, and leads to `pick-2`. That chain
//!    selects one of the two endpoints.
//! 3. A SYN to 192.0.2.10:81 is in no map. `filter-prerouting` sends it to `unserved`, which drops it.
//!
//! # Rules
//!
//! - Only the first packet of a connection passes nat chains. Every packet passes one comparison of its connection
//!   state.
//! - nat at -110 runs before kube-proxy's nat at -100, so this table decides about an address that both tables have.
//!   The filter at -90 runs after both, so it does not refuse a packet that another proxy has translated.
//! - When a verdict that leads to a chain changes, the kernel walks all of the table. So `services` and `inside` have
//!   only ids, and the small map `ways` leads from an id to its chain. Between the two lookups, `meta priority` carries
//!   the id. The chain resets `meta priority`.
//! - A set with elements of each Service is created with room for its first elements ([`layout::Set::size`]). When it
//!   is full, a transaction of its own enlarges it, about once for every doubling.
//! - No packet mark is used, so the marks of other programs stay. `nat-postrouting` recognises a translated packet by
//!   the original destination of its connection.
//! - `inside` has only the ports whose id for this node and its pods differs from the id in `services`. These are ports
//!   of Services with the traffic policy Local, and of Services whose frames are spread.
//! - The keys of all elements of an lb_ip begin with the lb_ip. So elements of different lb_ips are independent, and a
//!   change costs only as much as the changed lb_ips.
//! - Source ranges are checked here, before kube-proxy gets the packet: the chain that would translate a packet drops
//!   it if its client is forbidden. So no change of rules opens a Service for a moment. Only packets of Services with
//!   ranges are looked up in `sources`. (The kernel copies a set of concatenated ranges, such as `sources`, at each
//!   change of the set. With 20,000 ranges, a changed range costs milliseconds. Changes of other sets do not.)
//! - Rules fill `affinity`, and its entries expire. The agent deletes entries of clients that may no longer use their
//!   endpoint (see [`crate::flows::affinity`]). A replaced table loses its entries.
//! - Packets are refused before routing, so a refusal needs neither forwarding nor a route to the lb_ip.
//! - The chain that decides about a packet counts it: in `begun` if it translates, in `denied`, `refusals` or `strays`
//!   if it drops or refuses. `traffic` counts every packet, in the chain `count` before any translation. Only this
//!   count has a cost, and it can be switched off. Elements of `traffic` and `begun` exist as long as their port, so a
//!   change of endpoints resets no count. A diff ignores counts. In the other counting sets, the first packet adds the
//!   element.
//! - Neighbour discovery for an lb_ip is never dropped here; the speaker answers it.
//!
//! `layout/netdev.rs` describes how `netdev landfall` spreads frames. The IP tables work without `netdev landfall`:
//! without it, or if a packet is in none of its maps, each node translates the packets that it receives.
//!
//! The engine needs Linux 5.10 or newer (for a reset from prerouting). It does not need the program `nft`.
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
