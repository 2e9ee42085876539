//! What goes wrong on purpose: cables that carry nothing, frames that get lost, machines that stop or die.
//!
//! Touches the table `bridge lab` in the switch's namespace, control groups of hosts, and namespaces of hosts. A cut is
//! made at the switch and is silent: the carrier stays, on both sides, and nobody is told.

use anyhow::{Context, Result, ensure};

use crate::cgroup::Hierarchies;
use crate::cluster::Cluster;
use crate::network::{self, nft};
use crate::node;
use crate::topology::Kind;

/// Which frames a cut takes, as seen from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// Frames to the host: it is deaf.
    In,
    /// Frames from the host: it is mute.
    Out,
    /// All frames.
    #[default]
    Both,
}

/// The table in the switch. Frames from a cut port go before the switch has learnt from them, so that the capture on the
/// bridge doesn't show them either; frames to one after everything else has seen them.
const TABLE: &str = "table bridge lab {
    set mute { type ifname; }
    set deaf { type ifname; }
    chain from { type filter hook prerouting priority -300; policy accept; iifname @mute drop; }
    chain to { type filter hook postrouting priority 300; policy accept; oifname @deaf drop; }
}";

/// Makes the table that cuts use.
pub(crate) fn prepare(switch: &netns::Namespace) -> Result<()> {
    nft(switch, TABLE)
}

impl Cluster {
    /// Takes frames from, to or from and to a host, silently. Cutting what is cut is fine.
    pub fn cut(&self, host: &str, direction: Direction) -> Result<()> {
        let port = self.host(host)?.name().to_owned();
        nft(&self.switch().netns()?, &set_lines("add", &port, direction))
    }

    /// Ends a cut, in both directions. Healing what is whole is fine.
    pub fn heal(&self, host: &str) -> Result<()> {
        let port = self.host(host)?.name().to_owned();
        // An element can only be deleted if it is there; adding it again is fine either way, and this is one transaction.
        let both = Direction::Both;
        nft(&self.switch().netns()?, &(set_lines("add", &port, both) + &set_lines("delete", &port, both)))
    }

    /// Loses each frame from and to a host with this probability, in percent. 0 ends it.
    pub fn lose(&self, host: &str, percent: f64) -> Result<()> {
        ensure!((0.0..=100.0).contains(&percent), "{percent} % of frames can't get lost: use 0 to 100");
        let port = self.host(host)?.name().to_owned();
        let mut script = format!(
            "add chain bridge lab loss_{port} {{ type filter hook forward priority 0; policy accept; }}\n\
             flush chain bridge lab loss_{port}\n"
        );
        let of_10000 = (percent * 100.0).round() as u32;
        // Of the numbers 0 to 9999, those up to this one.
        if let Some(highest) = of_10000.checked_sub(1) {
            for direction in ["iifname", "oifname"] {
                script += &format!(
                    "add rule bridge lab loss_{port} {direction} {port} numgen random mod 10000 <= {highest} drop\n"
                );
            }
        } else {
            script += &format!("delete chain bridge lab loss_{port}\n");
        }
        nft(&self.switch().netns()?, &script)
    }

    /// Stops every process of a host where it is, containers' included; its kernel goes on (answers pings, forwards).
    pub fn freeze(&self, host: &str) -> Result<()> {
        self.host(host)?.group().freeze(true)
    }

    /// Lets a frozen host go on.
    pub fn thaw(&self, host: &str) -> Result<()> {
        self.host(host)?.group().freeze(false)
    }

    /// Takes the power from a node or client: silence on its cable first, then no process, no container, no kernel state.
    /// Its disk stays. Returns when all is gone; off is off, so doing it twice is fine.
    pub fn power_off(&self, host: &str) -> Result<()> {
        let host = self.host(host)?;
        let seat = host.seat().context("the switch can't be powered off: cut hosts, or take the cluster down")?;
        ensure!(
            seat.kind != Kind::ControlPlane,
            "the control plane can't be powered off: cut it, freeze it or kill parts"
        );
        let Ok(_plugged) = host.netns() else { return Ok(()) };
        self.cut(host.name(), Direction::Both)?;
        host.group().kill()?;
        // Left over, the next kubelet would ask for containers that are long gone.
        Hierarchies::find()?.remove_subtrees(&self.place().name, host.name())?;
        network::unplug(&self.place().name, &self.switch().netns()?, host.name())
    }

    /// Gives a node or client its power back: a new network namespace at the same place, and on a node containerd,
    /// kubelet and kube-proxy. Returns when those are started; [`Cluster::wait_ready`] waits until the node is Ready.
    pub fn power_on(&self, host: &str) -> Result<()> {
        let host = self.host(host)?;
        let Some(seat) = host.seat() else { return Ok(()) };
        if host.netns().is_ok() {
            return Ok(());
        }
        network::plug(&self.place().name, &self.switch().netns()?, seat, &self.topology().seats())?;
        self.heal(host.name())?;
        if seat.kind == Kind::Node {
            node::boot(&host)?;
            node::start_kubelet(&host, seat)?;
            node::start_kube_proxy(&host, self.topology())?;
        }
        Ok(())
    }
}

fn set_lines(verb: &str, port: &str, direction: Direction) -> String {
    let sets: &[&str] = match direction {
        Direction::In => &["deaf"],
        Direction::Out => &["mute"],
        Direction::Both => &["deaf", "mute"],
    };
    sets.iter().map(|set| format!("{verb} element bridge lab {set} {{ {port} }}\n")).collect()
}
