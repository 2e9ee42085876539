//! The control plane: etcd, API server, controller manager and scheduler on the host `cp`, and the forwarder to it.
//!
//! Touches `cp/` in the cluster's directory (keys, kubeconfigs, etcd's data, logs) and one port on 127.0.0.1 of the
//! root namespace. Hosts of the lab use the API server's LAN address. The root namespace has no interface in the lab,
//! so a forwarder connects that port with the control plane's namespace.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kubernetes::certificates::Authority;
use crate::kubernetes::light_node::LABEL;
use crate::machine::host::Host;
use crate::topology::{API_PORT, API_SERVICE, SERVICE_CIDRS, Topology};

/// The group with all rights.
pub const ADMINISTRATORS: &str = "system:masters";

/// Paths of the control plane's files.
pub struct ControlPlaneFiles {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// An administrator's kubeconfig for the root namespace.
    pub kubeconfig: PathBuf,
    /// An administrator's kubeconfig for hosts on the LAN.
    pub lan_kubeconfig: PathBuf,
    dir: PathBuf,
}

impl ControlPlaneFiles {
    /// The files below the directory of `cp`.
    pub fn new(dir: &Path) -> Self {
        Self {
            authority: dir.join("ca.crt"),
            kubeconfig: dir.join("kubeconfig"),
            lan_kubeconfig: dir.join("kubeconfig.lan"),
            dir: dir.to_owned(),
        }
    }

    /// The API server's certificate and its key.
    pub fn api_identity(&self) -> [PathBuf; 2] {
        ["apiserver.crt", "apiserver.key"].map(|name| self.dir.join(name))
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

/// The API server's URL on the LAN.
pub fn lan_url(topology: &Topology) -> String {
    format!("https://{}:{API_PORT}", topology.control_plane().v4())
}

/// A kubectl command for the cluster with these files.
pub fn kubectl(files: &ControlPlaneFiles) -> Result<Command> {
    let mut kubectl = Command::new(binary("kubernetes")?);
    kubectl.arg("kubectl").env("KUBECONFIG", &files.kubeconfig);
    // kubectl caches the API of each address, and the next cluster may use the port of this one.
    kubectl.env("KUBECACHEDIR", files.path("cache"));
    // An HTTP proxy cannot reach 127.0.0.1 of this machine.
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        kubectl.env_remove(variable);
    }
    Ok(kubectl)
}

/// The path of a program that the set-up has built. The error names the set-up's command.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = directory().join("bin").join(name);
    if !path.exists() {
        bail!(
            "{} is missing: run {}/setup.sh (about 6 minutes the first time)",
            path.display(),
            env!("CARGO_MANIFEST_DIR")
        );
    }
    Ok(path.canonicalize()?)
}

/// The folder of the set-up's output and of failed tests' logs: $LANDFALL_LAB, else `target/lab` of the workspace.
pub fn directory() -> PathBuf {
    match std::env::var_os("LANDFALL_LAB") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab"),
    }
}

/// Writes keys, certificates and kubeconfigs.
pub fn write_files(cp: &Host, topology: &Topology, authority: &Authority, api_port: u16) -> Result<ControlPlaneFiles> {
    let files = ControlPlaneFiles::new(&cp.dir());
    fs::create_dir_all(cp.logs())?;
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        "::1",
        API_SERVICE,
    ];
    let mut names: Vec<String> = names.map(str::to_owned).to_vec();
    names.extend([cp.ipv4().to_string(), cp.ipv6().to_string()]);
    let server = authority.identity("kube-apiserver", ADMINISTRATORS, &names)?;
    // The key that signs ServiceAccount tokens, and its public half.
    let tokens = rcgen::KeyPair::generate()?;
    let lan = authority.kubeconfig(&lan_url(topology), "admin", ADMINISTRATORS)?;
    for (path, text) in [
        (files.path("ca.crt"), authority.certificate()),
        (files.path("apiserver.crt"), server.certificate),
        (files.path("apiserver.key"), server.key),
        (files.path("tokens.key"), tokens.serialize_pem()),
        (files.path("tokens.pub"), tokens.public_key_pem()),
        (files.path("kubeconfig.lan"), lan),
        (
            files.path("kubeconfig"),
            authority.kubeconfig(&format!("https://127.0.0.1:{api_port}"), "admin", ADMINISTRATORS)?,
        ),
    ] {
        fs::write(&path, text).with_context(|| format!("write {path}"))?;
    }
    Ok(files)
}

