//! A whole cluster: its start, its parts, and its end.
//!
//! Touches everything that the other modules touch. The start runs independent steps in parallel:
//!
//! ```text
//!   switch ─┬─ cp plugged ── etcd, API server ────────── /readyz ─┬─ Node objects ── controllers, scheduler ─┬─ Ready
//!           └─ each node plugged ── boot, containerd, images ─────┴──────────────── kubelet, kube-proxy ─────┘
//! ```

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};

use crate::image::{Image, write_archive};
use crate::kubernetes::certificates::{Authority, kubeconfig_with_token};
use crate::kubernetes::control_plane::{self, ControlPlaneFiles};
use crate::kubernetes::{light_node, node};
use crate::machine::host::Host;
use crate::machine::network::{self, BRIDGE, SWITCH};
use crate::state::{self, ClusterDir, Lock, SavedCluster};
use crate::topology::{API_PORT, HostKind, Topology};
use crate::wait::extend_limit;

/// Limit of waiting for a Ready cluster. It takes 6 to 10 s on two idle cores, and longer if several start at once.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Captured bytes of each frame: headers and the start of the payload.
const SNAP_LENGTH: &str = "256";
/// Size of each of the two capture files, in millions of bytes.
const CAPTURE_SIZE: &str = "16";

/// A running cluster.
///
/// A cluster of [`Cluster::start`] lasts until [`Cluster::remove`]. Dropping it without `remove` means that a test has
/// failed (a panic, or an error returned by `?`): the drop first copies its logs to `$LANDFALL_EVIDENCE/NAME`, or to
/// `target/lab/failures/NAME` without that variable. If the process was killed, the next start of any cluster removes
/// this one.
pub struct Cluster {
    cluster_dir: ClusterDir,
    topology: Topology,
    client: kube::Client,
    files: ControlPlaneFiles,
    switch: Host,
    control_plane: Host,
    /// Present if dropping the value removes the cluster.
    lock: Option<Lock>,
}

/// Prints a finished step of a cluster's start.
pub type Progress = fn(&str);

impl Cluster {
    /// Starts a cluster and waits until it is Ready. It lasts as long as the value.
    ///
    /// Names are per machine, not per process: each test needs its own.
    pub async fn start(name: &str, topology: &Topology) -> Result<Self> {
        Self::start_with_owner(name, topology, Some(std::process::id()), |_| {}).await
    }

    /// Starts a cluster that outlives this process.
    pub async fn start_detached(name: &str, topology: &Topology, progress: Progress) -> Result<Self> {
        let mut cluster = Self::start_with_owner(name, topology, None, progress).await?;
        cluster.lock = None;
        Ok(cluster)
    }

    /// Opens the existing cluster of this name.
    pub async fn attach(name: &str) -> Result<Self> {
        let cluster_dir = ClusterDir::new(name)?;
        let saved = cluster_dir.read()?;
        Self::open(cluster_dir, saved.topology).await
    }

    async fn open(cluster_dir: ClusterDir, topology: Topology) -> Result<Self> {
        let switch = Host::new(&cluster_dir, None)?;
        let control_plane = Host::new(&cluster_dir, Some(topology.control_plane()))?;
        let files = ControlPlaneFiles::new(&control_plane.dir());
        let client = client(Kubeconfig::read_from(&files.kubeconfig)?).await?;
        Ok(Self { cluster_dir, topology, client, files, switch, control_plane, lock: None })
    }

    async fn start_with_owner(name: &str, topology: &Topology, owner: Option<u32>, progress: Progress) -> Result<Self> {
        topology.check()?;
        for binary in ["kubernetes", "pause", "whoami"] {
            control_plane::binary(binary)?;
        }
        let cluster_dir = ClusterDir::new(name)?;
        state::sweep()?;
        let lock = Lock::take(&cluster_dir)?;
        cluster_dir.remove().context("remove an earlier cluster of this name")?;
        match Self::start_in(&cluster_dir, topology, owner, progress).await {
            // Only a complete cluster removes itself when it is dropped.
            Ok(mut cluster) => {
                cluster.lock = Some(lock);
                Ok(cluster)
            }
            Err(error) => {
                let error = match keep_evidence(&cluster_dir, topology, name) {
                    Ok(dir) => {
                        error.context(format!("cluster {name:?} did not start; its logs are in {}", dir.display()))
                    }
                    Err(_) => error.context(format!("cluster {name:?} did not start")),
                };
                cluster_dir.remove()?;
                Err(error)
            }
        }
    }

