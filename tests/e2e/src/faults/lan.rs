//! Faults on the LAN: verbs of [`World`].
//!
//! None of them permits a breach. Landfall must keep all invariants while such a fault lasts, and after it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cable, CablePlan, Cluster, Direction, Host};
use speaker::wire::datagram::{GROUP_MAC, GROUP_V6};
use speaker::wire::ndp::group_mac;

use crate::world::World;

/// The longest restart of the switch. Meanwhile no node can report or answer, and a status that names a node without an
/// answer for 5 s is a breach.
const MAX_DOWNTIME: Duration = Duration::from_secs(4);

/// A fault on the LAN, which lasts until it is healed or dropped.
#[must_use = "the fault is healed when it is dropped"]
pub struct LanFault<'a> {
    cluster: &'a Cluster,
    /// `None` after the heal.
    kind: Option<LanFaultKind>,
}

enum LanFaultKind {
    Cut(String),
    PairCut(String, String),
    BlockedGroups(Vec<String>),
    Loss(String),
    PortsDown(Vec<String>),
    Cable(Cable),
}

impl LanFault<'_> {
    /// Ends the fault now.
    pub fn heal(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        match self.kind.take() {
            None => Ok(()),
            Some(LanFaultKind::Cut(node)) => self.cluster.heal(&node),
            Some(LanFaultKind::PairCut(a, b)) => self.cluster.heal_pair(&a, &b),
            Some(LanFaultKind::BlockedGroups(groups)) => {
                groups.iter().try_for_each(|group| self.cluster.unblock_group(group))
            }
            Some(LanFaultKind::Loss(node)) => self.cluster.lose(&node, Direction::Both, 0.0),
            Some(LanFaultKind::PortsDown(hosts)) => self.cluster.set_carrier(hosts.iter().map(String::as_str), true),
            Some(LanFaultKind::Cable(cable)) => cable.remove(),
        }
    }
}

impl Drop for LanFault<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("a fault on the LAN was not healed: {error:#}");
        }
    }
}

impl World {
    /// Drops frames from a node, to it, or both. The carrier stays. One cut of a node at a time.
    pub fn cut(&self, node: &str, direction: Direction) -> Result<LanFault<'_>> {
        self.cluster.cut(node, direction)?;
        Ok(self.lan_fault(LanFaultKind::Cut(node.to_owned())))
    }

    /// Drops all frames between two nodes. All other hosts still reach both.
    pub fn cut_pair(&self, a: &str, b: &str) -> Result<LanFault<'_>> {
        self.cluster.cut_pair(a, b)?;
        Ok(self.lan_fault(LanFaultKind::PairCut(a.to_owned(), b.to_owned())))
    }

    /// Drops all Hellos at the switch. All other frames pass.
    pub fn block_hellos(&self) -> Result<LanFault<'_>> {
        let groups = [GROUP_MAC, group_mac(GROUP_V6)].map(|mac| mac.to_string());
        let fault = self.lan_fault(LanFaultKind::BlockedGroups(groups.to_vec()));
        groups.iter().try_for_each(|group| self.cluster.block_group(group))?;
        Ok(fault)
    }

    /// Drops this percentage of a node's frames in this direction. One loss of a node at a time.
    pub fn lose(&self, node: &str, direction: Direction, percent: f64) -> Result<LanFault<'_>> {
        self.cluster.lose(node, direction, percent)?;
        Ok(self.lan_fault(LanFaultKind::Loss(node.to_owned())))
    }

    /// Delays, duplicates and reorders frames between a node and the switch. Cuts and losses of the node have no effect
    /// meanwhile.
    pub fn insert_cable(&self, node: &str, plan: CablePlan) -> Result<LanFault<'_>> {
        let cable = self.cluster.insert_cable(node, plan)?;
        Ok(self.lan_fault(LanFaultKind::Cable(cable)))
    }

    /// Takes the carrier of these hosts away, all at once.
    pub fn take_ports_down(&self, hosts: &[&str]) -> Result<LanFault<'_>> {
        let fault = self.lan_fault(LanFaultKind::PortsDown(hosts.iter().map(|host| (*host).to_owned()).collect()));
        self.cluster.set_carrier(hosts.iter().copied(), false)?;
        Ok(fault)
    }

    /// Restarts the switch: for this time all hosts have no carrier, and the switch forgets all MAC addresses.
    pub async fn restart_switch(&self, downtime: Duration) -> Result<()> {
        ensure!(downtime <= MAX_DOWNTIME, "a downtime of {downtime:?} would be a breach of I16");
        let hosts = self.cluster.hosts()?;
        let names: Vec<&str> = hosts.iter().filter(|host| host.is_up()).map(Host::name).collect();
        let down = self.take_ports_down(&names)?;
        tokio::time::sleep(downtime).await;
        self.cluster.flush_fdb()?;
        down.heal().context("take the ports up")
    }

    fn lan_fault(&self, kind: LanFaultKind) -> LanFault<'_> {
        LanFault { cluster: &self.cluster, kind: Some(kind) }
    }
}
