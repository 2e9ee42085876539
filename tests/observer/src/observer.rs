//! The observer of one cluster: starts with it, and checks at the end of each scene and of the test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::MacAddr;
use kube::Client;
use lab::{Cluster, Host, wait_until};
use tokio::task::JoinSet;

use crate::breach::{FoundBreaches, Invariant, Subject, render};
use crate::checks::Checks;
use crate::checks::idle::{count_writes, describe_writes};
use crate::checks::kernel::{KernelState, find_gone_addresses, find_leftovers};
use crate::checks::lasting::Finding;
use crate::checks::wire::Lan;
use crate::fault::Fault;
use crate::gather::nodes::LogFollower;
use crate::gather::{Shared, kernel_state, lan, nodes, watch};

/// The nodes' link to the LAN.
const LINK: &str = "eth0";

/// A deleted Service must be gone after this time.
const GONE_LIMIT: Duration = Duration::from_secs(5);

/// The cluster is at rest if there is no write for this time.
const REST: Duration = Duration::from_millis(1200);

/// Pause between two comparisons at the end of a scene.
const PAUSE: Duration = Duration::from_millis(50);

/// Limit of waiting for rest. Some statuses are written at most once in ten seconds.
const REST_LIMIT: Duration = Duration::from_secs(20);

/// Observes a cluster until it is dropped.
pub struct Observer {
    shared: Arc<Shared>,
    client: Client,
    nodes: Vec<Host>,
    follower: Arc<LogFollower>,
    /// The state of each node's kernel before Landfall's installation.
    before: BTreeMap<String, KernelState>,
    threads: Vec<JoinHandle<()>>,
    _watches: JoinSet<()>,
}

