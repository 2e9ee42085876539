//! A node, from power-on until its kubelet runs.
//!
//! Touches, on the machine: the directory of the node (its /var, which stays after a power-off like a disk), its
//! control groups, and processes. Inside, a node has its own /var, /run, /proc, /sys, host name, processes and network,
//! and shares the rest with the machine. Process 1 is `pause`. When it ends, the kernel kills all processes of the node
//! and removes its mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::kubernetes::certificates::Authority;
use crate::kubernetes::control_plane::{binary, lan_url, lease_duration};
use crate::machine::cgroup::{CgroupHierarchies, NodeView};
use crate::machine::host::Host;
use crate::topology::{HostSpec, KubeProxy, POD_CIDRS, Topology};
use crate::wait::extend_limit;

/// The lab's own files inside a node.
const FILES: &str = "/var/lib/lab";
/// The image whose container holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/library/pause:dev";
/// Limit of waiting for a boot. Mounting takes tens of milliseconds and containerd half a second, if the machine is
/// idle.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of waiting until the child of `setsid` has joined its group. The child runs a shell, which takes milliseconds,
/// or more than a second on a busy machine.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the files of a node's disk: keys and configurations.
pub fn write_files(node: &Host, spec: &HostSpec, topology: &Topology, authority: &Authority) -> Result<()> {
    let pods = spec.pods().context("invariant: a node has pods")?;
    let url = lan_url(topology);
    let has_limits = CgroupHierarchies::find()?.has_limits();
    let name = &spec.name;
    let user = format!("system:node:{name}");
    let server =
        authority.identity(&user, "system:nodes", &[name.clone(), spec.v4().to_string(), spec.v6().to_string()])?;
    let dir = node.dir().join("lib/lab");
    for folder in [&dir.join("cni"), &dir.join("cni-bin"), &node.dir().join("log/pods"), &node.dir().join("tmp")] {
        fs::create_dir_all(folder)?;
    }
    for (file, text) in [
        ("ca.crt", authority.certificate()),
        ("kubelet.crt", server.certificate),
        ("kubelet.key", server.key),
        ("kubelet.kubeconfig", authority.kubeconfig(&url, &user, "system:nodes")?),
        ("kube-proxy.kubeconfig", authority.kubeconfig(&url, "system:kube-proxy", "system:node-proxier")?),
        ("kubelet.yaml", kubelet_config(topology)),
        ("containerd.toml", containerd_config(has_limits)),
        ("cni/lab.conflist", cni_config(&pods.v4(), &pods.v6())),
        ("cni-bin/lab-ptp", CNI_PLUGIN.to_owned()),
    ] {
        fs::write(dir.join(file), text).with_context(|| format!("write {}", dir.join(file).display()))?;
    }
    // A plugin looks for other plugins in its own directory.
    for plugin in CNI_PLUGINS {
        std::os::unix::fs::symlink(Path::new("/usr/lib/cni").join(plugin), dir.join("cni-bin").join(plugin))?;
    }
    fs::set_permissions(dir.join("cni-bin/lab-ptp"), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The script that runs as process 1 in the node's new namespaces, and then executes `pause`.
fn boot_script(node: &Host, view: &NodeView) -> Result<String> {
    let pause = binary("pause")?;
    let bin = pause.parent().context("invariant: a binary is in a directory")?;
    let cgroups = mount_cgroups(view);
    Ok(format!(
        r#"# Boots node {name}: run by the lab as process 1 of new mount, pid, uts and ipc namespaces.
set -eu
hostname {name}
# Without a mount table in user space, because /run is not ready.
mount() {{ command mount -n "$@"; }}
# Copies of other hosts' mounts would keep those mounts alive after their end.
others=$(awk '$5 ~ "^/run/(netns|landfall-lab)($|/)" {{ print $5 }}' /proc/self/mountinfo)

mount --bind {dir} /var
ln -sfn /run /var/run; ln -sfn /run/lock /var/lock
# The new /run is built elsewhere, while the machine's /run is still in use. The programs are mounted into it.
mkdir -p /var/.run
mount -t tmpfs -o mode=755 run /var/.run
mkdir -p /var/.run/lab /var/.run/lock /var/.run/cgroup
mount --bind {bin} /var/.run/lab
# The node sees its part of each of the machine's control group hierarchies as the whole hierarchy.
{cgroups}
[ -z "$others" ] || umount -n -l $others 2>/dev/null || :
# A covered mount would still be listed, and programs would use it as the node's.
umount -n -l /sys/fs/cgroup
mount --move /var/.run /run
mount -t proc proc /proc
# A kubelet sets these sysctls, which belong to the whole machine. It finds its values in these files, and sets nothing.
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
# For volumes with mount propagation.
mount --make-rshared /
exec /run/lab/pause
"#,
        name = node.name(),
        dir = node.dir().display(),
        bin = bin.display(),
    ))
}

/// The lines of the boot script that mount the control groups.
fn mount_cgroups(view: &NodeView) -> String {
    match view {
        // The root of this mount is the root of the cgroup namespace.
        NodeView::Unified => "mount -t cgroup2 cgroup /var/.run/cgroup".to_owned(),
        NodeView::Version1(subtrees) => {
            let binds = subtrees.iter().map(|(name, path)| {
                format!("mkdir /var/.run/cgroup/{name}; mount --bind {} /var/.run/cgroup/{name}\n", path.display())
            });
            "mount -t tmpfs -o mode=755 cgroup /var/.run/cgroup\n".to_owned() + &binds.collect::<String>()
        }
    }
}

/// Boots the node: its namespaces, process 1, and containerd, ready to run containers. Its network must exist.
pub fn boot(node: &Host) -> Result<()> {
    let hierarchies = CgroupHierarchies::find()?;
    let view = hierarchies.create_view(&node.cluster_dir().name, node.name())?;
    let script = boot_script_path(node);
    fs::write(&script, boot_script(node, &view)?).with_context(|| format!("write {}", script.display()))?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--uts", "--ipc", "--propagation=private", "/bin/sh"]);
    unshare.arg(script);
    start_init(node, &view, &unshare)?;
    hierarchies.enable_limits(node.group())?;
    let mut containerd = Command::new("containerd");
    containerd.args(["--config", &format!("{FILES}/containerd.toml"), "--log-level", "info"]);
    node.spawn("containerd", &containerd)?;
    wait_until_ready(node, "containerd", || containerd_answers(node))
}

fn boot_script_path(node: &Host) -> PathBuf {
    node.dir().join("lib/lab/boot.sh")
}

/// Time of the node's last boot. An older Node status is out of date.
pub fn boot_time(node: &Host) -> Result<SystemTime> {
    // Each boot writes the script again, so its time is the time of the boot.
    Ok(fs::metadata(boot_script_path(node)).and_then(|data| data.modified())?)
}

/// Joins the group of the first argument, makes it the root of a new cgroup namespace, joins the group of the second
/// argument, and executes the rest. The first group is left without processes, so it can have controllers.
const ENTER_CGROUP_NAMESPACE: &str =
    r#"echo 0 > "$0" && exec unshare --cgroup /bin/sh -c 'echo 0 > "$0" && exec "$@"' "$@""#;
/// Joins the group of the second argument and executes the rest.
const ENTER_GROUP: &str = r#"echo 0 > "$1" && shift && exec "$@""#;

/// Starts process 1 from outside the node, and waits until it executes `pause`.
fn start_init(node: &Host, view: &NodeView, unshare: &Command) -> Result<()> {
    // `Host::command` needs process 1. At this point only the node's network namespace and its group exist.
    let group = node.group().child("init");
    group.create()?;
    let log = fs::File::create(node.logs().join("boot.log"))?;
    let script = match view {
        NodeView::Unified => ENTER_CGROUP_NAMESPACE,
        NodeView::Version1(_) => ENTER_GROUP,
    };
    let mut command = node.netns()?.command("setsid");
    command.arg("--fork").arg("/bin/sh").args(["-c", script]);
    command.args([node.group(), &group].map(|group| group.path().join("cgroup.procs")));
    command.arg(unshare.get_program()).args(unshare.get_args());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().context("start process 1")?;
    ensure!(status.success(), "process 1 of {}: setsid ended with {status}", node.name());
    wait_until_ready(node, "boot", || node.is_up() && !node.processes("/run/lab/pause").is_empty())
}

fn wait_until_ready(node: &Host, log: &str, is_ready: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_ready() {
        let path = node.logs().join(format!("{log}.log"));
        ensure!(
            start.elapsed() < extend_limit(BOOT_TIMEOUT),
            "{log} of {} is not ready after {:?}; {}:\n{}",
            node.name(),
            extend_limit(BOOT_TIMEOUT),
            path.display(),
            last_lines(&path)
        );
        let ended = !node.group().is_populated() && start.elapsed() > extend_limit(JOIN_TIMEOUT);
        ensure!(!ended, "{log} of {} has ended; {}:\n{}", node.name(), path.display(), last_lines(&path));
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The last ten lines of a log.
fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// Whether containerd accepts connections. Its socket is in the node's /run, so this function opens the socket through
/// the node's root.
fn containerd_answers(node: &Host) -> bool {
    let Some(init) = node.init() else { return false };
    let socket = format!("/proc/{init}/root/run/containerd/containerd.sock");
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Imports the images of a tar into the node's containerd. The tar may be anywhere on the machine.
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

/// Starts the kubelet. The API server must answer already: otherwise the kubelet backs off.
pub fn start_kubelet(node: &Host, spec: &HostSpec) -> Result<()> {
    binary("kubernetes")?;
    let mut kubelet = Command::new("/run/lab/kubernetes");
    kubelet.args(["kubelet", &format!("--config={FILES}/kubelet.yaml")]);
    kubelet.arg(format!("--kubeconfig={FILES}/kubelet.kubeconfig"));
    kubelet.arg(format!("--hostname-override={}", spec.name));
    kubelet.arg(format!("--node-ip={},{}", spec.v4(), spec.v6()));
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
# The control groups may be version 1, and features that need more privileges than the lab has are off.
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
failSwapOn: false
# All nodes share the machine's memory and disks: no node may evict pods because of the others' usage.
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

/// The configuration of containerd. Without `has_limits`, runc sets no limits of pods and needs no controllers.
fn containerd_config(has_limits: bool) -> String {
    let disable_cgroup = !has_limits;
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
  disable_cgroup = {disable_cgroup}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{FILES}/cni-bin"
  conf_dir = "{FILES}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// The CNI plugins of Debian that the lab uses.
const CNI_PLUGINS: [&str; 4] = ["host-local", "loopback", "portmap", "ptp"];
/// Debian's ptp waits for the kernel's duplicate address detection, which takes over a second and is most of a pod's
/// start time. Addresses are unique here, so this wrapper turns it off.
const CNI_PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in ADD) nsenter --net="$CNI_NETNS" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad' ;; esac
exec /usr/lib/cni/ptp
"#;

/// The CNI configuration: a cable from the node to each pod. A power-off deletes the list of assigned addresses.
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
