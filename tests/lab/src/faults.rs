//! Injected faults: cut cables, lost and filtered frames, ports without a carrier, frozen and dead machines.
//!
//! Touches the table `bridge lab` in the switch's namespace and the switch's ports, control groups of hosts, and
//! namespaces of hosts. The switch drops the frames of a cut, and both sides keep their carrier, so no host notices.

pub(crate) mod limits;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::kubernetes::node;
use crate::machine::cable::{Cable, CablePlan};
use crate::machine::cgroup::CgroupHierarchies;
use crate::machine::host::Host;
use crate::machine::network::{self, BRIDGE, nft};
use crate::topology::{HostKind, HostSpec};

/// The direction of frames, as seen from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Frames to the host.
    In,
    /// Frames from the host.
    Out,
    /// All frames of the host.
    #[default]
    Both,
}

impl Cluster {
    /// Drops frames from a host, to it, or both, silently. Succeeds if the host is cut already.
    pub fn cut(&self, host: &str, direction: Direction) -> Result<()> {
        let port = self.host(host)?.name().to_owned();
        self.change_fault_table(&set_lines("add", &port, direction))
    }

    /// Ends a cut, in both directions. Succeeds if the host is not cut.
    pub fn heal(&self, host: &str) -> Result<()> {
        let port = self.host(host)?.name().to_owned();
        // Only an existing element can be deleted, so this adds it first, in the same transaction.
        let both = Direction::Both;
        self.change_fault_table(&(set_lines("add", &port, both) + &set_lines("delete", &port, both)))
    }

    /// Drops all frames between two hosts, silently. Both still reach all others. Succeeds if the pair is cut already.
    pub fn cut_pair(&self, a: &str, b: &str) -> Result<()> {
        self.change_fault_table(&self.pair_lines("add", a, b)?)
    }

    /// Ends a cut of two hosts. Succeeds if the pair is not cut.
    pub fn heal_pair(&self, a: &str, b: &str) -> Result<()> {
        self.change_fault_table(&(self.pair_lines("add", a, b)? + &self.pair_lines("delete", a, b)?))
    }

    /// Drops all frames to a multicast MAC address, like a switch that filters multicast by mistake. All other frames
    /// pass.
    pub fn block_group(&self, group: &str) -> Result<()> {
        self.change_fault_table(&format!("add element bridge lab blocked_groups {{ {group} }}\n"))
    }

    /// Ends [`Cluster::block_group`]. Succeeds if the group is not blocked.
    pub fn unblock_group(&self, group: &str) -> Result<()> {
        let line = |verb: &str| format!("{verb} element bridge lab blocked_groups {{ {group} }}\n");
        self.change_fault_table(&(line("add") + &line("delete")))
    }

    /// Drops each frame of a host in this direction with this probability, in percent, in place of an earlier loss. 0
    /// ends the loss.
    pub fn lose(&self, host: &str, direction: Direction, percent: f64) -> Result<()> {
        ensure!((0.0..=100.0).contains(&percent), "a loss of {percent} % is out of range (0-100)");
        let port = self.host(host)?.name().to_owned();
        let mut script = format!(
            "add chain bridge lab loss_{port} {{ type filter hook forward priority 0; policy accept; }}\n\
             flush chain bridge lab loss_{port}\n"
        );
        let of_10000 = (percent * 100.0).round() as u32;
        // `numgen` gives each frame a number from 0 to 9999, and the rule drops those from 0 to `highest`.
        if let Some(highest) = of_10000.checked_sub(1) {
            let keys: &[&str] = match direction {
                Direction::In => &["oifname"],
                Direction::Out => &["iifname"],
                Direction::Both => &["iifname", "oifname"],
            };
            for key in keys {
                script += &format!(
                    "add rule bridge lab loss_{port} {key} {port} numgen random mod 10000 <= {highest} drop\n"
                );
            }
        } else {
            script += &format!("delete chain bridge lab loss_{port}\n");
        }
        self.change_fault_table(&script)
    }