impl Observer {
    /// Starts to observe a cluster on which Landfall is not installed yet.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let hosts = cluster.hosts()?;
        let nodes: Vec<Host> = hosts.iter().filter(|host| host.pods().is_some()).cloned().collect();
        let macs = nodes.iter().filter_map(|node| Some((node.mac()?.parse::<MacAddr>().ok()?, node.name().to_owned())));
        let own_addresses = hosts.iter().flat_map(|host| [host.ipv4().into(), host.ipv6().into()]).collect();
        let lan = Lan { nodes: macs.collect(), own_addresses, link: LINK };
        let shared = Arc::new(Shared::new(Checks::new(lan)));
        let follower = Arc::new(LogFollower::new(nodes.clone()));
        let before = nodes.iter().map(|node| Ok((node.name().to_owned(), kernel_state::read(node)?)));
        let before = before.collect::<Result<_>>()?;
        let threads = vec![
            lan::start(Arc::clone(&shared), &cluster.switch().netns()?)?,
            nodes::start(Arc::clone(&shared), Arc::clone(&follower))?,
        ];
        let client = cluster.client();
        let _watches = watch::start(&shared, &client);
        Ok(Self { shared, client, nodes, follower, before, threads, _watches })
    }

    /// Permits the breaches of a fault, from now to the end of the scene.
    pub fn declare(&self, fault: Fault) {
        let now = self.shared.now();
        self.shared.checks().declare(now, fault);
    }

    /// From now on, a node also has this MAC address: its network card was replaced.
    pub fn add_mac(&self, node: &str, mac: MacAddr) {
        self.shared.checks().add_mac(node, mac);
    }

    /// Fails with [`FoundBreaches`] if an invariant was breached so far. Waits until all sources agree, and the kernels
    /// have forgotten deleted Services.
    pub async fn check_scene(&self) -> Result<()> {
        watch::list_all(&self.shared, &self.client).await;
        while !self.compare() {
            tokio::time::sleep(PAUSE).await;
        }
        self.follower.follow(&self.shared);
        self.follower.read_usage(&self.shared);
        self.check_kernels().await?;
        self.fail_if_breached()
    }

    /// Ends the declared faults of a scene.
    pub fn end_faults(&self) {
        self.shared.checks().end_faults();
    }

    /// Waits until the cluster is at rest. Fails if an invariant was breached, if the cluster does not come to rest, or
    /// if a removed Landfall left something behind.
    pub async fn check_end(&self) -> Result<()> {
        self.wait_for_rest().await?;
        self.check_uninstalled()?;
        self.check_scene().await?;
        let [answers, announcements] = self.shared.checks().frame_counts();
        let seconds = self.shared.now().as_secs();
        eprintln!("observer: no breach in {seconds} s; {answers} answers and {announcements} announcements on the LAN");
        Ok(())
    }

    /// The breaches since the last check, one per line.
    fn take_report(&self) -> String {
        render(&self.shared.checks().take_breaches())
    }

    fn fail_if_breached(&self) -> Result<()> {
        ensure!(!self.threads.iter().any(JoinHandle::is_finished), "a thread of the observer has ended");
        let breaches = self.shared.checks().take_breaches();
        if breaches.is_empty() { Ok(()) } else { Err(FoundBreaches(breaches).into()) }
    }

    fn compare(&self) -> bool {
        let now = self.shared.now();
        self.shared.checks().compare(now)
    }

    fn report(&self, found: Vec<Finding>) {
        let now = self.shared.now();
        self.shared.checks().report(now, found);
    }

    fn powered_nodes(&self) -> impl Iterator<Item = &Host> {
        self.nodes.iter().filter(|node| node.is_up())
    }

    /// Waits until the kernels know no address without a record.
    async fn check_kernels(&self) -> Result<()> {
        let found = wait_until(GONE_LIMIT, "the kernels to forget deleted addresses", async || {
            let found = self.find_kernel_leftovers()?;
            if found.is_empty() { Ok(()) } else { bail!("{found:?}") }
        });
        if found.await.is_err() {
            let found = self.find_kernel_leftovers()?;
            self.report(found);
        }
        Ok(())
    }

    fn find_kernel_leftovers(&self) -> Result<Vec<Finding>> {
        let (gone, used) = self.shared.checks().gone_and_used_addresses();
        let mut found = Vec::new();
        for node in self.powered_nodes() {
            let subject = || Subject::Node(node.name().to_owned());
            if !gone.is_empty() {
                let dump = kernel_state::dump_addresses(node)?;
                let left = find_gone_addresses(&dump, &gone, &used).into_iter();
                let text = |(address, line)| format!("has {address} in its kernel, without a LoadBalancerIP: {line}");
                found.extend(left.map(|left| (Invariant::I13, subject(), text(left))));
            }
            let programmed = kernel_state::list_programmed(node)?;
            let without_record = programmed.difference(&used).filter(|address| !gone.contains(address));
            let text = |address| format!("forwards {address}, which has no LoadBalancerIP");
            found.extend(without_record.map(|address| (Invariant::I5, subject(), text(address))));
        }
        Ok(found)
    }

    /// Compares the kernels with their state before the installation, if no process of Landfall is left.
    fn check_uninstalled(&self) -> Result<()> {
        let is_installed = self.nodes.iter().any(|node| !node.processes("landfall ").is_empty());
        if is_installed {
            return Ok(());
        }
        for node in self.powered_nodes() {
            let before = self.before.get(node.name()).context("invariant: each node has a first state")?;
            let left = find_leftovers(before, &kernel_state::read(node)?).into_iter();
            let finding = |line| (Invariant::I13, Subject::Node(node.name().to_owned()), format!("keeps {line:?}"));
            self.report(left.map(finding).collect());
        }
        Ok(())
    }

    /// Waits until Landfall writes nothing to the API server for a while.
    async fn wait_for_rest(&self) -> Result<()> {
        let deadline = self.shared.now() + REST_LIMIT;
        while let Some(writes) = self.writes_during(tokio::time::sleep(REST)).await? {
            if self.shared.now() > deadline {
                let text = format!("is not at rest after {REST_LIMIT:?}: {writes} in the last {REST:?}");
                self.report(vec![(Invariant::I14, Subject::Cluster, text)]);
                break;
            }
        }
        Ok(())
    }

    /// The writes to the API server while `action` runs, as a text; `None` without a write. Counts only writes to
    /// objects that no program except Landfall writes in an idle cluster.
    pub async fn writes_during(&self, action: impl Future<Output = ()>) -> Result<Option<String>> {
        let before = self.count_writes().await?;
        action.await;
        Ok(describe_writes(&before, &self.count_writes().await?))
    }

    async fn count_writes(&self) -> Result<BTreeMap<String, u64>> {
        let page = self.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await;
        Ok(count_writes(&page.context("read the metrics of the API server")?))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.shared.stop();
        // Breaches are left only if the test failed before its last check.
        let report = self.take_report();
        if !report.is_empty() {
            eprintln!("the observer found breaches of invariants:\n{report}");
        }
        for thread in std::mem::take(&mut self.threads) {
            // A panic of a thread is in the output already.
            let _ = thread.join();
        }
    }
}
