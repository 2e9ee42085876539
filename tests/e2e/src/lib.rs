//! End-to-end tests: a real cluster with Landfall, seen by its users and its LAN.
//!
//! | file | content |
//! |---|---|
//! | [`world`] | a cluster of the lab with Landfall installed as in the README, and objects for tests |
//! | [`scene`] | a part of a test that shares its cluster with others, with its own namespaces and addresses |
//! | [`scenes`] | plays scenes on one cluster: all, one, shuffled or repeatedly |
//! | [`api_proxy`] | a proxy between clients and the API server, which decides the fate of each request |
//! | [`faults`] | faults of hosts, of the LAN and of the Kubernetes API, which end by themselves |
//! | [`lan_client`] | a client on the LAN: requests over TCP and UDP, ARP |
//! | [`traffic`] | clients of addresses, with a record of every try, beside a control |
//! | [`rolling`] | rolling updates of a backend, with traffic |
//!
//! The tests are in `tests/`, one file or folder per topic, all in one binary. Each test starts a cluster of its own.
#![allow(missing_docs, reason = "only this repository uses this library")]

pub mod api_proxy;
pub mod faults;
pub mod lan_client;
pub mod rolling;
pub mod scene;
pub mod scenes;
pub mod traffic;
pub mod world;

pub use faults::host::{HostFault, HostileCommand};
pub use lan_client::{ConnectOutcome, LanClient};
pub use load::Transport;
pub use scene::Scene;
pub use scenes::Scenes;
pub use traffic::{Target, Traffic, TrafficPlan, TrafficRun};
pub use world::World;
