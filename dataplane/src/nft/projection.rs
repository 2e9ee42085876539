//! [`Ruleset`] → [`Elements`]: [`ruleset_elements`]. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::MacAddr;
use crds::service::Family;

use super::chain_name::ChainName;
use super::dispatch_id::DispatchId;
use super::elements::{ElementKey, ElementValue, Elements, KeyParts};
use super::layout::{ETHERNET, FIRST_CLIENT_SLOT, SetId, Table};
use super::optional_chains::OptionalChain;
use crate::rules::{
    Frontend, HashBy, LbIp, NextHops, PairId, ProxyTarget, Ruleset, SlotTable, SpreadKey, TableId, Target,
};

/// An element with its value.
pub type Element = (ElementKey, ElementValue);

/// All elements of a ruleset.
pub fn ruleset_elements(ruleset: &Ruleset) -> Elements {
    all_elements(ruleset).collect()
}

/// All elements of a ruleset, each once, in no particular order.
pub fn all_elements(ruleset: &Ruleset) -> impl Iterator<Item = Element> {
    let mut few: Elements = shared_elements(ruleset).into_iter().collect();
    for (id, table) in ruleset.tables() {
        few.extend(table_elements(id, table));
    }
    few.extend(next_hop_elements(&ruleset.next_hops));
    let many = ruleset.addresses.iter().flat_map(|(address, lb_ip)| lb_ip_elements(*address, lb_ip));
    few.into_iter().chain(many)
}

/// The marker of a table or pair, which takes the place of a MAC address while a frame is looked up. It is a group
/// address, so it differs from the address of every host.
fn marker(id: u64) -> MacAddr {
    let [_, _, first, b, c, d, e, f] = id.to_be_bytes();
    MacAddr(first | 1, b, c, d, e, f)
}

/// The elements of a share table.
pub fn table_elements(id: TableId, table: &SlotTable) -> Vec<Element> {
    let start = match table.hash_by {
        HashBy::Flow => 0,
        HashBy::Client => FIRST_CLIENT_SLOT,
    };
    let slot = |(slot, pair): (&u32, &PairId)| {
        let key = KeyParts::Slot(marker(id.0), start + slot);
        (ElementKey::In(Table::Link, SetId::Slots, key), ElementValue::Mac(marker(pair.0)))
    };
    table.slots.iter().map(slot).collect()
}

/// The elements that depend on links and dead nodes. A chain can occur several times.
pub fn next_hop_elements(next_hops: &NextHops) -> Vec<Element> {
    let mut elements = Vec::new();
    let element = |set, key, value| (ElementKey::In(Table::Link, set, key), value);
    let present = |set, key| element(set, key, ElementValue::Present);
    for (name, link) in &next_hops.links {
        elements.push((ElementKey::Chain(Table::Link, ChainName::Ingress(*name)), ElementValue::Present));
        elements.push(present(SetId::Own, KeyParts::LinkMac(*name, link.mac)));
        elements.push(element(SetId::Macs, KeyParts::Link(*name), ElementValue::Mac(link.mac)));
        elements.push(present(SetId::Alive, KeyParts::LinkMac(*name, link.mac)));
        elements.extend(link.peers.values().map(|mac| present(SetId::Peers, KeyParts::Mac(*mac))));
        let alive = link.peers.iter().filter(|(node, _)| !next_hops.dead.contains(*node));
        elements.extend(alive.map(|(_, mac)| present(SetId::Alive, KeyParts::LinkMac(*name, *mac))));
    }
    for ((link, pair), mac) in &next_hops.hops {
        let key = KeyParts::LinkMac(*link, marker(pair.0));
        elements.push(element(SetId::Hops, key, ElementValue::Mac(*mac)));
    }
    for ((family, ring), successor) in &next_hops.successors {
        let table = Table::for_family(*family);
        let (chain, key) = (ChainName::Tries(successor.others), KeyParts::DispatchId(DispatchId(ring.0)));
        for chain in [chain, ChainName::Optional(OptionalChain::SecondChance)] {
            elements.push((ElementKey::Chain(table, chain), ElementValue::Present));
        }
        elements.push((ElementKey::In(table, SetId::Tries, key), ElementValue::Goto(chain)));
        let address = successor.address.map(ElementValue::Address);
        elements.extend(address.map(|address| (ElementKey::In(table, SetId::Successors, key), address)));
    }
    elements
}