    /// Takes the carrier of hosts away or gives it back, all at once: the ports of the switch go down or up. A host
    /// that is powered off has no port.
    pub fn set_carrier<'a>(&self, hosts: impl IntoIterator<Item = &'a str>, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        let lines = hosts.into_iter().map(|host| Ok(format!("link set {} {state}", self.host(host)?.name())));
        let lines = lines.collect::<Result<Vec<_>>>()?;
        self.switch().netns()?.ip(lines).with_context(|| format!("set ports {state}"))
    }

    /// Forgets all MAC addresses that the switch has learned.
    pub fn flush_fdb(&self) -> Result<()> {
        self.switch().netns()?.ip([format!("link set dev {BRIDGE} type bridge fdb_flush")]).context("flush the FDB")
    }

    /// Inserts a cable with delay, duplication and reordering between a host and its port of the switch. During the
    /// insertion, frames are lost for a millisecond; the carrier stays. Cuts and losses of the host have no effect
    /// until the cable is removed.
    pub fn insert_cable(&self, host: &str, plan: CablePlan) -> Result<Cable> {
        Cable::insert(&self.switch().netns()?, self.host(host)?.name(), plan)
    }

    /// Freezes all processes of a host, including those of its containers. The kernel still answers pings and forwards.
    pub fn freeze(&self, host: &str) -> Result<()> {
        self.host(host)?.group().freeze(true)
    }

    /// Thaws a frozen host.
    pub fn thaw(&self, host: &str) -> Result<()> {
        self.host(host)?.group().freeze(false)
    }

    /// Powers off a node or client: first cuts its cable, then kills its processes and containers and removes its
    /// kernel state. Its disk stays. Returns when it is off. Succeeds if it is off already.
    pub fn power_off(&self, host: &str) -> Result<()> {
        let host = self.host(host)?;
        let spec = host.spec().context("the switch can't be powered off: cut hosts, or take the cluster down")?;
        ensure!(
            spec.kind != HostKind::ControlPlane,
            "the control plane can't be powered off: cut it, freeze it or kill parts"
        );
        let Ok(_plugged) = host.netns() else { return Ok(()) };
        self.cut(host.name(), Direction::Both)?;
        host.group().kill()?;
        // The next kubelet would otherwise look for the containers of these groups.
        CgroupHierarchies::find()?.remove_view(&self.cluster_dir().name, host.name())?;
        network::unplug(&self.cluster_dir().name, &self.switch().netns()?, host.name())
    }

    /// Powers on a node or client: a new network namespace with the same addresses, and on a node containerd, kubelet
    /// and kube-proxy. Returns when they have started; [`Cluster::wait_ready`] waits until the node is Ready.
    pub fn power_on(&self, host: &str) -> Result<()> {
        let host = self.host(host)?;
        let Some(spec) = host.spec() else { return Ok(()) };
        self.power_on_as(&host, spec)
    }

    /// Powers on another machine under the name of a node that is off. The new machine has another MAC address, and the
    /// disk of the former machine. [`Host::mac`] still returns the former address.
    pub fn power_on_with_mac(&self, host: &str, mac: &str) -> Result<()> {
        let host = self.host(host)?;
        let spec = host.spec().context("the switch can't be replaced")?.clone().with_mac(mac);
        self.power_on_as(&host, &spec)
    }

    fn power_on_as(&self, host: &Host, spec: &HostSpec) -> Result<()> {
        if host.netns().is_ok() {
            return Ok(());
        }
        network::plug(&self.cluster_dir().name, &self.switch().netns()?, spec, &self.topology().hosts())?;
        self.heal(host.name())?;
        if spec.kind == HostKind::Node {
            node::boot(host)?;
            node::start_kubelet(host, spec)?;
            node::start_kube_proxy(host, self.topology())?;
        }
        Ok(())
    }

    fn pair_lines(&self, verb: &str, a: &str, b: &str) -> Result<String> {
        let (a, b) = (self.host(a)?, self.host(b)?);
        let (a, b) = (a.name(), b.name());
        Ok(format!("{verb} element bridge lab cut_pairs {{ {a} . {b}, {b} . {a} }}\n"))
    }

    /// Runs an nft script in the switch.
    fn change_fault_table(&self, script: &str) -> Result<()> {
        nft(&self.switch().netns()?, script)
    }
}

fn set_lines(verb: &str, port: &str, direction: Direction) -> String {
    let sets: &[&str] = match direction {
        Direction::In => &["cut_to"],
        Direction::Out => &["cut_from"],
        Direction::Both => &["cut_to", "cut_from"],
    };
    sets.iter().map(|set| format!("{verb} element bridge lab {set} {{ {port} }}\n")).collect()
}
