//! The cost of one frame of each kind, read or written.
//!
//! `cargo bench -p speaker --bench frames` prints nanoseconds: the median, the minimum and the maximum of all rounds.

#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use crds::MacAddr;
use speaker::wire::{arp, datagram, ndp};

const ROUNDS: usize = 50;
const FRAMES: u32 = 20_000;

const OWN: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);
const HOST: MacAddr = MacAddr(2, 0, 0, 0, 0, 9);
const LB_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const LB_IP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

fn main() {
    let (request, solicitation) = (arp::probe(HOST, LB_IP), ndp::probe(HOST, LB_IP_V6));
    let payload = [7; 200];
    let hello = datagram::wrap(HOST, SOURCE, &payload);
    println!("{:<44}{:>8}{:>8}{:>8}", "nanoseconds", "median", "min", "max");
    row("ARP request, with the reply", || arp::decide(black_box(&request), OWN, |lb_ip| lb_ip == LB_IP));
    row("gratuitous ARP", || arp::gratuitous_reply(OWN, black_box(LB_IP)));
    row("neighbour solicitation, with the reply", || {
        ndp::decide(black_box(&solicitation), OWN, |lb_ip| lb_ip == LB_IP_V6)
    });
    row("unsolicited advertisement", || ndp::unsolicited_advertisement(OWN, black_box(LB_IP_V6)));
    row("Hello of 200 bytes: open", || datagram::unwrap(black_box(&hello)).is_ok());
    row("Hello of 200 bytes: build", || datagram::wrap(OWN, SOURCE, black_box(&payload)));
}

/// Measures one kind of frame and prints its row.
fn row<T>(name: &str, mut frame: impl FnMut() -> T) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..FRAMES {
                black_box(frame());
            }
            begun.elapsed().as_nanos() as f64 / f64::from(FRAMES)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:<44}{:>8.1}{:>8.1}{:>8.1}", rounds[ROUNDS / 2], rounds[0], rounds[ROUNDS - 1]);
}
