//! The forwarding state of this node: [`Forwarding`], as published to other parts. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crds::Reach;

use crate::rules::{LbIp, Problem};

/// The forwarding state of this node. An lb_ip is published after the kernel has acknowledged its rules, and withdrawn
/// before its rules are removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The lb_ips that are programmed. Only these may be announced from here.
    pub addresses: BTreeSet<IpAddr>,
    /// The lb_ips with an endpoint for packets from outside, or with a port that another proxy forwards. Under the
    /// traffic policy Local, that endpoint is on this node.
    pub serving: BTreeSet<IpAddr>,
    /// How packets from outside reach endpoints on other nodes.
    pub reach: BTreeMap<IpAddr, Reach>,
    /// The parts of Services that are not forwarded as their specs require.
    pub problems: BTreeMap<IpAddr, BTreeSet<Problem>>,
    /// Whether the kernel refuses to mark connections, so that replies may leave by another link than the request came
    /// in by.
    pub marks_refused: bool,
}

impl Forwarding {
    /// Sets or removes the entry of `address` in each field. Returns whether an entry changed. Logs new mistakes.
    pub(super) fn set(&mut self, address: IpAddr, lb_ip: Option<&LbIp>) -> bool {
        let set_in = |set: &mut BTreeSet<IpAddr>, is_in| if is_in { set.insert(address) } else { set.remove(&address) };
        let address_changed = set_in(&mut self.addresses, lb_ip.is_some());
        let serving_changed = set_in(&mut self.serving, lb_ip.is_some_and(serves_outside));
        let reach_changed = replace(&mut self.reach, address, lb_ip.map(LbIp::reach).as_ref());
        let problems = lb_ip.map(|lb_ip| &lb_ip.problems).filter(|problems| !problems.is_empty());
        let problems_changed = replace(&mut self.problems, address, problems);
        if problems_changed {
            for problem in problems.into_iter().flatten().filter(|problem| problem.is_mistake()) {
                tracing::warn!(lb_ip = %address, %problem, "a part of a Service is not forwarded");
            }
        }
        address_changed || serving_changed || reach_changed || problems_changed
    }
}

/// Sets or removes the value of `address`. Returns whether it changed.
fn replace<V: Clone + PartialEq>(map: &mut BTreeMap<IpAddr, V>, address: IpAddr, value: Option<&V>) -> bool {
    let is_changed = map.get(&address) != value;
    if is_changed {
        match value {
            Some(value) => map.insert(address, value.clone()),
            None => map.remove(&address),
        };
    }
    is_changed
}

/// Whether packets from outside have an endpoint, or another proxy forwards them.
fn serves_outside(lb_ip: &LbIp) -> bool {
    lb_ip.ports.values().any(|target| target.outside.count > 0 || target.other_proxy)
}
