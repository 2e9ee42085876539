//! The servers of the control: requests to them take the same way over the LAN, and Landfall does not forward them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::PostParams;
use lab::wait_until;
use load::{Clock, Prober, Record, Server, Transport, TryPlan};
use serde_json::json;

use crate::world::{SOON, World, requested_cpu};

/// Time between two requests of the control to one pod.
const POD_INTERVAL: Duration = Duration::from_millis(40);

/// The same to the control plane. It is shorter, because only these requests show how late the machine is there.
const CONTROL_PLANE_INTERVAL: Duration = Duration::from_millis(10);

/// The port of the control.
const PORT: u16 = 4747;

/// The name of the control's pods.
const PODS: &str = "control";

/// Their namespace. Scenes remove all pods of the default one.
const NAMESPACE: &str = "kube-system";

/// Where the servers of the control run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlServers {
    /// In a pod on each node, with the network of the node. Only a pod is as late as the pods of a Service: on a busy
    /// machine the control groups of pods wait for hundreds of milliseconds, while the threads of this test run in
    /// time. All nodes must stay reachable.
    NodePods,
    /// In a thread of this test, with the network of the control plane: faults of nodes do not concern it.
    ControlPlane,
}

/// The tries of the control.
pub(super) struct RunningControl {
    probers: Vec<Prober>,
    /// It ends after the tries.
    _server: Option<Server>,
}

impl RunningControl {
    /// Starts to send requests to the servers. The pods are created if they do not exist yet.
    pub(super) async fn start(servers: ControlServers, world: &World, clock: Clock, with_ipv6: bool) -> Result<Self> {
        let client = world.cluster.client_host("c1").netns()?;
        let (addresses, interval, _server) = match servers {
            ControlServers::NodePods => (start_pods(world).await?, POD_INTERVAL, None),
            ControlServers::ControlPlane => {
                let host = world.cluster.control_plane();
                let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
                let addresses = [IpAddr::from(host.ipv4()), host.ipv6().into()];
                let addresses = addresses.into_iter().filter(|address| with_ipv6 || address.is_ipv4()).collect();
                let server = Server::start(any, "control", Some(&host.netns()?))?;
                (addresses, CONTROL_PLANE_INTERVAL, Some(server))
            }
        };
        let start = |address| {
            let plan = TryPlan::new(SocketAddr::new(address, PORT), Transport::Tcp);
            Prober::start(TryPlan { interval, ..plan }, Some(&client), clock)
        };
        Ok(Self { probers: addresses.into_iter().map(start).collect(), _server })
    }

    /// The tries since the last call.
    pub(super) fn take_record(&self) -> Option<Record> {
        join(self.probers.iter().map(Prober::take_record))
    }

    /// Stops, and returns the tries since the last record.
    pub(super) fn stop(self) -> Result<Option<Record>> {
        let records: Vec<Record> = self.probers.into_iter().map(Prober::stop).collect::<Result<_>>()?;
        Ok(join(records))
    }
}

/// All tries of the control as one record.
fn join(records: impl IntoIterator<Item = Record>) -> Option<Record> {
    records.into_iter().reduce(|mut all, one| {
        all.tries.extend(one.tries);
        all
    })
}

/// Creates the pods of the control. A test does this before its own pods, so that all start at the same time.
pub async fn create_pods(world: &World) -> Result<()> {
    let pod = json!({
        "hostNetwork": true,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "containers": [{
            "name": "whoami", "image": "whoami:dev", "args": [PORT.to_string()], "resources": requested_cpu(),
        }],
    });
    let daemon_set = json!({
        "metadata": {"name": PODS},
        "spec": {
            "selector": {"matchLabels": {"app": PODS}},
            "template": {"metadata": {"labels": {"app": PODS}}, "spec": pod},
        },
    });
    let api: Api<DaemonSet> = Api::namespaced(world.client.clone(), NAMESPACE);
    if api.get_opt(PODS).await?.is_none() {
        let daemon_set = serde_json::from_value(daemon_set)?;
        api.create(&PostParams::default(), &daemon_set).await.context("create the control")?;
    }
    Ok(())
}

/// Creates the pods, waits until all answer, and returns their addresses.
async fn start_pods(world: &World) -> Result<Vec<IpAddr>> {
    create_pods(world).await?;
    let nodes = (1..=world.cluster.topology().nodes).map(|number| world.cluster.node(&format!("n{number}")));
    let addresses: Vec<IpAddr> = nodes.map(|node| node.ipv4().into()).collect();
    let client = world.cluster.client_host("c1");
    wait_until(SOON, "the control to answer", async || {
        for address in &addresses {
            let answer = client.query_tcp(SocketAddr::new(*address, PORT), SOON);
            ensure!(answer.is_ok(), "{address}: {answer:?}");
        }
        Ok(())
    })
    .await?;
    Ok(addresses)
}
