//! What is kept of a cluster that a test failed on.
//!
//! Reads logs, the API server and the kernels of the hosts; writes below one directory:
//!
//! ```text
//!   HOST/log/          daemons' logs; a node's also has pods/
//!   HOST/kernel.txt    addresses, routes, neighbours, rules, connections
//!   objects/*.yaml     what the API server knows
//!   switch/*.pcap*     the last frames
//! ```

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::control_plane::{Files, kubectl};
use crate::host::Host;
use crate::state::Place;
use crate::topology::Topology;

/// What is asked of each host's kernel.
const KERNEL: [&[&str]; 7] = [
    &["ip", "-d", "address"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["ip", "neighbour"],
    &["ss", "-tunlp"],
    &["nft", "list", "ruleset"],
    &["conntrack", "-L"],
];
/// Kinds of objects to read from the API server. Landfall's come last: not every cluster has them.
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

/// Collects into `dir`. A part that can't be had is left out, with the reason in its place: the rest is still worth having.
pub fn collect(place: &Place, topology: &Topology, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let switch = Host::new(place, None)?;
    let hosts = topology.seats().into_iter().map(|seat| Host::new(place, Some(seat)));
    for host in hosts.chain([Ok(switch.clone())]) {
        let host = host?;
        let to = dir.join(host.name());
        copy_tree(&host.logs(), &to.join("log"))?;
        let _ = fs::create_dir(&to);
        fs::write(to.join("kernel.txt"), kernel(&host))?;
    }
    for entry in fs::read_dir(switch.dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("capture.pcap") {
            fs::copy(entry.path(), dir.join("switch").join(entry.file_name()))?;
        }
    }
    objects(place, topology, &dir.join("objects"))
}

fn kernel(host: &Host) -> String {
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

fn objects(place: &Place, topology: &Topology, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let cp = Host::new(place, Some(topology.control_plane()))?;
    for kind in OBJECTS {
        let mut kubectl = kubectl(&Files::new(&cp.dir()))?;
        kubectl.args(["get", kind, "--all-namespaces", "--output=yaml", "--request-timeout=5s"]);
        let output = kubectl.stdin(Stdio::null()).output().context("run kubectl")?;
        fs::write(dir.join(format!("{kind}.yaml")), [output.stdout, output.stderr].concat())?;
        // The API server does not answer, or has no such kind, and so none of those after it: each further request could
        // take its whole timeout.
        if !output.status.success() {
            break;
        }
    }
    Ok(())
}

/// Copies files and directories; links (a kubelet makes them between logs) are left out.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            // It may have been rotated away since it was listed.
            let _ = fs::copy(entry.path(), target);
        }
    }
    Ok(())
}
