//! The control plane: etcd, API server, controller manager and scheduler on the host `cp`, and the way to it from here.
//!
//! Touches `cp/` in the cluster's directory (keys, kubeconfigs, etcd's data, logs) and one port on 127.0.0.1 of the root
//! namespace. Everyone inside the lab talks to the API server at its LAN address; from the root namespace, which has no
//! interface in the lab, a forwarder takes connections to the control plane's namespace.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::certificates::Authority;
use crate::host::Host;
use crate::light_node::LABEL;
use crate::topology::{API_PORT, API_SERVICE, SERVICE_CIDRS, Topology};

/// The group that may do everything.
pub const ADMINISTRATORS: &str = "system:masters";

/// Where the control plane keeps its files.
pub struct Files {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// An administrator's kubeconfig for the root namespace.
    pub kubeconfig: PathBuf,
    /// An administrator's kubeconfig for hosts on the LAN.
    pub lan_kubeconfig: PathBuf,
    dir: PathBuf,
}

impl Files {
    /// The files below the directory of `cp`.
    pub fn new(dir: &Path) -> Self {
        Self {
            authority: dir.join("ca.crt"),
            kubeconfig: dir.join("kubeconfig"),
            lan_kubeconfig: dir.join("kubeconfig.lan"),
            dir: dir.to_owned(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

/// The API server's URL on the LAN.
pub fn lan_url(topology: &Topology) -> String {
    format!("https://{}:{API_PORT}", topology.control_plane().v4())
}

/// A kubectl for the cluster with these files.
pub fn kubectl(files: &Files) -> Result<Command> {
    let mut kubectl = Command::new(binary("kubernetes")?);
    kubectl.arg("kubectl").env("KUBECONFIG", &files.kubeconfig);
    // It remembers what an address serves, and the next cluster may have this one's port.
    kubectl.env("KUBECACHEDIR", files.path("cache"));
    // 127.0.0.1 is not to be asked of a proxy.
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        kubectl.env_remove(variable);
    }
    Ok(kubectl)
}

/// What set-up has built. The error says how to get it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = directory().join("bin").join(name);
    if !path.exists() {
        bail!(
            "{} isn't there: run {}/setup.sh (about 6 minutes the first time)",
            path.display(),
            env!("CARGO_MANIFEST_DIR")
        );
    }
    Ok(path.canonicalize()?)
}

/// What set-up builds goes here, and what failed tests leave behind: $LANDFALL_LAB, else `target/lab` of the workspace.
pub fn directory() -> PathBuf {
    match std::env::var_os("LANDFALL_LAB") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab"),
    }
}

/// Writes keys, certificates and kubeconfigs.
pub fn write_files(cp: &Host, topology: &Topology, authority: &Authority, api_port: u16) -> Result<Files> {
    let files = Files::new(&cp.dir());
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

/// Starts etcd and the API server, which finds etcd when it is there.
pub fn start_api(cp: &Host, files: &Files) -> Result<()> {
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

/// Starts what works through the API server.
pub fn start_controllers(cp: &Host, topology: &Topology, files: &Files) -> Result<()> {
    let kubernetes = binary("kubernetes")?;
    let kubeconfig = format!("--kubeconfig={}", files.lan_kubeconfig.display());

    let mut manager = Command::new(&kubernetes);
    manager.args([
        "kube-controller-manager",
        &kubeconfig,
        "--leader-elect=false",
        "--controllers=*,-node-ipam-controller",
    ]);
    // Tests make objects by the thousand; the defaults (20 a second) would be what they measure.
    manager.args(["--kube-api-qps=500", "--kube-api-burst=1000", "--profiling=false"]);
    manager.arg(format!("--root-ca-file={}", files.authority.display()));
    manager.arg(format!("--service-account-private-key-file={}", files.path("tokens.key")));
    manager.arg(format!("--flex-volume-plugin-dir={}", files.path("plugins")));
    let grace = topology.node_monitor_grace;
    manager.arg(format!("--node-monitor-grace-period={}s", grace.as_secs()));
    // Kubernetes looks every 5 s for a grace of 50 s: the same proportion for a shorter one.
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

/// How long a node's lease holds; it is renewed after a quarter of that. 40 s with Kubernetes' default grace of 50 s.
pub fn lease_duration(topology: &Topology) -> std::time::Duration {
    (topology.node_monitor_grace * 4 / 5).min(std::time::Duration::from_secs(40)).max(std::time::Duration::from_secs(1))
}

/// A free port on 127.0.0.1, already listening: connections wait there for the forwarder.
pub fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on 127.0.0.1 for the API server's clients")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Starts the forwarder from the root namespace to the API server.
pub fn start_forwarder(cp: &Host, listener: TcpListener) -> Result<()> {
    let mut forward = Command::new(binary("kubernetes")?);
    forward.args(["forward", &format!("{}:{API_PORT}", cp.ipv4())]);
    cp.spawn_with("forward", &forward, Some(OwnedFd::from(listener)))?;
    Ok(())
}
