//! The links of network namespaces, against a real kernel.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use crds::MacAddr;
use crds::service::Family;
use ipnet::IpNet;
use netlink::links::{Link, Links};
use netlink::message::{CREATE, Message};
use netlink::notifications::{LINKS, Notifications};
use netlink::packet_route::RouteNetlinkMessage::NewRoute;
use netlink::route::{self, Route};
use netlink::socket::Socket;
use netlink::watch::{follow_links, list_gateways, list_links, watch_links};
use netns::{Namespace, veth};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::watch;
use tokio::time::timeout;

/// The bound of each wait for a change.
const SOON: Duration = Duration::from_secs(20);

/// A node, and a namespace with the other ends of its links. The node has `eth0` and a bridge with a port. Its other
/// links are not listed at first: one has no ARP, one no Ethernet, and one only a host prefix.
fn node() -> (Namespace, Namespace) {
    let (node, other) = (Namespace::new().expect("a namespace"), Namespace::new().expect("a namespace"));
    for link in ["eth0", "eth1", "port", "pod"] {
        veth((&node, link), (&other, link)).expect("a cable");
        other.ip([format!("link set {link} up")]).expect("its other end");
    }
    // Addresses are valid at once, without duplicate address detection.
    node.sysctl("ipv6.conf.eth0.accept_dad", "0").expect("sysctl");
    node.ip([
        "link set lo up",
        "link set eth0 address 02:00:00:00:00:10 up",
        "addr add 192.0.2.11/24 dev eth0",
        "addr add 192.0.2.12/24 dev eth0",
        "addr add 2001:db8::11/64 dev eth0",
        "link set eth1 arp off up",
        "addr add 198.51.100.7/24 dev eth1",
        "link add br0 type bridge",
        "link set br0 address 02:00:00:00:00:20 up",
        "addr add 203.0.113.1/24 dev br0",
        "link set port master br0 up",
        "addr add 203.0.113.2/24 dev port",
        "link set pod up",
        "addr add 192.0.2.200/32 dev pod",
        "tuntap add tun0 mode tun",
        "link set tun0 up",
        "addr add 10.9.0.1/24 dev tun0",
    ])
    .expect("links");
    (node, other)
}

/// The name of each link, its addresses except for link-local ones, and whether it is a bridge.
fn summary(links: &Links) -> Vec<(String, Vec<String>, bool)> {
    let global = |net: &&IpNet| !matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local());
    let texts = |link: &Link| link.addresses.iter().filter(global).map(ToString::to_string).collect();
    links.values().map(|link| (link.name.clone(), texts(link), link.is_bridge)).collect()
}

fn link(name: &str, addresses: &[&str], is_bridge: bool) -> (String, Vec<String>, bool) {
    (name.to_owned(), addresses.iter().map(|address| (*address).to_owned()).collect(), is_bridge)
}

fn eth0() -> (String, Vec<String>, bool) {
    link("eth0", &["192.0.2.11/24", "192.0.2.12/24", "2001:db8::11/64"], false)
}

fn br0() -> (String, Vec<String>, bool) {
    link("br0", &["203.0.113.1/24"], true)
}

/// The links in the order of their names. Their indexes depend on the order of creation.
fn sort_by_name(mut all: Vec<(String, Vec<String>, bool)>) -> Vec<(String, Vec<String>, bool)> {
    all.sort();
    all
}

#[test]
fn links_and_addresses_follow_the_kernel() {
    let (node, other) = node();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let script = async |mut links_rx: watch::Receiver<Option<Links>>| {
        let mut expect = async |why: &str, is_expected: &dyn Fn(&Links) -> bool| {
            let found = timeout(SOON, links_rx.wait_for(|links| links.as_ref().is_some_and(is_expected)));
            assert!(found.await.is_ok(), "{why}: {:?}", *links_rx.borrow());
        };
        let are =
            |expected: Vec<(String, Vec<String>, bool)>| move |links: &Links| sort_by_name(summary(links)) == expected;
        expect("the first list", &are(vec![br0(), eth0()])).await;
        node.ip(["link set eth1 arp on"]).expect("ARP");
        expect("a link with ARP", &are(vec![br0(), eth0(), link("eth1", &["198.51.100.7/24"], false)])).await;
        node.ip(["link del eth1"]).expect("no link");
        expect("a deleted link", &are(vec![br0(), eth0()])).await;
        node.ip(["addr del 192.0.2.11/24 dev eth0"]).expect("no address");
        // The kernel deletes secondary addresses with their primary address.
        expect("a deleted address", &are(vec![br0(), link("eth0", &["2001:db8::11/64"], false)])).await;
        node.ip(["addr add 192.0.2.13/24 dev eth0"]).expect("an address");
        expect("an address", &are(vec![br0(), link("eth0", &["2001:db8::11/64", "192.0.2.13/24"], false)])).await;
        node.ip(["link set eth0 address 02:00:00:00:00:11"]).expect("another MAC address");
        let mac = MacAddr(2, 0, 0, 0, 0, 0x11);
        expect("another MAC address", &|links| links.values().any(|link| link.mac == mac)).await;
        other.ip(["link set eth0 down"]).expect("the cable is pulled");
        expect("a link without a carrier", &are(vec![br0()])).await;
        other.ip(["link set eth0 up"]).expect("the cable is back");
        expect("a carrier", &|links| links.len() == 2).await;
        node.ip(["link set port nomaster"]).expect("a port leaves its bridge");
        expect("a former port", &|links| links.values().any(|link| link.name == "port")).await;
        node.ip(["link set port down", "link set port name lan", "link set lan up"]).expect("another name");
        expect("another name", &|links| links.values().any(|link| link.name == "lan")).await;
    };
    node.run(|| {
        runtime().block_on(async {
            let (links_tx, links_rx) = watch::channel(None);
            tokio::select! {
                end = watch_links(links_tx) => panic!("{end:?}"),
                () = script(links_rx) => {}
            }
        });
    });
}

