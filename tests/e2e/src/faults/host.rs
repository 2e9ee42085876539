//! Faults of processes, nodes and kernels.
//!
//! Most declare nothing, because Landfall must not notice them, or must repair their effects without a breach of any
//! invariant.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crds::MacAddr;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use lab::{CpuLimit, Host, Signal, wait_until};
use observer::{Component, Fault};
use serde_json::json;

use crate::world::{AGENT_PORT, AGENT_PROCESS, SOON, World, process_pattern};

/// Fresh tables of iptables, as `iptables-save` prints them on a host without rules.
const EMPTY_TABLES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n\
    *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";

/// The policy of firewalld during `firewall-cmd --reload` (1.3, `build_set_policy_rules`): its hooks come before those
/// of firewalld's chains, and only existing connections continue.
const FIREWALLD_DROP: &str = "table inet firewalld_policy_drop {
    chain filter_input { type filter hook input priority 9; policy drop; ct state established,related accept; }
    chain filter_forward { type filter hook forward priority 9; policy drop; ct state established,related accept; }
    chain filter_output { type filter hook output priority 9; policy accept; }
}";

/// The chains of firewalld with all links in the zone `trusted`, as Kubernetes' documentation demands.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_PREROUTING { type filter hook prerouting priority 10; policy accept; }
    chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; }
    chain nat_POSTROUTING { type nat hook postrouting priority 110; policy accept; }
    chain filter_INPUT { type filter hook input priority 10; policy accept;
        ct state established,related accept; ct status dnat accept; iifname lo accept; ct state invalid drop; accept; }
    chain filter_FORWARD { type filter hook forward priority 10; policy accept;
        ct state established,related accept; ct status dnat accept; iifname lo accept; ct state invalid drop; accept; }
}";

/// A fault that lasts until it is ended or dropped.
#[must_use = "the fault ends when it is dropped"]
pub struct HostFault {
    name: String,
    undo: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
}

impl HostFault {
    fn new(name: impl Into<String>, undo: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { name: name.into(), undo: Some(Box::new(undo)) }
    }

    /// Ends the fault now.
    pub fn end(mut self) -> Result<()> {
        self.undo.take().map_or(Ok(()), |undo| undo())
    }
}

impl Drop for HostFault {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.undo.take().map(|undo| undo()) {
            eprintln!("the fault {:?} did not end: {error:#}", self.name);
        }
    }
}

/// Commands that operators and other programs run on nodes, and that change state of the kernel that Landfall uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostileCommand {
    /// `nft flush ruleset`: deletes all tables of all programs. Debian's `nftables.service` does this when it stops.
    FlushRuleset,
    /// `conntrack -F`: forgets all connections.
    FlushConntrack,
    /// `iptables-restore` and `ip6tables-restore` of tables without rules.
    RestoreIptables,
    /// `firewall-cmd --reload`, as the nft commands of firewalld: the daemon itself needs D-Bus, which no node has.
    ReloadFirewalld,
    /// kube-proxy is killed and starts again.
    RestartKubeProxy,
}

impl HostileCommand {
    pub const ALL: [Self; 5] = [
        Self::FlushRuleset,
        Self::FlushConntrack,
        Self::RestoreIptables,
        Self::ReloadFirewalld,
        Self::RestartKubeProxy,
    ];
}

impl World {
    /// Freezes the agent, or all controllers, on a node. A controller may lose its Lease and restart.
    pub fn freeze(&self, component: Component, node: &str) -> Result<HostFault> {
        let (host, pattern) = (self.cluster.node(node), process_pattern(component));
        let frozen = host.signal(pattern, Signal::SIGSTOP)?.len() as u32;
        if component == Component::Controller {
            self.declare(Fault::restarts(component, node, frozen));
        }
        let name = format!("frozen {component} on {node}");
        Ok(HostFault::new(name, move || host.signal(pattern, Signal::SIGCONT).map(drop)))
    }

    /// Limits the agent of a node to this percentage of a processor. Returns the limit as well, which counts the
    /// periods in which the agent had to wait.
    pub fn limit_cpu(&self, node: &str, percent: u32) -> Result<(HostFault, std::sync::Arc<CpuLimit>)> {
        let limit = std::sync::Arc::new(self.cluster.node(node).limit_cpu(AGENT_PROCESS, percent)?);
        let fault = std::sync::Arc::clone(&limit);
        Ok((HostFault::new(format!("CPU quota of the agent on {node}"), move || fault.lift()), limit))
    }

    /// Uses up the memory of the agent's container on a node, until the OOM killer kills the agent. It restarts once.
    pub fn exhaust_memory(&self, node: &str) -> Result<()> {
        self.declare(Fault::restarts(Component::Agent, node, 1));
        self.cluster.node(node).exhaust_memory(AGENT_PROCESS)
    }

    /// The agent of a node can open no more files.
    pub fn limit_open_files(&self, node: &str) -> Result<HostFault> {
        let limit = self.cluster.node(node).limit_open_files(AGENT_PROCESS)?;
        Ok(HostFault::new(format!("file limit of the agent on {node}"), move || limit.lift()))
    }