    async fn start_in(
        cluster_dir: &ClusterDir,
        topology: &Topology,
        owner: Option<u32>,
        progress: Progress,
    ) -> Result<Self> {
        cluster_dir.create()?;
        let (listener, api_port) = control_plane::listen()?;
        let authority = Authority::new()?;
        let cp = Host::new(cluster_dir, Some(topology.control_plane()))?;
        let files = control_plane::write_files(&cp, topology, &authority, api_port)?;
        let switch = network::create_switch(&cluster_dir.name)?;
        network::create_fault_table(&switch)?;

        let specs = topology.hosts();
        network::plug(&cluster_dir.name, &switch, &specs[0], &specs)?;
        control_plane::start_api(&cp, &files)?;
        control_plane::start_forwarder(&cp, listener)?;
        progress("control plane started");

        // The nodes boot while the API server starts.
        let nodes = {
            let (cluster_dir, topology, switch) = (cluster_dir.clone(), topology.clone(), switch.clone());
            thread::spawn(move || build_hosts(&cluster_dir, &topology, &switch, &authority))
        };
        let cluster = Self::open(cluster_dir.clone(), topology.clone()).await?;
        let ready = cluster.wait_for_api(extend_limit(READY_TIMEOUT)).await;
        if ready.is_ok() {
            progress("API server ready");
        }
        tokio::task::spawn_blocking(move || nodes.join())
            .await?
            .map_err(|_| anyhow!("building the nodes panicked"))?
            .context("build the nodes")?;
        ready?;
        progress("hosts booted");

        control_plane::start_controllers(&cp, topology, &cluster.files)?;
        light_node::apply_nodes(&cluster.client, &specs).await?;
        for spec in specs.iter().filter(|spec| spec.kind == HostKind::Node) {
            let host = Host::new(cluster_dir, Some(spec.clone()))?;
            node::start_kubelet(&host, spec)?;
            node::start_kube_proxy(&host, topology)?;
        }
        progress("kubelets started");
        cluster.wait_ready(extend_limit(READY_TIMEOUT)).await?;
        if topology.capture {
            cluster.start_capture()?;
        }
        cluster_dir.write(&SavedCluster { topology: topology.clone(), api_port, owner })?;
        Ok(cluster)
    }

    pub fn name(&self) -> &str {
        &self.cluster_dir.name
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn cluster_dir(&self) -> &ClusterDir {
        &self.cluster_dir
    }

    /// An administrator's API client, through 127.0.0.1.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// An administrator's kubeconfig for the root namespace (127.0.0.1).
    pub fn kubeconfig(&self) -> &Path {
        &self.files.kubeconfig
    }

    /// An administrator's kubeconfig for hosts on the LAN. Nodes with a kubelet don't see this path; others do.
    pub fn lan_kubeconfig(&self) -> &Path {
        &self.files.lan_kubeconfig
    }

    /// The API server's URL for hosts on the LAN and for pods of a cluster without kube-proxy.
    pub fn lan_url(&self) -> String {
        control_plane::lan_url(&self.topology)
    }

    /// The API server's LAN address.
    pub fn api_address(&self) -> (Ipv4Addr, u16) {
        (self.control_plane.ipv4(), API_PORT)
    }

    /// The files of the API server's certificate, which is valid at its LAN address, and of the key.
    pub fn api_identity(&self) -> [PathBuf; 2] {
        self.files.api_identity()
    }

    /// Writes a kubeconfig of a ServiceAccount for the API server's LAN address, and returns its path. It gives an
    /// agent that runs as a plain process (on a light node, for example) the rights it has in a pod. The token is valid
    /// for a day.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.request_token(namespace, name, None).await?;
        let text = kubeconfig_with_token(&self.lan_url(), &fs::read_to_string(&self.files.authority)?, &token)?;
        let path = self.control_plane.dir().join(format!("{namespace}.{name}.kubeconfig"));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// A client with a token of a ServiceAccount. With a pod, it is a token as the kubelet requests it for this pod: it
    /// contains the name of the node.
    pub async fn service_account_client(&self, namespace: &str, name: &str, pod: Option<&Pod>) -> Result<kube::Client> {
        let token = self.request_token(namespace, name, pod).await?;
        let mut kubeconfig = Kubeconfig::read_from(&self.files.kubeconfig)?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
        }
        client(kubeconfig).await
    }

