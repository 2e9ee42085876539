//! Links of other kinds than a cable, and links that vanish: VLANs and bonds need modules that not every kernel has, so
//! `make kernels` runs those tests.

mod cluster;
mod sample;
mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cluster::{Cluster, LinkKind};
use sample::snapshot;
use world::{Net, ask_tcp};

/// The nodes of the pods that answer 60 requests. Each pod sees the client's own address, so frames were sent on.
fn answering_nodes(cluster: &Cluster, net: Net) -> BTreeSet<u8> {
    let client: IpAddr = net.client.parse().expect("an address");
    let answers = (0..60).map(|_| ask_tcp(&cluster.client, &net.port(80)));
    answers.inspect(|answer| assert_eq!(answer.client, client, "{:?}", answer.pod)).map(|answer| answer.pod.0).collect()
}

fn is_spread(kind: LinkKind) {
    let cluster = Cluster::linked_by(kind);
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
    Net::each(|net| {
        cluster.apply(&snapshot([cluster.web(net, &pods)]));
        assert_eq!(answering_nodes(&cluster, net), [1, 2, 3].into());
    });
}

#[test]
#[ignore = "needs 802.1Q: make kernels"]
fn frames_on_a_vlan_are_spread() {
    is_spread(LinkKind::Vlan);
}

#[test]
#[ignore = "needs bonding: make kernels"]
fn frames_on_a_bond_are_spread() {
    is_spread(LinkKind::Bond);
}

#[test]
fn frames_are_spread_again_after_a_link_vanishes() {
    let cluster = Cluster::new();
    let pods = [cluster.pod(1, 5), cluster.pod(2, 5), cluster.pod(3, 5)];
    Net::each(|net| {
        let web = snapshot([cluster.web(net, &pods)]);
        cluster.apply(&web);
        assert_eq!(answering_nodes(&cluster, net), [1, 2, 3].into());
        cluster.replace_link(1);
        // The agent applies the ruleset without the link, and then the one with the new link.
        cluster.apply_unlinked(1, &web);
        cluster.apply(&web);
        assert_eq!(answering_nodes(&cluster, net), [1, 2, 3].into());
    });
}
