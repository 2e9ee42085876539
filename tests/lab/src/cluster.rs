//! A whole cluster: how it comes up, what one can ask of it, how it goes.
//!
//! Touches everything the other modules touch; see there. Coming up is one path, with what can run at the same time
//! running at the same time:
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
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::certificates::{Authority, kubeconfig_with_token};
use crate::control_plane::{self, Files};
use crate::host::Host;
use crate::image::{Image, write_archive};
use crate::network::{self, BRIDGE, SWITCH};
use crate::state::{self, Lock, Place, Record};
use crate::topology::{API_PORT, Kind, Topology};
use crate::{faults, light_node, node};

/// A cluster is Ready in 6 to 10 s on two idle cores; on busy ones several may come up at once.
const READY: Duration = Duration::from_secs(120);
/// A captured frame's first bytes: headers, and a line of payload.
const SNAP_LENGTH: &str = "256";
/// Two files of this many million bytes.
const CAPTURE_SIZE: &str = "16";

/// A running cluster.
///
/// One made by [`Cluster::up`] lasts until [`Cluster::down`]. When it is dropped without, a test has failed (a panic, or
/// an error returned by `?`): then its logs are kept in `$LANDFALL_EVIDENCE/NAME` first, or in `target/lab/failures/NAME`
/// without that variable. If the process is killed instead, the next `up` of any name removes the cluster.
pub struct Cluster {
    place: Place,
    topology: Topology,
    client: kube::Client,
    files: Files,
    switch: Host,
    control_plane: Host,
    /// Whoever holds it ends it.
    lock: Option<Lock>,
}

/// Tells how far the making of a cluster is.
pub type Progress = fn(&str);

impl Cluster {
    /// Makes a cluster and waits until it is Ready. It lives as long as the value.
    ///
    /// Names are per machine, not per process: give each test its own.
    pub async fn up(name: &str, topology: &Topology) -> Result<Self> {
        Self::make(name, topology, Some(std::process::id()), |_| {}).await
    }

    /// Makes a cluster that stays when the caller ends.
    pub async fn up_to_stay(name: &str, topology: &Topology, progress: Progress) -> Result<Self> {
        let mut cluster = Self::make(name, topology, None, progress).await?;
        cluster.lock = None;
        Ok(cluster)
    }

    /// The cluster of this name that somebody else made.
    pub async fn attach(name: &str) -> Result<Self> {
        let place = Place::new(name)?;
        let record = place.read()?;
        Self::open(place, record.topology).await
    }

    async fn open(place: Place, topology: Topology) -> Result<Self> {
        let switch = Host::new(&place, None)?;
        let control_plane = Host::new(&place, Some(topology.control_plane()))?;
        let files = Files::new(&control_plane.dir());
        let client = client(&files.kubeconfig).await?;
        Ok(Self { place, topology, client, files, switch, control_plane, lock: None })
    }

    async fn make(name: &str, topology: &Topology, owner: Option<u32>, progress: Progress) -> Result<Self> {
        topology.check()?;
        for binary in ["kubernetes", "pause", "whoami"] {
            control_plane::binary(binary)?;
        }
        let place = Place::new(name)?;
        state::sweep()?;
        let lock = Lock::take(&place)?;
        place.remove().context("remove what is left of an earlier cluster of this name")?;
        match Self::make_at(&place, topology, owner, progress).await {
            // Only what is complete removes itself.
            Ok(mut cluster) => {
                cluster.lock = Some(lock);
                Ok(cluster)
            }
            Err(error) => {
                let error = match keep_evidence(&place, topology, name) {
                    Ok(dir) => {
                        error.context(format!("cluster {name:?} did not come up; its logs are in {}", dir.display()))
                    }
                    Err(_) => error.context(format!("cluster {name:?} did not come up")),
                };
                place.remove()?;
                Err(error)
            }
        }
    }

