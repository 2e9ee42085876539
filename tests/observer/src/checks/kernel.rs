//! Leftovers in the kernel of a node: the kernel's part of I5 and I13. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// The state of a node's kernel, as lines: tables, rules, routes, addresses, groups, sysctls, sockets.
pub type KernelState = BTreeSet<String>;

/// Lines with these words are not Landfall's: interfaces of pods come and go, and kube-proxy creates its tables at a
/// time of its own.
const FOREIGN: [&str; 2] = ["veth", " kube-proxy"];

/// Lines that exist after an uninstallation, but not before the installation.
pub fn find_leftovers(before: &KernelState, after: &KernelState) -> Vec<String> {
    let is_foreign = |line: &String| FOREIGN.iter().any(|word| line.contains(word));
    after.difference(before).filter(|line| !is_foreign(line)).cloned().collect()
}

/// All addresses in a text.
pub fn find_addresses(text: &str) -> BTreeSet<IpAddr> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':');
    words.filter_map(|word| word.trim_end_matches(':').parse().ok()).collect()
}

/// Whether a line is a tracked flow that may stay after the removal of its address. A TCP connection ends by itself. A
/// flow that is not translated belongs to a packet that arrived after the removal. Landfall must delete all other
/// flows: a client could keep a translated UDP flow alive for ever.
fn may_stay(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let is_tracked = line.contains(" src=") && line.contains(" dst=");
    let is_udp = words.next() == Some("udp");
    let sides = |prefix: &str| -> Vec<&str> { line.split(' ').filter_map(|word| word.strip_prefix(prefix)).collect() };
    let is_translated = sides("dst=").first() != sides("src=").get(1);
    is_tracked && !(is_udp && is_translated)
}

/// The group to which solicitations for an address are sent (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]))
}

/// The addresses without a record that a node's kernel still knows, each with the line that has it: in Landfall's
/// tables, in tracked flows, or as a group. `used` are the addresses that have a record or belong to a host.
pub fn find_gone_addresses<'a>(
    dump: &'a str,
    gone: &BTreeSet<IpAddr>,
    used: &BTreeSet<IpAddr>,
) -> BTreeMap<IpAddr, &'a str> {
    let mut present: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for line in dump.lines().filter(|line| !may_stay(line)) {
        present.extend(find_addresses(line).into_iter().map(|address| (address, line.trim())));
    }
    let group = |address: &IpAddr| match address {
        IpAddr::V6(address) => Some(solicited_node(*address)),
        IpAddr::V4(_) => None,
    };
    let used_groups: BTreeSet<Ipv6Addr> = used.iter().filter_map(group).collect();
    let group_line = |address: &IpAddr| {
        let group = group(address).filter(|group| !used_groups.contains(group))?;
        present.get(&group.into()).copied()
    };
    let line = |address: &IpAddr| present.get(address).copied().or_else(|| group_line(address));
    gone.difference(used).filter_map(|address| Some((*address, line(address)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: &str =
        "udp 17 9 src=192.0.2.101 dst=192.0.2.200 sport=1 dport=80 src=10.244.1.2 dst=192.0.2.101 sport=8080";
    const TCP: &str =
        "tcp 6 9 ESTABLISHED src=192.0.2.101 dst=192.0.2.200 sport=1 src=10.244.1.2 dst=192.0.2.101 sport=80";
    const LATE: &str = "udp 17 9 src=192.0.2.101 dst=192.0.2.200 sport=1 [UNREPLIED] src=192.0.2.200 dst=192.0.2.101";

    fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
        all.iter().map(|address| address.parse().expect("an address")).collect()
    }

    #[test]
    fn only_new_lines_are_leftovers() {
        let state = |lines: &[&str]| -> KernelState { lines.iter().map(|line| (*line).to_owned()).collect() };
        let before = state(&["table ip lab", "sysctl net/ipv4/ip_forward 1", "rule 0: from all lookup local"]);
        for (case, after, expected) in [
            ("nothing changed", &["table ip lab"][..], &[][..]),
            ("a table", &["table ip lab", "table ip landfall"], &["table ip landfall"]),
            ("a sysctl", &["sysctl net/ipv4/ip_forward 0"], &["sysctl net/ipv4/ip_forward 0"]),
            ("a rule", &["rule 760: fwmark 0x10 lookup 76001"], &["rule 760: fwmark 0x10 lookup 76001"]),
            ("a pod", &["route 10.244.1.5 dev veth12"], &[]),
            ("kube-proxy", &["table ip kube-proxy"], &[]),
        ] {
            assert_eq!(find_leftovers(&before, &state(after)), expected, "{case}");
        }
    }

    #[test]
    fn addresses_are_found_in_the_output_of_nft() {
        let text = "elements = { 192.0.2.200 . tcp . 80 : 0x3, 2001:db8::200 . udp . 80 timeout 5s }\nsrc=10.0.0.1 dst=192.0.2.201: x";
        assert_eq!(find_addresses(text), addresses(&["192.0.2.200", "2001:db8::200", "10.0.0.1", "192.0.2.201"]));
    }

    #[test]
    fn a_kernel_must_forget_addresses_without_a_record() {
        let gone = addresses(&["192.0.2.200", "2001:db8::200", "2001:db8::201"]);
        for (case, dump, used, expected) in [
            ("nothing left", "elements = { 192.0.2.199 }", &[][..], &[][..]),
            ("an element", "elements = { 192.0.2.200 }", &[], &["192.0.2.200"]),
            ("used again", "elements = { 192.0.2.200 }", &["192.0.2.200"], &[]),
            ("a group", "inet6 ff02::1:ff00:200", &[], &["2001:db8::200"]),
            ("the group of another address", "inet6 ff02::1:ff00:200", &["2001:db8:1::200"], &[]),
            ("a translated UDP flow", UDP, &[], &["192.0.2.200"]),
            ("a TCP connection", TCP, &[], &[]),
            ("a flow without translation", LATE, &[], &[]),
            ("two", "{ 192.0.2.200, 2001:db8::201 . tcp }", &[], &["192.0.2.200", "2001:db8::201"]),
        ] {
            let found = find_gone_addresses(dump, &gone, &addresses(used));
            assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), addresses(expected), "{case}");
        }
    }
}
