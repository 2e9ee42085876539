//! Collects logs and state of the cluster of a failed test.
//!
//! Reads logs, the API server and the kernels of the hosts, and writes below one directory:
//!
//! ```text
//!   HOST/log/          logs of daemons, on a node also of pods
//!   HOST/kernel.txt    addresses, routes, neighbours, rules, connections
//!   objects/*.yaml     objects of the API server
//!   switch/*.pcap*     the last frames
//! ```

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::kubernetes::control_plane::{ControlPlaneFiles, kubectl};
use crate::machine::host::Host;
use crate::state::ClusterDir;
use crate::topology::Topology;

/// Commands that print the state of a host's kernel.
const KERNEL: [&[&str]; 7] = [
    &["ip", "-d", "address"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["ip", "neighbour"],
    &["ss", "-tunlp"],
    &["nft", "list", "ruleset"],
    &["conntrack", "-L"],
];
/// Kinds of objects to read from the API server. Landfall's kinds come last, because not every cluster has them.
const OBJECTS: [&str; 13] = [
    "nodes",
    "pods",
    "deployments",
    "daemonsets",
    "services",
    "endpointslices",
    "events",
    "leases",
    "configmaps",
    "ipaddresspools.landfall.dev",
    "loadbalancerips.landfall.dev",
    "l2advertisements.landfall.dev",
    "nodenetworks.landfall.dev",
];

/// Collects into `dir`. If a part is not available, its file contains the reason, and the rest is collected.
pub fn collect(cluster_dir: &ClusterDir, topology: &Topology, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let switch = Host::new(cluster_dir, None)?;
    let hosts = topology.hosts().into_iter().map(|spec| Host::new(cluster_dir, Some(spec)));
    for host in hosts.chain([Ok(switch.clone())]) {
        let host = host?;
        let to = dir.join(host.name());
        copy_tree(&host.logs(), &to.join("log"))?;
        let _ = fs::create_dir(&to);
        fs::write(to.join("kernel.txt"), kernel_state(&host))?;
    }
    for entry in fs::read_dir(switch.dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("capture.pcap") {
            fs::copy(entry.path(), dir.join("switch").join(entry.file_name()))?;
        }
    }
    write_objects(cluster_dir, topology, &dir.join("objects"))
}

fn kernel_state(host: &Host) -> String {
    let mut text = String::new();
    let Ok(namespace) = host.netns() else { return "powered off\n".to_owned() };
    for words in KERNEL {
        let output = namespace.command(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        text += &format!("# {}\n", words.join(" "));
        text += &output.map_or_else(|error| error.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
        text.push('\n');
    }
    text
}

fn write_objects(cluster_dir: &ClusterDir, topology: &Topology, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let cp = Host::new(cluster_dir, Some(topology.control_plane()))?;
    for kind in OBJECTS {
        let mut kubectl = kubectl(&ControlPlaneFiles::new(&cp.dir()))?;
        kubectl.args(["get", kind, "--all-namespaces", "--output=yaml", "--request-timeout=5s"]);
        let output = kubectl.stdin(Stdio::null()).output().context("run kubectl")?;
        fs::write(dir.join(format!("{kind}.yaml")), [output.stdout, output.stderr].concat())?;
        // If the API server does not answer, each further request could take its whole timeout. If the API server lacks
        // this kind, the kind is Landfall's, and the kinds after it are missing, too.
        if !output.status.success() {
            break;
        }
    }
    Ok(())
}

/// Copies files and directories, but not the links that a kubelet creates between logs.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            // The file may have been rotated since it was listed.
            let _ = fs::copy(entry.path(), target);
        }
    }
    Ok(())
}