    /// The disk of a node is full.
    pub fn fill_disk(&self, node: &str) -> Result<HostFault> {
        let disk = self.cluster.node(node).fill_disk()?;
        Ok(HostFault::new(format!("full disk of {node}"), move || disk.enlarge()))
    }

    /// Kills the kubelet of a node; pods and the agent continue. It starts again when the fault ends.
    pub fn stop_kubelet(&self, node: &str) -> Result<HostFault> {
        let kubelet = self.cluster.node(node).process("kubelet");
        kubelet.kill()?;
        Ok(HostFault::new(format!("dead kubelet of {node}"), move || kubelet.start()))
    }

    /// Reports that a node is not Ready, as Kubernetes does 50 s after the death of its kubelet.
    pub async fn report_not_ready(&self, node: &str) -> Result<()> {
        let condition = json!({
            "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
        });
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let params = PatchParams::default();
        self.node_api().patch_status(node, &params, &patch).await.with_context(|| format!("condition of {node}"))?;
        Ok(())
    }

    /// Deletes the Node object of a node without power, and powers on another machine under its name, with this MAC
    /// address. Returns when the machine is Ready.
    pub async fn replace_node(&self, node: &str, mac: MacAddr) -> Result<()> {
        self.delete_node_object(node).await?;
        if let Some(observer) = self.observer() {
            observer.add_mac(node, mac);
        }
        self.cluster.apply_node(node).await?;
        self.cluster.power_on_with_mac(node, &mac.to_string())?;
        self.cluster.wait_ready(4 * SOON).await
    }

    /// Deletes the Node object of a node, which lives on.
    pub async fn delete_node_object(&self, node: &str) -> Result<()> {
        self.node_api().delete(node, &DeleteParams::default()).await.with_context(|| format!("delete {node}")).map(drop)
    }

    /// Creates the Node object again, and waits until the node is Ready.
    pub async fn create_node_object(&self, node: &str) -> Result<()> {
        self.cluster.apply_node(node).await?;
        self.cluster.wait_ready(4 * SOON).await
    }

    /// Freezes etcd: the API server runs, and all writes hang.
    pub fn freeze_etcd(&self) -> Result<HostFault> {
        let etcd = self.cluster.control_plane().process("etcd");
        etcd.freeze()?;
        Ok(HostFault::new("frozen etcd", move || etcd.thaw()))
    }

    /// Runs a hostile command on these nodes. When the returned fault ends, the lab's own table is there again, and
    /// that of firewalld is not. The tables of kube-proxy, which a flush deletes as well, return when kube-proxy
    /// restarts.
    pub fn run_hostile(&self, command: HostileCommand, nodes: &[&str]) -> Result<HostFault> {
        let hosts: Vec<Host> = nodes.iter().map(|node| self.cluster.node(node)).collect();
        let mut restored = Vec::new();
        for host in &hosts {
            match command {
                HostileCommand::FlushRuleset => {
                    restored.push((host.clone(), host.output(["nft", "list", "table", "inet", "lab"])?));
                    host.output(["nft", "flush", "ruleset"])?;
                }
                HostileCommand::FlushConntrack => drop(host.output(["conntrack", "-F"])?),
                HostileCommand::RestoreIptables => {
                    for program in ["iptables-restore", "ip6tables-restore"] {
                        run_with_input(host, &[program], EMPTY_TABLES)?;
                    }
                }
                HostileCommand::ReloadFirewalld => reload_firewalld(host)?,
                HostileCommand::RestartKubeProxy => {
                    let proxy = host.process("kube-proxy");
                    proxy.kill()?;
                    proxy.start()?;
                }
            }
        }
        Ok(HostFault::new(format!("{command:?} on {nodes:?}"), move || {
            for (host, table) in restored {
                run_with_input(&host, &["nft", "-f", "-"], &table)?;
            }
            for host in hosts.iter().filter(|_| command == HostileCommand::ReloadFirewalld) {
                host.output(["nft", "delete", "table", "inet", "firewalld"])?;
            }
            Ok(())
        }))
    }

    /// Waits until the agent of a node is ready, as it reports to the kubelet.
    pub async fn wait_for_agent(&self, node: &str, within: Duration) -> Result<()> {
        wait_until(within, &format!("the agent on {node} to be ready"), async || {
            let host = self.cluster.node(node);
            let (status, text) = self.lan.get((host.ipv4(), AGENT_PORT).into(), "/readyz", SOON)?;
            ensure!(status == 200, "{status}: {text}");
            Ok(())
        })
        .await
    }

    fn node_api(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }
}

/// The transactions of `firewall-cmd --reload`, in their order.
fn reload_firewalld(host: &Host) -> Result<()> {
    run_with_input(host, &["nft", "-f", "-"], FIREWALLD_DROP)?;
    let replace = format!("table inet firewalld\ndelete table inet firewalld\n{FIREWALLD}");
    run_with_input(host, &["nft", "-f", "-"], &replace)?;
    host.output(["nft", "delete", "table", "inet", "firewalld_policy_drop"]).map(drop)
}

fn run_with_input(host: &Host, words: &[&str], input: &str) -> Result<()> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = host.command(words[0])?;
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {words:?} on {}", host.name()))?;
    child.stdin.take().context("invariant: stdin is piped")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{words:?} on {}: {}\n{}",
        host.name(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