/// The elements that belong to no single lb_ip.
pub fn shared_elements(ruleset: &Ruleset) -> Vec<Element> {
    let mut elements = Vec::new();
    for family in Family::ALL {
        let table = Table::for_family(family);
        let mut chain = |name| elements.push((ElementKey::Chain(table, name), ElementValue::Present));
        let dispatches: Vec<_> = ruleset.dispatches().filter(|(of, _)| *of == family).map(|(_, one)| one).collect();
        dispatches.iter().for_each(|dispatch| chain(ChainName::Dispatch(*dispatch)));
        let timeouts: BTreeSet<u32> = dispatches.iter().filter_map(|dispatch| dispatch.affinity).collect();
        timeouts.iter().for_each(|seconds| chain(ChainName::Remember(*seconds)));
        if !timeouts.is_empty() {
            chain(ChainName::Optional(OptionalChain::LearnInput));
            chain(ChainName::Optional(OptionalChain::LearnPostrouting));
        }
        // A table without any lb_ip does not exist, so it has no elements either.
        let Some(lb_ip) = any_lb_ip(ruleset, family) else { continue };
        if lb_ip.counted {
            chain(ChainName::Optional(OptionalChain::CountTraffic));
        }
        for path in ruleset.reply_paths.iter().filter(|path| path.family == family) {
            chain(ChainName::MarkConnection(path.link, path.mark));
            chain(ChainName::MarkForwardedReply(path.mark));
            chain(ChainName::MarkLocalReply(path.mark));
        }
        for dispatch in dispatches {
            let key = KeyParts::DispatchId(DispatchId::new(dispatch));
            let value = ElementValue::Goto(ChainName::Dispatch(dispatch));
            elements.push((ElementKey::In(table, SetId::Ways, key), value));
        }
        let present = |set, key| (ElementKey::In(table, set, key), ElementValue::Present);
        elements.extend(ruleset.lan_links.iter().map(|link| present(SetId::Links, KeyParts::Link(*link))));
        if !ruleset.lan_links.is_empty() {
            elements.push(present(SetId::PodLinkTypes, KeyParts::LinkType(ETHERNET)));
        }
    }
    elements
}

/// An lb_ip of this family with a port that Landfall forwards, if there is one.
fn any_lb_ip(ruleset: &Ruleset, family: Family) -> Option<&Arc<LbIp>> {
    // Addresses are sorted, IPv4 before IPv6.
    let is_of_family = |(address, _): &(&IpAddr, &Arc<LbIp>)| Family::from(**address) == family;
    let is_ours = |(_, lb_ip): &(&IpAddr, &Arc<LbIp>)| !lb_ip.is_left_alone();
    let found = match family {
        Family::V4 => ruleset.addresses.iter().take_while(is_of_family).find(is_ours),
        Family::V6 => ruleset.addresses.iter().rev().take_while(is_of_family).find(is_ours),
    };
    found.map(|(_, lb_ip)| lb_ip)
}

/// Whether this table has anything to do.
pub fn is_needed(ruleset: &Ruleset, table: Table) -> bool {
    match table.family() {
        Some(family) => any_lb_ip(ruleset, family).is_some(),
        None => ruleset.tables().next().is_some(),
    }
}

/// The initial capacity for the elements of an lb_ip: enough for most.
const USUAL_ELEMENTS: usize = 24;

/// The elements of one lb_ip; none if its packets pass unchanged.
pub fn lb_ip_elements(address: IpAddr, lb_ip: &LbIp) -> Vec<Element> {
    if lb_ip.is_left_alone() {
        return Vec::new();
    }
    let mut elements =
        LbIpElements { table: Table::for_address(address), elements: Vec::with_capacity(USUAL_ELEMENTS) };
    elements.push(SetId::Addresses, KeyParts::Address(address), ElementValue::Present);
    let (mut local, mut node) = (BTreeSet::new(), None);
    for (&(protocol, port), target) in &lb_ip.ports {
        let frontend = Frontend { address, protocol, port };
        if target.other_proxy {
            elements.push(SetId::Refused, KeyParts::Frontend(frontend), ElementValue::Return);
            continue;
        }
        if let Some(ProxyTarget::NodePort(at)) = target.proxied {
            node = Some(at.ip());
        }
        elements.push_port(frontend, target, lb_ip.counted);
        let here = target.endpoints.iter().filter(|endpoint| !endpoint.remote);
        local.extend(here.map(|endpoint| endpoint.address.ip()));
    }
    if let Some(node) = node {
        elements.push(SetId::Nodes, KeyParts::Address(address), ElementValue::Address(node));
    }
    elements.push_spread(address, lb_ip);
    for endpoint in local {
        elements.push(SetId::Local, KeyParts::Pair(address, endpoint), ElementValue::Present);
        elements.push(SetId::Hairpin, KeyParts::Hairpin(address, endpoint), ElementValue::Present);
    }
    elements.elements
}

