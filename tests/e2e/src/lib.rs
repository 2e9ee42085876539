//! End-to-end scenarios: a real cluster with Landfall on it, and what its users and its LAN see.
//!
//! | room | what is in it |
//! |---|---|
//! | [`world`] | a cluster of the lab with Landfall installed as an operator would, and the objects that scenarios need |
//! | [`scene`] | steps of a scenario that share a cluster, each with namespaces and addresses of its own |
//! | [`lan_client`] | what a client on the LAN sees: who answers over TCP and UDP, and which MAC answers ARP |
//! | [`prober`] | somebody on the LAN who asks all the time, and what became of it |
//! | [`rolling`] | a backend that is updated node by node, while it is asked all the time |
//!
//! The scenarios are in `tests/`, one file or folder for a theme; each test brings up a cluster of its own, which goes with
//! it.

pub mod lan_client;
pub mod prober;
pub mod rolling;
pub mod scene;
pub mod world;

pub use lan_client::{Connect, Lan};
pub use prober::{Asking, Over};
pub use scene::{Scene, Scenes};
pub use world::World;

/// Prints to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