    /// A token that is valid for a day.
    async fn request_token(&self, namespace: &str, name: &str, pod: Option<&Pod>) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let bound_object_ref = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        });
        let spec =
            TokenRequestSpec { bound_object_ref, expiration_seconds: Some(86_400), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let token = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("request a token of ServiceAccount {namespace}/{name}"))?;
        token.status.and_then(|status| status.token).context("the API server returned no token")
    }

    /// Any host: `n1`, `l1`, `c1`, `cp`, `switch`. The error lists the existing hosts.
    pub fn host(&self, name: &str) -> Result<Host> {
        match name {
            SWITCH => Ok(self.switch.clone()),
            name => Host::new(&self.cluster_dir, Some(self.topology.host(name)?)),
        }
    }

    /// All hosts except the switch.
    pub fn hosts(&self) -> Result<Vec<Host>> {
        self.topology.hosts().into_iter().map(|spec| Host::new(&self.cluster_dir, Some(spec))).collect()
    }

    /// The node of this name.
    ///
    /// # Panics
    /// If no such host exists: the test is wrong.
    pub fn node(&self, name: &str) -> Host {
        self.expect_host(name, |kind| matches!(kind, HostKind::Node | HostKind::LightNode))
    }

    /// The client of this name.
    ///
    /// # Panics
    /// If no such host exists: the test is wrong.
    pub fn client_host(&self, name: &str) -> Host {
        self.expect_host(name, |kind| kind == HostKind::Client)
    }

    fn expect_host(&self, name: &str, is_expected: impl Fn(HostKind) -> bool) -> Host {
        match self.host(name) {
            Ok(host) if host.spec().is_some_and(|spec| is_expected(spec.kind)) => host,
            Ok(_) => panic!("{name} is a host of cluster {:?}, but of another kind", self.name()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The switch: its bridge is `br0`, and each port has the name of its host.
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// The host of etcd, API server, controller manager and scheduler.
    pub fn control_plane(&self) -> &Host {
        &self.control_plane
    }

    /// Applies the lab's part of a Node object (the pod CIDRs) again, after the object was deleted.
    pub async fn apply_node(&self, name: &str) -> Result<()> {
        light_node::apply_nodes(&self.client, &[self.topology.host(name)?]).await
    }

    /// A kubectl command for this cluster.
    pub fn kubectl_command(&self) -> Result<Command> {
        control_plane::kubectl(&self.files)
    }

    /// Runs kubectl with these arguments and returns its standard output. The error contains all output.
    pub fn kubectl<A: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Result<String> {
        let output = self.kubectl_command()?.args(words).stdin(Stdio::null()).output().context("run kubectl")?;
        check_output(output)
    }

    /// Applies manifests (YAML or JSON), like `kubectl apply -f -`. Returns its standard output.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        use std::io::Write;
        let mut kubectl = self.kubectl_command()?;
        kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("run kubectl")?;
        child.stdin.take().context("invariant: stdin is piped")?.write_all(manifests.as_bytes())?;
        check_output(child.wait_with_output()?)
    }

    /// Loads the images of a docker-archive tar on every node that is powered on.
    pub fn load_image(&self, tar: &Path) -> Result<()> {
        let nodes =
            self.hosts()?.into_iter().filter(|host| host.spec().is_some_and(|spec| spec.kind == HostKind::Node));
        for_each_in_parallel(nodes.filter(Host::is_up).collect(), |host| node::load_image(host, tar))
    }

    /// Builds an image of a static binary and loads it on every node that is powered on.
    pub fn load_binary(&self, binary: &Path, name: &str) -> Result<()> {
        let file_name = binary.file_name().context("the binary has no file name")?.to_string_lossy();
        let tar = self.cluster_dir.path.join(format!("image-{file_name}.tar"));
        write_archive(&[Image { binary, name }], &tar)?;
        self.load_image(&tar)
    }

    fn start_capture(&self) -> Result<()> {
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.args(["-i", BRIDGE, "-n", "-U", "-Z", "root", "-s", SNAP_LENGTH, "-C", CAPTURE_SIZE, "-W", "2", "-w"]);
        tcpdump.arg(self.switch.dir().join("capture.pcap"));
        tcpdump.arg(format!("not port {API_PORT} and not port 10250"));
        self.switch.spawn("capture", &tcpdump)?;
        Ok(())
    }

    /// Stops and removes the cluster, at the end of a test that passed.
    pub fn remove(mut self) -> Result<()> {
        let _lock = self.lock.take();
        self.cluster_dir.remove()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        match keep_evidence(&self.cluster_dir, &self.topology, &self.cluster_dir.name) {
            Ok(dir) => eprintln!("cluster {:?}: logs and frames are in {}", self.cluster_dir.name, dir.display()),
            Err(error) => eprintln!("cluster {:?}: logs are lost: {error:#}", self.cluster_dir.name),
        }
        if let Err(error) = self.cluster_dir.remove() {
            eprintln!("cluster {:?} was not removed: {error:#}", self.cluster_dir.name);
        }
    }
}

/// Stops and removes the cluster of this name, unless a running process holds it. Returns whether the cluster existed.
pub fn remove(name: &str) -> Result<bool> {
    let cluster_dir = ClusterDir::new(name)?;
    let _lock = Lock::take(&cluster_dir)?;
    let existed = state::names().iter().any(|other| other == name);
    cluster_dir.remove()?;
    Ok(existed)
}

/// The names of all clusters, complete or not, sorted.
pub fn names() -> Vec<String> {
    state::names()
}

fn build_hosts(
    cluster_dir: &ClusterDir,
    topology: &Topology,
    switch: &netns::Namespace,
    authority: &Authority,
) -> Result<()> {
    let archive = cluster_dir.path.join("image-lab.tar");
    let (pause, whoami) = (control_plane::binary("pause")?, control_plane::binary("whoami")?);
    write_archive(
        &[Image { binary: &pause, name: "pause:dev" }, Image { binary: &whoami, name: "whoami:dev" }],
        &archive,
    )?;
    let specs = topology.hosts();
    let images: Vec<&Path> =
        std::iter::once(archive.as_path()).chain(topology.images.iter().map(PathBuf::as_path)).collect();
    for_each_in_parallel(specs[1..].to_vec(), |spec| {
        let host = Host::new(cluster_dir, Some(spec.clone()))?;
        if spec.kind == HostKind::Node {
            cluster_dir.create_disk(&spec.name)?;
        }
        fs::create_dir_all(host.logs())?;
        network::plug(&cluster_dir.name, switch, spec, &specs)?;
        if spec.kind == HostKind::Node {
            node::write_files(&host, spec, topology, authority)?;
            node::boot(&host)?;
            images.iter().try_for_each(|tar| node::load_image(&host, tar))?;
        }
        Ok(())
    })
}

/// Calls `work` for each item, a few in parallel, because it mostly waits. Returns the first error.
fn for_each_in_parallel<T: Send + Sync>(items: Vec<T>, work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    /// More workers would only wait for the kernel's single lock for network configuration.
    const WORKERS: usize = 8;
    let next = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS.min(items.len()))
            .map(|_| {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                        work(item)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let results: Vec<Result<()>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect()
    })
}