/// Collects the elements of one lb_ip.
struct LbIpElements {
    /// The table that translates packets to it.
    table: Table,
    elements: Vec<Element>,
}

impl LbIpElements {
    fn push(&mut self, set: SetId, key: KeyParts, value: ElementValue) {
        self.elements.push((ElementKey::In(self.table, set, key), value));
    }

    /// Adds the elements of one port.
    fn push_port(&mut self, frontend: Frontend, target: &Target, counted: bool) {
        let key = KeyParts::Frontend(frontend);
        match target.proxied {
            Some(ProxyTarget::NodePort(at)) => self.push(SetId::NodePorts, key, ElementValue::Port(at.port())),
            Some(ProxyTarget::ClusterIp(at)) => self.push(SetId::ClusterIps, key, ElementValue::Address(at)),
            None => {}
        }
        // These elements exist as long as the port, even if it has no endpoints, so that no count is lost.
        self.push(SetId::Begun, key, ElementValue::Present);
        if counted {
            self.push(SetId::Traffic, key, ElementValue::Present);
        }
        if let Some(ring) = &target.ring {
            self.push(SetId::Rings, key, ElementValue::DispatchId(DispatchId(ring.id().0)));
        }
        if target.endpoints.is_empty() {
            let refuse = ChainName::Refuse { restricted: target.sources.is_some() };
            self.push(SetId::Refused, key, ElementValue::Goto(refuse));
        }
        let (outside, inside) = (target.outside_dispatch(), target.inside_dispatch());
        if let Some(dispatch) = outside {
            self.push(SetId::Services, key, ElementValue::DispatchId(DispatchId::new(dispatch)));
        }
        if let Some(dispatch) = inside.filter(|_| inside != outside) {
            self.push(SetId::Inside, key, ElementValue::DispatchId(DispatchId::new(dispatch)));
        }
        if let Some(seconds) = target.affinity.filter(|_| !target.endpoints.is_empty()) {
            self.push(SetId::Remember, key, ElementValue::Goto(ChainName::Remember(seconds)));
        }
        for range in target.sources.iter().flat_map(|ranges| ranges.iter()) {
            self.push(SetId::Sources, KeyParts::FrontendRange(frontend, *range), ElementValue::Present);
        }
        if target.proxied.is_none() {
            for (index, endpoint) in (0..).zip(&target.endpoints) {
                let value = ElementValue::Endpoint(endpoint.address);
                self.push(SetId::Endpoints, KeyParts::FrontendIndex(frontend, index), value);
            }
        }
    }

    /// Adds the elements that spread the frames of an lb_ip.
    fn push_spread(&mut self, address: IpAddr, lb_ip: &LbIp) {
        let family = Family::from(address);
        let set = |pair| SetId::by_family(family, pair);
        let mut push = |set, key, value| self.elements.push((ElementKey::In(Table::Link, set, key), value));
        let mut is_spread = false;
        for (key, share, hash_by) in lb_ip.shares() {
            is_spread = true;
            let value = ElementValue::Mac(marker(share.table_id_by(hash_by).0));
            match key {
                SpreadKey::Port(protocol, port) => {
                    let key = KeyParts::Frontend(Frontend { address, protocol, port });
                    push(set([SetId::Classes4, SetId::Classes6]), key, value);
                }
                SpreadKey::Protocol(protocol) => {
                    let key = KeyParts::AddressProtocol(address, protocol);
                    push(set([SetId::Wholes4, SetId::Wholes6]), key, value);
                }
            }
        }
        if is_spread {
            push(set([SetId::Spread4, SetId::Spread6]), KeyParts::Address(address), ElementValue::Present);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_differs_from_the_address_of_every_host() {
        for id in [0, 1, u64::MAX >> 17, 0x1234_5678_9abc] {
            assert_eq!(marker(id).octets()[0] & 1, 1, "a group address");
        }
    }
}
