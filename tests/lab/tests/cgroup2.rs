//! A cluster on a machine with cgroup2 alone.
//!
//! On a hybrid machine the test runs in a mount namespace that shows only the cgroup2 hierarchy. This is a real cgroup2
//! machine for the lab, containerd, runc and the kubelet, with one difference: controllers that version 1 has taken are
//! absent, so containers have no limits. On a machine with cgroup2 alone the same test also checks the limits.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use doctor::{ContainerGroups, ControlGroups};
use lab::{Cluster, KubeProxy, Topology, extend_limit, wait_until};
use support::{ANSWER, SILENCE, SOON, addresses, traces};

/// The variable of the process that runs in the mount namespace.
const VIEW: &str = "LANDFALL_LAB_CGROUP2_VIEW";
/// Shows cgroup2 alone, then executes its arguments.
const SHOW_CGROUP2: &str = r#"umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@""#;
/// The pod's limit.
const MEMORY: u64 = 64 << 20;
const NAME: &str = "lab-cgroup2";

#[test]
fn a_cluster_runs_on_cgroup2_alone() -> Result<()> {
    if std::env::var_os(VIEW).is_some() {
        return tokio::runtime::Runtime::new()?.block_on(run_cluster());
    }
    let mut view = Command::new("unshare");
    view.args(["--mount", "--propagation", "private", "/bin/sh", "-c", SHOW_CGROUP2, "sh"]);
    view.arg(std::env::current_exe()?).args(["a_cluster_runs_on_cgroup2_alone", "--exact", "--nocapture"]);
    let status = view.env(VIEW, "1").status().context("run unshare")?;
    ensure!(status.success(), "the test in the mount namespace: {status}");
    Ok(())
}

async fn run_cluster() -> Result<()> {
    let groups = ControlGroups::find()?;
    ensure!(!matches!(groups.containers, ContainerGroups::Version1(_)), "{groups:?}");
    let topology = Topology { nodes: 1, kube_proxy: KubeProxy::None, ..Topology::default() };
    let cluster = Cluster::start(NAME, &topology).await?;
    let (n1, c1) = (cluster.node("n1"), cluster.client_host("c1"));
    cluster.apply(&(limited_whoami("host", ", hostNetwork: true") + &limited_whoami("pod", "")))?;
    let host = addresses(&cluster, "host").await?[0];
    let pod = addresses(&cluster, "pod").await?[0];
    c1.query_tcp(host, extend_limit(ANSWER))?;
    ensure!(n1.query_tcp(pod, extend_limit(ANSWER))?.pod == "pod");

    // The node sees its own group as the root, and no process is in that group itself.
    assert_eq!(n1.output(["stat", "-f", "-c", "%T", "/sys/fs/cgroup"])?, "cgroup2fs\n");
    assert!(n1.output(["cat", "/proc/self/cgroup"])?.lines().any(|line| line == "0::/commands"));
    let group = groups.unified.join("landfall-lab").join(NAME).join("n1");
    assert_eq!(fs::read_to_string(group.join("cgroup.procs"))?, "");
    assert_eq!(n1.daemons(), ["containerd", "kubelet"]);

    let containers = n1.processes("/whoami");
    assert_eq!(containers.len(), 2, "{containers:?}");
    for (pid, _) in containers {
        check_container(pid, &group, &groups.containers)?;
    }

    // The faults reach containers, too.
    cluster.freeze("n1")?;
    c1.query_tcp(host, SILENCE).expect_err("n1 is frozen");
    cluster.thaw("n1")?;
    c1.query_tcp(host, extend_limit(ANSWER))?;
    cluster.power_off("n1")?;
    assert!(n1.processes("").is_empty() && !group.exists() && !n1.is_up());
    cluster.power_on("n1")?;
    cluster.wait_ready(extend_limit(SOON)).await?;
    wait_until(extend_limit(SOON), "the pod to be back", async || c1.query_tcp(host, extend_limit(ANSWER))).await?;
    cluster.remove()?;
    assert_eq!(traces(NAME), Vec::<String>::new());
    Ok(())
}

/// The manifest of a whoami pod on n1 with a limit of memory. `more` is appended to its spec.
fn limited_whoami(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {name}}}\n\
         spec: {{nodeName: n1, containers: [{{name: whoami, image: 'whoami:dev', \
         resources: {{limits: {{memory: '{MEMORY}'}}}}}}]{more}}}\n\
         ---\n"
    )
}

/// Checks that a container has a group inside the node's, with the pod's limit if there are controllers.
fn check_container(pid: i32, node: &Path, containers: &ContainerGroups) -> Result<()> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).context("no group in cgroup2")?;
    let group = Path::new("/sys/fs/cgroup").join(path);
    let inside = group.strip_prefix(node).with_context(|| format!("{} is outside of the node", group.display()))?;
    // The groups of process 1, of commands and of daemons.
    let others = ["init", "commands", "containerd", "kubelet"];
    ensure!(!others.iter().any(|other| inside.starts_with(other)), "{} has no group of its own", group.display());
    let limit = fs::read_to_string(group.join("memory.max")).ok();
    let expected = (*containers == ContainerGroups::Unified).then(|| format!("{MEMORY}\n"));
    assert_eq!(limit, expected, "{}", group.display());
    Ok(())
}
