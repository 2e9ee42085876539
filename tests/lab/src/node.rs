//! A node: what happens from power-on until its kubelet runs.
//!
//! Touches, on the machine: the directory of the node (which is its /var, and stays over a power-off as a disk does), its
//! control groups, and processes. Inside, a node has its own /var, /run, /proc, /sys, host name, processes and network;
//! the rest is the machine's. Process 1 is `pause`. When that dies, the kernel ends every process of the node and its
//! mounts go with them, so nothing inside needs to be tidied up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::certificates::Authority;
use crate::cgroup::Hierarchies;
use crate::control_plane::{binary, lan_url, lease_duration};
use crate::host::Host;
use crate::topology::{KubeProxy, POD_CIDRS, Seat, Topology};

/// Where the lab's own files are inside a node; below its directory seen from outside.
const FILES: &str = "/var/lib/lab";
/// What holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/library/pause:dev";
/// Mounting takes tens of milliseconds and containerd half a second; the machine may be busy.
const BOOT: Duration = Duration::from_secs(30);
/// From the end of `setsid` until its child has joined its group: it runs a shell, which takes milliseconds. On a machine with
/// much else to do it has taken more than a second.
const BIRTH: Duration = Duration::from_secs(10);

/// Writes what a node finds on its disk: keys and configurations.
pub fn write_files(node: &Host, seat: &Seat, topology: &Topology, authority: &Authority) -> Result<()> {
    let pods = seat.pods().context("invariant: a node has pods")?;
    let url = lan_url(topology);
    let name = &seat.name;
    let user = format!("system:node:{name}");
    let server =
        authority.identity(&user, "system:nodes", &[name.clone(), seat.v4().to_string(), seat.v6().to_string()])?;
    let dir = node.dir().join("lib/lab");
    for made in [&dir.join("cni"), &dir.join("cni-bin"), &node.dir().join("log/pods"), &node.dir().join("tmp")] {
        fs::create_dir_all(made)?;
    }
    for (file, text) in [
        ("ca.crt", authority.certificate()),
        ("kubelet.crt", server.certificate),
        ("kubelet.key", server.key),
        ("kubelet.kubeconfig", authority.kubeconfig(&url, &user, "system:nodes")?),
        ("kube-proxy.kubeconfig", authority.kubeconfig(&url, "system:kube-proxy", "system:node-proxier")?),
        ("kubelet.yaml", kubelet_config(topology)),
        ("containerd.toml", containerd_config()),
        ("cni/lab.conflist", cni_config(&pods.v4(), &pods.v6())),
        ("cni-bin/lab-ptp", CNI_PLUGIN.to_owned()),
    ] {
        fs::write(dir.join(file), text).with_context(|| format!("write {}", dir.join(file).display()))?;
    }
    // A plugin finds the others where it was found itself.
    for plugin in CNI_PLUGINS {
        std::os::unix::fs::symlink(Path::new("/usr/lib/cni").join(plugin), dir.join("cni-bin").join(plugin))?;
    }
    fs::set_permissions(dir.join("cni-bin/lab-ptp"), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Runs in the node's new namespaces, as process 1, and becomes `pause`.
fn boot_script(node: &Host, subtrees: &[(String, PathBuf)]) -> Result<String> {
    let pause = binary("pause")?;
    let bin = pause.parent().context("invariant: a binary is in a directory")?;
    let cgroups: String = subtrees
        .iter()
        .map(|(name, path)| {
            format!("mkdir /var/.run/cgroup/{name}; mount --bind {} /var/.run/cgroup/{name}\n", path.display())
        })
        .collect();
    Ok(format!(
        r#"# Boots node {name}: run by the lab as process 1 of new mount, pid, uts and ipc namespaces.
set -eu
hostname {name}
# Without a mount table in user space, for which /run is not ready.
mount() {{ command mount -n "$@"; }}
# Copies of other hosts' mounts would keep those alive after their end.
others=$(awk '$5 ~ "^/run/(netns|landfall-lab)($|/)" {{ print $5 }}' /proc/self/mountinfo)

mount --bind {dir} /var
ln -sfn /run /var/run; ln -sfn /run/lock /var/lock
# /run is built aside, while the machine's is still needed. The programs are in it, as they may be anywhere.
mkdir -p /var/.run
mount -t tmpfs -o mode=755 run /var/.run
mkdir -p /var/.run/lab /var/.run/lock /var/.run/cgroup
mount --bind {bin} /var/.run/lab
# What is the whole of each control group hierarchy in here is a part of the machine's.
mount -t tmpfs -o mode=755 cgroup /var/.run/cgroup
{cgroups}
[ -z "$others" ] || umount -n -l $others 2>/dev/null || :
# Mounts that are only covered would still be listed, and taken for the node's.
umount -n -l /sys/fs/cgroup
mount --move /var/.run /run
mount -t proc proc /proc
# A kubelet sets these, and they are the whole machine's: it shall find what it wants and set nothing.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=/run/sysctl/${{setting%=*}}
  mkdir -p "${{file%/*}}"
  echo "${{setting#*=}}" >"$file"
  mount --bind "$file" "/proc/sys/${{setting%=*}}"
done
mount -t sysfs sys /sys
mount --move /run/cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf 2>/dev/null || :
# Volumes may ask for mount propagation.
mount --make-rshared /
exec /run/lab/pause
"#,
        name = node.name(),
        dir = node.dir().display(),
        bin = bin.display(),
    ))
}

/// Boots the node: its namespaces, process 1, and containerd, ready to run containers. Its network must be plugged in.
pub fn boot(node: &Host) -> Result<()> {
    let subtrees = Hierarchies::find()?.make_subtrees(&node.place().name, node.name())?;
    let script = script_of(node);
    fs::write(&script, boot_script(node, &subtrees)?).with_context(|| format!("write {}", script.display()))?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--uts", "--ipc", "--propagation=private", "/bin/sh"]);
    unshare.arg(script);
    start_init(node, &unshare)?;
    let mut containerd = Command::new("containerd");
    containerd.args(["--config", &format!("{FILES}/containerd.toml"), "--log-level", "info"]);
    node.spawn("containerd", &containerd)?;
    wait(node, "containerd", || containerd_answers(node))
}

fn script_of(node: &Host) -> PathBuf {
    node.dir().join("lib/lab/boot.sh")
}

/// When the node was last booted: what the API server says about it from before is out of date.
pub fn booted_at(node: &Host) -> Result<SystemTime> {
    // Each boot writes its script anew.
    Ok(fs::metadata(script_of(node)).and_then(|data| data.modified())?)
}

/// Starts process 1 from outside and waits until it has become `pause`.
fn start_init(node: &Host, unshare: &Command) -> Result<()> {
    // The node isn't there yet to start something in: only its network namespace and its group are.
    let group = node.group().child("init");
    group.make()?;
    let log = fs::File::create(node.logs().join("boot.log"))?;
    let mut command = node.netns()?.command("setsid");
    command.arg("--fork").arg("/bin/sh").args(["-c", r#"echo 0 > "$0" && exec "$@""#]);
    command.arg(group.path().join("cgroup.procs")).arg(unshare.get_program()).args(unshare.get_args());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().context("start process 1")?;
    ensure!(status.success(), "process 1 of {}: setsid ended with {status}", node.name());
    wait(node, "boot", || node.is_up() && !node.processes("/run/lab/pause").is_empty())
}

fn wait(node: &Host, log: &str, ready: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !ready() {
        let path = node.logs().join(format!("{log}.log"));
        let said = || fs::read_to_string(&path).unwrap_or_default();
        let tail =
            || said().lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        ensure!(
            start.elapsed() < BOOT,
            "{log} of {} is not ready after {BOOT:?}; {}:\n{}",
            node.name(),
            path.display(),
            tail()
        );
        let ended = !node.group().is_populated() && start.elapsed() > BIRTH;
        ensure!(!ended, "{log} of {} has ended; {}:\n{}", node.name(), path.display(), tail());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A connection to its socket, through the node's own root: that is where its /run is.
fn containerd_answers(node: &Host) -> bool {
    let Some(init) = node.init() else { return false };
    let socket = format!("/proc/{init}/root/run/containerd/containerd.sock");
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Gives the node's containerd the images of a tar. The tar may be anywhere on the machine.
pub fn load_image(node: &Host, tar: &Path) -> Result<()> {
    let file = fs::File::open(tar).with_context(|| format!("open the image {}", tar.display()))?;
    let mut ctr = node.command("ctr")?;
    ctr.args(["--namespace", "k8s.io", "images", "import", "-"]).stdin(file);
    let output = ctr.output().context("run ctr")?;
    ensure!(
        output.status.success(),
        "{} into {}: ctr: {}{}",
        tar.display(),
        node.name(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Starts the kubelet. The API server must answer, or it waits longer and longer between attempts.
pub fn start_kubelet(node: &Host, seat: &Seat) -> Result<()> {
    binary("kubernetes")?;
    let mut kubelet = Command::new("/run/lab/kubernetes");
    kubelet.args(["kubelet", &format!("--config={FILES}/kubelet.yaml")]);
    kubelet.arg(format!("--kubeconfig={FILES}/kubelet.kubeconfig"));
    kubelet.arg(format!("--hostname-override={}", seat.name));
    kubelet.arg(format!("--node-ip={},{}", seat.v4(), seat.v6()));
    node.spawn("kubelet", &kubelet)?;
    Ok(())
}

/// Starts kube-proxy, if the topology has it.
pub fn start_kube_proxy(node: &Host, topology: &Topology) -> Result<()> {
    if topology.kube_proxy == KubeProxy::None {
        return Ok(());
    }
    let mut proxy = Command::new("/run/lab/kubernetes");
    proxy.args(["kube-proxy", &format!("--proxy-mode={}", topology.kube_proxy), "--conntrack-max-per-core=0"]);
    proxy.arg(format!("--kubeconfig={FILES}/kube-proxy.kubeconfig"));
    proxy.arg(format!("--hostname-override={}", node.name()));
    proxy.arg(format!("--cluster-cidr={}", POD_CIDRS.join(",")));
    node.spawn("kube-proxy", &proxy)?;
    Ok(())
}

fn kubelet_config(topology: &Topology) -> String {
    let lease = lease_duration(topology).as_secs();
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{x509: {{clientCAFile: {FILES}/ca.crt}}}}
tlsCertFile: {FILES}/kubelet.crt
tlsPrivateKeyFile: {FILES}/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
# The machine's version 1 hierarchies, without the parts that need more privileges than the lab has.
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
failSwapOn: false
# The machine's memory and disks are shared by all nodes: no node may evict for what others use.
evictionHard: {{memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}}
imageGCHighThresholdPercent: 100
maxPods: 250
resolvConf: /dev/null
volumePluginDir: /var/lib/kubelet/plugins
clusterDomain: cluster.local
nodeLeaseDurationSeconds: {lease}
kubeAPIQPS: 200
kubeAPIBurst: 400
makeIPTablesUtilChains: false
"#
    )
}

fn containerd_config() -> String {
    format!(
        r#"version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # runc may not raise its own priority here: no CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{FILES}/cni-bin"
  conf_dir = "{FILES}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// Debian's plugins that are used.
const CNI_PLUGINS: [&str; 4] = ["host-local", "loopback", "portmap", "ptp"];
/// Debian's ptp waits until the kernel has looked for duplicates of the pod's address, which takes over a second and
/// makes up most of a pod's start. Addresses are unique here.
const CNI_PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in ADD) nsenter --net="$CNI_NETNS" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad' ;; esac
exec /usr/lib/cni/ptp
"#;

/// A cable from the node to each pod, and addresses that are forgotten at power-off.
fn cni_config(v4: &str, v6: &str) -> String {
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [
    {{
      "type": "lab-ptp",
      "mtu": 1500,
      "ipam": {{
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{{"subnet": "{v4}"}}], [{{"subnet": "{v6}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}
  ]
}}
"#
    )
}
