//! Announcing: who is alive on the wire, who owns which address, ARP and NDP.
//!
//! Every node runs one speaker. On each link where an lb_ip belongs, speakers say Hello to each other, and in it what they
//! claim; from that each of them decides by the same rules who owns which address, and the owner answers ARP and NDP for it.
//! Nothing of this asks the API server: it only says which addresses there are ([`Snapshot`]), and is told afterwards who
//! announces them ([`Announcements`]).
//!
//! ```text
//!  objects -> eligibility -> Snapshot --+            +--> Announcements, the dead, Neighbours, Counters
//!  the dataplane's acknowledgements ----+-> Machine -+
//!  links, frames, time -----------------+            +--> frames
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`run`](fn@run) | the wire loop on a thread of its own: this is what one starts |
//! | [`eligibility`], [`advertisement`] | which nodes may announce which address; what users say about that |
//! | [`snapshot`] | what the loop knows of the cluster |
//! | [`machine`], [`segment`] | the whole without sockets and clock; one link of it |
//! | [`ownership`], [`claims`] | who owns an address; what a node claims, and how others know |
//! | [`deaths`], [`neighbours`] | which nodes are dead, and which are on which link, for those who forward |
//! | [`liveness`], [`peer`], [`pace`] | whether a peer is alive on a link; what is known of it; how often we speak |
//! | [`hello`], [`datagram`] | the packets of speakers, and what they travel in |
//! | [`auth`], [`meeting`] | what packets are sealed with; who was heard and isn't believed yet |
//! | [`arp`], [`ndp`], [`announce`] | what to answer, over IPv4 and IPv6; when to announce unasked |
//! | [`strangers`] | who else uses an address, before it is announced and later |
//! | [`placement`], [`link_table`] | which link an address is announced on; which links there are |
//! | [`links`], [`socket`], [`groups`] | netlink; packet sockets; which groups the kernel tells that we listen to |
//! | [`waiting`], `urgency` | how the thread of the wire sleeps; what it asks of the scheduler |
//! | [`events`], [`takeovers`] | what there is to log and to count |
//!
//! Only [`run`](fn@run), [`links`], [`socket`], [`groups`], [`waiting`] and `urgency` touch anything. The rest is pure: time is an argument, and the tests
//! drive the same [`machine`] through a simulated network.

pub mod advertisement;
pub mod announce;
pub mod arp;
pub mod auth;
pub mod claims;
pub mod datagram;
pub mod deaths;
pub mod eligibility;
pub mod events;
mod greeting;
pub mod groups;
pub mod hash;
pub mod hello;
pub mod link_table;
pub mod links;
pub mod liveness;
pub mod machine;
pub mod meeting;
pub mod ndp;
pub mod neighbours;
pub mod ownership;
pub mod pace;
mod patience;
pub mod peer;
pub mod placement;
mod run;
pub mod segment;
pub mod snapshot;
pub mod socket;
pub mod strangers;
pub mod takeovers;
mod urgency;
pub mod waiting;

pub use auth::{Authentication, Keys};
pub use eligibility::Observed;
pub use events::Counters;
pub use machine::Config;
pub use neighbours::Neighbours;
pub use run::{Announcement, Announcements, Conflict, Conflicts, Error, Inputs, Outputs, run};
pub use snapshot::{Candidate, Candidates, Snapshot, Wanted};