#[test]
fn an_address_is_usable_after_duplicate_detection() {
    let (node, other) = (Namespace::new().expect("a namespace"), Namespace::new().expect("a namespace"));
    veth((&node, "eth0"), (&other, "eth0")).expect("a cable");
    other.ip(["link set eth0 up", "addr add 2001:db8::1/64 dev eth0 nodad"]).expect("a host");
    node.ip(["link set eth0 up"]).expect("a link");
    node.run(|| {
        let notifications = Notifications::open(LINKS).expect("notifications");
        let mut table = list_links(&mut Socket::open_routing().expect("a socket")).expect("links");
        node.ip(["addr add 2001:db8::1/64 dev eth0", "addr add 2001:db8::2/64 dev eth0"]).expect("addresses");
        // The test polls the raw descriptor, because it runs outside of any async runtime.
        // SAFETY: the descriptor is open for as long as `notifications`.
        #[allow(unsafe_code)]
        let descriptor = unsafe { BorrowedFd::borrow_raw(notifications.as_raw_fd()) };
        let begun = Instant::now();
        let contains_host = |list: &[IpNet], host: u16| {
            list.iter().any(|net| net.addr() == IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]))
        };
        let mut was_unusable = false;
        loop {
            let links = table.links();
            if let Some(link) = links.values().next() {
                was_unusable |= contains_host(&link.unusable, 2);
                // The first address stays unusable, because the other host has it.
                if contains_host(&link.addresses, 2) && contains_host(&link.unusable, 1) {
                    break;
                }
                assert!(!contains_host(&link.addresses, 1), "a duplicate is usable: {links:?}");
            }
            assert!(begun.elapsed() < SOON, "{links:?}");
            let mut all = [PollFd::new(descriptor, PollFlags::POLLIN)];
            poll(&mut all, PollTimeout::from(1000u16)).expect("poll");
            assert!(follow_links(&notifications, &mut table), "no notification is lost");
        }
        assert!(was_unusable, "the address was tentative");
    });
}

#[test]
fn lost_notifications_are_reported_and_a_list_replaces_them() {
    let node = Namespace::new().expect("a namespace");
    node.ip(["link add br0 type bridge", "link set br0 up"]).expect("a link");
    node.run(|| {
        let notifications = Notifications::open(LINKS).expect("notifications");
        let mut socket = Socket::open_routing().expect("a socket");
        let mut table = list_links(&mut socket).expect("links");
        // These addresses cause more notifications than the buffer of the socket holds.
        let line = |host: u32| format!("addr add 10.{}.{}.1/24 dev br0", host / 250, host % 250);
        node.ip((0..2000).map(line)).expect("addresses");
        assert!(!follow_links(&notifications, &mut table), "some are lost");
        table = list_links(&mut socket).expect("links");
        assert!(follow_links(&notifications, &mut table), "nothing is waiting any longer");
        // The kernel itself adds a link-local IPv6 address, which becomes usable a second later. It is not counted.
        let count = |link: Link| link.addresses.iter().filter(|net| net.addr().is_ipv4()).count();
        assert_eq!(table.links().into_values().map(count).collect::<Vec<_>>(), [2000]);
    });
}

#[test]
fn gateways_of_all_tables_and_paths_are_listed() {
    let (node, _other) = node();
    node.ip([
        "route add default via 192.0.2.1",
        "route add 10.0.0.0/8 table 7 nexthop via 192.0.2.2 nexthop via 192.0.2.3",
        "route add ::/0 via fe80::1 dev eth0",
        "route add 10.8.0.0/16 via inet6 fe80::2 dev eth0",
        "route add blackhole 172.16.0.0/12",
    ])
    .expect("routes");
    let expected = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "fe80::1", "fe80::2"];
    let expected = expected.iter().map(|gateway| gateway.parse().expect("an address")).collect();
    assert_eq!(node.run(list_gateways).expect("gateways"), expected);
}

#[test]
fn a_route_with_metrics_survives_the_kernel() {
    let (node, _other) = node();
    node.ip(["route add 10.0.0.0/8 via 192.0.2.1 dev eth0 onlink metric 7 mtu lock 1400 congctl cubic"])
        .expect("a route");
    let find = |table: u32| {
        node.run(|| {
            let mut socket = Socket::open_routing().expect("a socket");
            let request = Message::routing(&route::get_routes(Family::V4, Some(table), None), 0);
            let all = socket.dump(request, |body| Route::decode(&body.routing()?)).expect("routes");
            all.into_iter().find(|route| route.metric == 7)
        })
    };
    let original = find(254).expect("the route");
    let copy = Route { table: 100, ..original };
    node.run(|| {
        let message = Message::routing(&NewRoute(copy.encode()), CREATE);
        Socket::open_routing().expect("a socket").command(message).expect("a copy");
    });
    assert_eq!(find(100), Some(copy));
}