    async fn make_at(place: &Place, topology: &Topology, owner: Option<u32>, progress: Progress) -> Result<Self> {
        place.make()?;
        let (listener, api_port) = control_plane::listen()?;
        let authority = Authority::new()?;
        let cp = Host::new(place, Some(topology.control_plane()))?;
        let files = control_plane::write_files(&cp, topology, &authority, api_port)?;
        let switch = network::make_switch(&place.name)?;
        faults::prepare(&switch)?;

        let seats = topology.seats();
        network::plug(&place.name, &switch, &seats[0], &seats)?;
        control_plane::start_api(&cp, &files)?;
        control_plane::start_forwarder(&cp, listener)?;
        progress("control plane started");

        // The nodes boot while the API server starts.
        let nodes = {
            let (place, topology, switch) = (place.clone(), topology.clone(), switch.clone());
            thread::spawn(move || build_hosts(&place, &topology, &switch, &authority))
        };
        let cluster = Self::open(place.clone(), topology.clone()).await?;
        let ready = cluster.wait_for_api(READY).await;
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
        light_node::make(&cluster.client, &seats).await?;
        for seat in seats.iter().filter(|seat| seat.kind == Kind::Node) {
            let host = Host::new(place, Some(seat.clone()))?;
            node::start_kubelet(&host, seat)?;
            node::start_kube_proxy(&host, topology)?;
        }
        progress("kubelets started");
        cluster.wait_ready(READY).await?;
        if topology.capture {
            cluster.start_capture()?;
        }
        place.write(&Record { topology: topology.clone(), api_port, owner })?;
        Ok(cluster)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Its shape.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// A client with all rights, through 127.0.0.1.
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

    /// Writes a kubeconfig for a ServiceAccount at the API server's LAN address, and returns its path: for an agent that
    /// runs as a plain process (on a light node, say) with the rights it has in a pod. The token holds for a day.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(86_400), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let token = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("ask for a token of ServiceAccount {namespace}/{name}"))?;
        let token = token.status.and_then(|status| status.token).context("the API server gave no token")?;
        let text = kubeconfig_with_token(&self.lan_url(), &fs::read_to_string(&self.files.authority)?, &token)?;
        let path = self.control_plane.dir().join(format!("{namespace}.{name}.kubeconfig"));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Any host: `n1`, `l1`, `c1`, `cp`, `switch`. The error lists those there are.
    pub fn host(&self, name: &str) -> Result<Host> {
        match name {
            SWITCH => Ok(self.switch.clone()),
            name => Host::new(&self.place, Some(self.topology.seat(name)?)),
        }
    }

    /// All hosts but the switch.
    pub fn hosts(&self) -> Result<Vec<Host>> {
        self.topology.seats().into_iter().map(|seat| Host::new(&self.place, Some(seat))).collect()
    }

    /// The node of this name.
    ///
    /// # Panics
    /// If there is none: a test that asks for it is wrong.
    pub fn node(&self, name: &str) -> Host {
        self.expect(name, |kind| matches!(kind, Kind::Node | Kind::LightNode))
    }

    /// The client of this name.
    ///
    /// # Panics
    /// If there is none: a test that asks for it is wrong.
    pub fn client_host(&self, name: &str) -> Host {
        self.expect(name, |kind| kind == Kind::Client)
    }

    fn expect(&self, name: &str, is: impl Fn(Kind) -> bool) -> Host {
        match self.host(name) {
            Ok(host) if host.seat().is_some_and(|seat| is(seat.kind)) => host,
            Ok(_) => panic!("{name} is a host of cluster {:?}, but of another kind", self.name()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The switch: its bridge is `br0`, its ports are called like the hosts.
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// The host of etcd, API server, controller manager and scheduler.
    pub fn control_plane(&self) -> &Host {
        &self.control_plane
    }

    /// A kubectl with this cluster for its target.
    pub fn kubectl_command(&self) -> Result<Command> {
        control_plane::kubectl(&self.files)
    }

    /// Runs kubectl with these arguments and returns what it printed. The error has what it said.
    pub fn kubectl<A: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Result<String> {
        let output = self.kubectl_command()?.args(words).stdin(Stdio::null()).output().context("run kubectl")?;
        said(output)
    }

    /// Applies manifests (YAML or JSON), as `kubectl apply -f -` does. Returns what it printed.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        use std::io::Write;
        let mut kubectl = self.kubectl_command()?;
        kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("run kubectl")?;
        child.stdin.take().context("invariant: stdin is piped")?.write_all(manifests.as_bytes())?;
        said(child.wait_with_output()?)
    }

    /// Gives every node the images in a docker-archive tar. Nodes that are off don't get them.
    pub fn load_image(&self, tar: &Path) -> Result<()> {
        let nodes = self.hosts()?.into_iter().filter(|host| host.seat().is_some_and(|seat| seat.kind == Kind::Node));
        at_once(nodes.filter(Host::is_up).collect(), |host| node::load_image(host, tar))
    }

    /// Makes an image of a static binary and gives it to every node.
    pub fn load_binary(&self, binary: &Path, name: &str) -> Result<()> {
        let file_name = binary.file_name().context("the binary has no file name")?.to_string_lossy();
        let tar = self.place.dir.join(format!("image-{file_name}.tar"));
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

    /// Takes the cluster down and removes every trace of it: the end of a test that went well.
    pub fn down(mut self) -> Result<()> {
        let _held = self.lock.take();
        self.place.remove()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        match keep_evidence(&self.place, &self.topology, &self.place.name) {
            Ok(dir) => eprintln!("cluster {:?}: logs and frames are in {}", self.place.name, dir.display()),
            Err(error) => eprintln!("cluster {:?}: logs are lost: {error:#}", self.place.name),
        }
        if let Err(error) = self.place.remove() {
            eprintln!("cluster {:?} was not removed: {error:#}", self.place.name);
        }
    }
}

/// Takes down the cluster of this name, whoever made it, unless a running process holds it. Returns whether there was one.
pub fn down(name: &str) -> Result<bool> {
    let place = Place::new(name)?;
    let _held = Lock::take(&place)?;
    let existed = state::names().iter().any(|other| other == name);
    place.remove()?;
    Ok(existed)
}

/// Every cluster there is any trace of, sorted.
pub fn names() -> Vec<String> {
    state::names()
}

fn build_hosts(place: &Place, topology: &Topology, switch: &netns::Namespace, authority: &Authority) -> Result<()> {
    let archive = place.dir.join("image-lab.tar");
    let (pause, whoami) = (control_plane::binary("pause")?, control_plane::binary("whoami")?);
    write_archive(
        &[Image { binary: &pause, name: "pause:dev" }, Image { binary: &whoami, name: "whoami:dev" }],
        &archive,
    )?;
    let seats = topology.seats();
    let images: Vec<&Path> =
        std::iter::once(archive.as_path()).chain(topology.images.iter().map(PathBuf::as_path)).collect();
    at_once(seats[1..].to_vec(), |seat| {
        let host = Host::new(place, Some(seat.clone()))?;
        fs::create_dir_all(host.logs())?;
        network::plug(&place.name, switch, seat, &seats)?;
        if seat.kind == Kind::Node {
            node::write_files(&host, seat, topology, authority)?;
            node::boot(&host)?;
            images.iter().try_for_each(|tar| node::load_image(&host, tar))?;
        }
        Ok(())
    })
}

/// Does something with each, a few at once: it is mostly waiting for others. The first error is the answer.
fn at_once<T: Send + Sync>(items: Vec<T>, work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    /// More would only wait for each other on the kernel's one lock for network configuration.
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

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(kube::Client::try_from(config)?)
}

fn said(output: std::process::Output) -> Result<String> {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "kubectl: {}\n{out}{error}", output.status);
    Ok(out.into_owned())
}

/// Variable with the folder for what is collected of clusters of failed tests.
const EVIDENCE: &str = "LANDFALL_EVIDENCE";

/// Collects into the folder of this name for failed tests, in place of an earlier run's. Returns its path.
fn keep_evidence(place: &Place, topology: &Topology, name: &str) -> Result<PathBuf> {
    let failures = std::env::var_os(EVIDENCE)
        .map_or_else(|| control_plane::directory().join("failures"), |folder| PathBuf::from(&folder));
    fs::create_dir_all(&failures)?;
    let dir = failures.canonicalize()?.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    crate::collect::collect(place, topology, &dir)?;
    Ok(dir)
}

impl Cluster {
    /// Copies logs of every daemon and pod, what the API server knows, what the kernels know, and the last frames on the
    /// switch into a directory.
    pub fn collect(&self, dir: &Path) -> Result<()> {
        crate::collect::collect(&self.place, &self.topology, dir)
    }

    /// Collects the same into the folder for failed tests, for one part of a test that failed. Returns the path.
    pub fn keep_evidence(&self, part: &str) -> Result<PathBuf> {
        keep_evidence(&self.place, &self.topology, &format!("{}.{part}", self.place.name))
    }

    /// How long ago the cluster was made, roughly.
    pub fn age(&self) -> Duration {
        let made = fs::metadata(&self.files.kubeconfig).and_then(|data| data.modified()).ok();
        made.and_then(|made| made.elapsed().ok()).unwrap_or_default()
    }
}
