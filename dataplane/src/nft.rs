//! The engine nft: a [`Ruleset`](crate::rules::ruleset::Ruleset) as elements of three tables: `netdev landfall`, which hands frames to
//! other nodes, and `ip landfall` and `ip6 landfall`, which translate what is for this one.
//!
//! The latter are made alike; one transaction changes all. One table `inet landfall` for both would make every packet ask
//! of which family it is before each rule, and would need the same sets twice all the same. Frames of both families pass
//! one hook.
//!
//! The shape is *few maps with many elements*: what the kernel does for a packet, and what it costs to change one
//! Service, is the same with one Service as with 30,000. There is never a chain or a map of a single Service.
//!
//! ```text
//!            nat prerouting, output (-110)              filter prerouting, output (-90)
//!                        │                                           │
//!   inside ──────────────┤ lb_ip . proto . port → way → pick-N       │ lb_ip in addresses? then nothing has
//!   services ────────────┤ lb_ip . proto . port → way → pick-N       │ translated it, so it is unserved:
//!   addresses, ping ─────┘ → this node answers                       └→ unserved: in refused → reset, else drop
//!                        │
//!        pick-N: endpoints[ lb_ip . proto . port . random below N ] → destination
//!        restricted-pick-N: the same, for clients whose lb_ip . proto . port . source is in sources
//!                        │
//!        sticky-T-pick-N: affinity[ source . lb_ip . proto . port ] → destination, or else the same
//!                        │
//!            nat postrouting (90), input: was the connection's destination one of addresses? then
//!                        ├→ learn: remember[ lb_ip . proto . port ] → put the client and its endpoint into affinity
//!                        └→ source: keep the client's address for an endpoint on this node, else masquerade
//! ```
//!
//! * Of a connection only the first packet passes the nat chains; every packet passes one lookup in `addresses`.
//! * nat at -110 is before kube-proxy's -100, so where both know an address, this table decides. The filter is behind
//!   both, so a packet that another proxy has translated isn't ours to refuse.
//! * Only small maps have verdicts that lead to chains: when such a verdict changes, the kernel looks through all of a table.
//!   So what `services` says stands for a way, and `ways` leads from there to its chain. In between the packet carries it as
//!   its class in queues (`meta priority`), which the chain takes back; only the first packet of a connection comes by.
//! * Sets that hold something of each Service are made for as many elements as come at once ([`layout::Set::size`]), and made
//!   larger in a transaction of its own when more are to come: that is once for every doubling.
//! * No packet mark is used: everybody's marks stay theirs. What was translated here is recognised in postrouting by
//!   the destination that the connection had.
//! * `inside` holds only what differs from `services`: a Service with the traffic policy Local, seen by this node and
//!   its pods.
//! * All keys begin with the lb_ip, so the elements of different lb_ips have nothing to do with each other, and a
//!   change costs what it changes.
//! * Who may use a Service is decided here, before kube-proxy gets to see the packet: a client that may not is dropped
//!   by the very chain that would translate, so that no change of rules opens a Service for a moment. Only where a
//!   Service names ranges does anybody look into `sources`. (That set's kind copies itself for each change: with 20,000
//!   ranges, one that changes costs milliseconds. Changes of anything else don't.)
//! * `affinity` is filled by the rules, and emptied by time; the agent takes out what leads nowhere any more (see
//!   [`crate::flows::affinity`]). A table that has to be replaced loses it.
//! * Refusing happens before routing: it works whether or not the node forwards and knows a route to the lb_ip.
//! * What comes is counted where it is decided: in `begun` by the chain that would translate, in `denied`, `refusals` and
//!   `strays` by those that drop and refuse. In `traffic` each packet is counted, by a chain `count` of its own before any
//!   translation; that is the only price, and can be switched off. Elements of `traffic` and `begun` stay as long as a port is
//!   there, so that changes of endpoints reset nothing; a diff looks at no counter. The others come with the first packet.
//! * What neighbours say to each other about an lb_ip (NDP) is never dropped here; it is the speaker's business.
//!
//! How frames are spread is in [`layout`]'s `link`. That table is a help to the others and never in their way: without
//! it, or where a packet is for none of its maps, each node translates what it gets.
//!
//! Needs Linux 5.10 or newer (a reset from prerouting), and nothing of the `nft` program.
//!
//! | room | what is in it |
//! |---|---|
//! | [`engine`] | makes the kernel's tables what a ruleset says (shell) |
//! | [`elements`] | what the maps hold: ruleset → elements (pure) |
//! | [`diff`] | what to change (pure) |
//! | [`dispatch_id`] | what stands for a way (pure) |
//! | [`layout`] | what never changes: sets, chains, rules (pure) |
//! | [`optional_chains`] | chains at hooks that are there only while somebody wants what they do (pure) |
//! | [`codec`] | the messages that say so (pure) |
//! | [`text`](mod@text) | the tables as text, for people (pure) |

pub mod codec;
pub mod diff;
pub mod dispatch_id;
pub mod elements;
pub mod engine;
pub mod layout;
pub mod optional_chains;
pub mod text;