async fn client(kubeconfig: Kubeconfig) -> Result<kube::Client> {
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(kube::Client::try_from(config)?)
}

fn check_output(output: std::process::Output) -> Result<String> {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "kubectl: {}\n{out}{error}", output.status);
    Ok(out.into_owned())
}

/// Variable with the folder for logs and objects of failed tests' clusters.
const EVIDENCE: &str = "LANDFALL_EVIDENCE";

/// Makes the folder for evidence of tests, and returns its path.
pub fn evidence_folder() -> Result<PathBuf> {
    let folder = std::env::var_os(EVIDENCE)
        .map_or_else(|| control_plane::directory().join("failures"), |folder| PathBuf::from(&folder));
    fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Collects evidence into the folder of this name below [`evidence_folder`], in place of the evidence of an earlier
/// run. Returns the path.
fn keep_evidence(cluster_dir: &ClusterDir, topology: &Topology, name: &str) -> Result<PathBuf> {
    let dir = evidence_folder()?.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    crate::collect::collect(cluster_dir, topology, &dir)?;
    Ok(dir)
}

impl Cluster {
    /// Copies into a directory: logs of all daemons and pods, the API server's objects, the state of all kernels, and
    /// the last frames on the switch.
    pub fn collect(&self, dir: &Path) -> Result<()> {
        crate::collect::collect(&self.cluster_dir, &self.topology, dir)
    }

    /// Collects the same below [`evidence_folder`], for the failed `part` of a test. Returns the path.
    pub fn keep_evidence(&self, part: &str) -> Result<PathBuf> {
        keep_evidence(&self.cluster_dir, &self.topology, &format!("{}.{part}", self.cluster_dir.name))
    }

    /// Approximate time since the cluster was created.
    pub fn age(&self) -> Duration {
        let made = fs::metadata(&self.files.kubeconfig).and_then(|data| data.modified()).ok();
        made.and_then(|made| made.elapsed().ok()).unwrap_or_default()
    }
}
