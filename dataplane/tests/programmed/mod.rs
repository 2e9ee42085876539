//! A node of the small network that does what a snapshot says, and the one Service that most tests ask.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeSet;
use std::sync::Arc;

use crds::Endpoint;
use crds::Protocol::{Tcp, Udp};
use dataplane::Snapshot;
use dataplane::engine::Engine;
use dataplane::ruleset::ruleset;
use netns::Namespace;

use crate::sample::{self, Described, NODE, service};
use crate::world::{Answer, Net, Pod, V4, V6, World};

/// A Service at port 80 of the lb_ip, TCP and UDP, with these endpoints.
pub fn web(net: Net, endpoints: impl IntoIterator<Item = Endpoint>) -> Described {
    let ports = [("tcp", Tcp, 8080), ("udp", Udp, 8080)];
    service("web").holds(net.lb_ip).port("tcp", Tcp, 80).port("udp", Udp, 80).slice(&ports, endpoints)
}

/// The endpoint that this pod is.
pub fn on(net: Net, pod: &Pod) -> Endpoint {
    sample::ready(&net.of(pod), if pod.node == 1 { NODE } else { "n2" })
}

/// An engine on the first node.
pub fn engine(world: &World) -> Engine {
    engine_on(&world.n1)
}

/// An engine on this host.
pub fn engine_on(host: &Namespace) -> Engine {
    host.run(|| Engine::open().expect("an engine"))
}

/// Programs the first node.
pub fn apply(engine: &mut Engine, snapshot: &Snapshot) {
    let pod_ranges = [V4, V6].map(|net| net.pods.parse().expect("a range")).to_vec();
    engine.apply(&Arc::new(ruleset(&Snapshot { pod_ranges, ..snapshot.clone() }))).expect("apply");
}

/// Everything that answers, asked often enough that each of two is missed once in 2^39 times.
pub fn all(mut ask: impl FnMut() -> Answer) -> BTreeSet<Answer> {
    (0..40).map(|_| ask()).collect()
}
