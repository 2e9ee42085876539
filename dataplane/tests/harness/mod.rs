//! A node of the small network that runs the dataplane, and the one Service of most tests.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use crds::Endpoint;
use crds::Protocol::{Tcp, Udp};
use dataplane::nft::Engine;
use dataplane::rules::plan_ruleset;
use dataplane::snapshot::LinkName;
use dataplane::{Counters, Forwarding, Snapshot};
use netns::Namespace;
use tokio::sync::watch;

use crate::sample::{self, Described, NODE, service};
use crate::world::{Answer, Net, Pod, World};

/// A Service at port 80 of the lb_ip, TCP and UDP, with these endpoints.
pub fn web(net: Net, endpoints: impl IntoIterator<Item = Endpoint>) -> Described {
    let ports = [("tcp", Tcp, 8080), ("udp", Udp, 8080)];
    service("web").holds(net.lb_ip).port("tcp", Tcp, 80).port("udp", Udp, 80).slice(&ports, endpoints)
}

/// The endpoint of this pod, ready.
pub fn endpoint_of(net: Net, pod: &Pod) -> Endpoint {
    sample::ready(&net.pod_ip(pod), if pod.node == 1 { NODE } else { "n2" })
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
    engine.apply(&Arc::new(plan_ruleset(&with_lan(snapshot.clone())))).expect("apply");
}

/// The same snapshot, with the links of the node's clients.
pub fn with_lan(snapshot: Snapshot) -> Snapshot {
    let links = ["eth0", "eth1"].map(|name| LinkName::new(name).expect("a name"));
    Snapshot { lan_links: Arc::new(links.into()), ..snapshot }
}

/// All answers to 40 requests. With two endpoints, either is missed once in 2^39 runs.
pub fn all(mut ask: impl FnMut() -> Answer) -> BTreeSet<Answer> {
    (0..40).map(|_| ask()).collect()
}

/// `dataplane::run` on a thread of its own.
pub struct Agent {
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    forwarding: watch::Receiver<Forwarding>,
    counters: watch::Receiver<Counters>,
    thread: JoinHandle<()>,
}

impl Agent {
    /// An agent on this node, without a snapshot.
    pub fn start(node: &Namespace) -> Self {
        let (snapshots, receiver) = watch::channel(None);
        let (sender, forwarding) = watch::channel(Forwarding::default());
        let (counting, counters) = watch::channel(Counters::default());
        let node = node.clone();
        let thread = std::thread::spawn(move || {
            node.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(dataplane::run(receiver, sender, counting)).expect("run");
            });
        });
        Self { snapshots, forwarding, counters, thread }
    }

    /// Sends a snapshot.
    pub fn send(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }

    /// The published state of the kernel.
    pub fn forwarding(&self) -> Forwarding {
        self.forwarding.borrow().clone()
    }

    /// Its counters.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Drops the senders, as at the end of the process, and waits for the thread.
    pub fn end(self) {
        drop(self.snapshots);
        self.thread.join().expect("no panic");
    }
}