/// Starts etcd and the API server, which retries until etcd answers.
pub fn start_api(cp: &Host, files: &ControlPlaneFiles) -> Result<()> {
    let mut etcd = Command::new("etcd");
    etcd.args([
        "--name=lab",
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--logger=zap",
        "--quota-backend-bytes=4294967296",
    ]);
    etcd.arg(format!("--data-dir={}", files.path("etcd")));
    etcd.args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]);
    etcd.args(["--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]);
    etcd.arg("--initial-cluster=lab=http://127.0.0.1:2380");
    cp.spawn("etcd", &etcd)?;

    let mut api = Command::new(binary("kubernetes")?);
    api.arg("kube-apiserver");
    api.args(["--etcd-servers=http://127.0.0.1:2379", "--authorization-mode=Node,RBAC", "--allow-privileged=true"]);
    api.args(["--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP"]);
    api.args(["--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--profiling=false"]);
    api.arg(format!("--secure-port={API_PORT}"));
    api.arg(format!("--advertise-address={}", cp.ipv4()));
    api.arg(format!("--service-cluster-ip-range={SERVICE_CIDRS}"));
    for (flag, file) in [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-client-certificate", "apiserver.crt"),
        ("kubelet-client-key", "apiserver.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("service-account-key-file", "tokens.pub"),
        ("service-account-signing-key-file", "tokens.key"),
        ("cert-dir", "certs"),
    ] {
        api.arg(format!("--{flag}={}", files.path(file)));
    }
    cp.spawn("kube-apiserver", &api)?;
    Ok(())
}

/// Starts the clients of the API server: controller manager, scheduler, and `heartbeat` if there are light nodes.
pub fn start_controllers(cp: &Host, topology: &Topology, files: &ControlPlaneFiles) -> Result<()> {
    let kubernetes = binary("kubernetes")?;
    let kubeconfig = format!("--kubeconfig={}", files.lan_kubeconfig.display());

    let mut manager = Command::new(&kubernetes);
    manager.args([
        "kube-controller-manager",
        &kubeconfig,
        "--leader-elect=false",
        "--controllers=*,-node-ipam-controller",
    ]);
    // Tests create thousands of objects; the default limit (20 requests a second) would dominate their measurements.
    manager.args(["--kube-api-qps=500", "--kube-api-burst=1000", "--profiling=false"]);
    manager.arg(format!("--root-ca-file={}", files.authority.display()));
    manager.arg(format!("--service-account-private-key-file={}", files.path("tokens.key")));
    manager.arg(format!("--flex-volume-plugin-dir={}", files.path("plugins")));
    let grace = topology.node_monitor_grace;
    manager.arg(format!("--node-monitor-grace-period={}s", grace.as_secs()));
    // Kubernetes checks every 5 s for a grace of 50 s. A shorter grace needs the same ratio.
    manager.arg(format!("--node-monitor-period={}ms", (grace.as_millis() / 10).min(5000)));
    cp.spawn("kube-controller-manager", &manager)?;

    let mut scheduler = Command::new(&kubernetes);
    scheduler.args(["kube-scheduler", &kubeconfig, "--leader-elect=false", "--profiling=false"]);
    scheduler.args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
    cp.spawn("kube-scheduler", &scheduler)?;

    if topology.light_nodes > 0 {
        let interval = lease_duration(topology) / 4;
        let mut heartbeat = Command::new(&kubernetes);
        heartbeat.args(["heartbeat", &kubeconfig, &format!("--selector={LABEL}")]);
        heartbeat.arg(format!("--interval={}ms", interval.as_millis()));
        cp.spawn("heartbeat", &heartbeat)?;
    }
    Ok(())
}

/// The duration of a node's lease: 40 s with Kubernetes' default grace of 50 s. A node renews its lease after a quarter
/// of the duration.
pub fn lease_duration(topology: &Topology) -> std::time::Duration {
    (topology.node_monitor_grace * 4 / 5).min(std::time::Duration::from_secs(40)).max(std::time::Duration::from_secs(1))
}

/// Listens on a free port of 127.0.0.1. Connections wait there for the forwarder.
pub fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on 127.0.0.1 for the API server's clients")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Starts the forwarder from the root namespace to the API server.
pub fn start_forwarder(cp: &Host, listener: TcpListener) -> Result<()> {
    let mut forward = Command::new(binary("kubernetes")?);
    forward.args(["forward", &format!("{}:{API_PORT}", cp.ipv4())]);
    cp.spawn_with_stdin("forward", &forward, Some(OwnedFd::from(listener)))?;
    Ok(())
}
