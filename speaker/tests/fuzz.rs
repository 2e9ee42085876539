//! Fuzzes each decoder of bytes from the wire for a bounded time. No decoder may panic, and accepted input must be
//! consistent.
//!
//! Each test changes inputs of `corpus/` (one per line, in hex) in the ways that often make a parser fail. It changes
//! bits and lengths, and it removes pieces, doubles them or takes them from another input. It changes accepted inputs
//! again.
//!
//! Each run has a fresh seed, and prints it. A failure prints its input and the command that replays it: add the input
//! to the corpus with a comment. `LANDFALL_FUZZ_SECONDS=600` fuzzes for 600 s, `LANDFALL_SEED=7` uses this seed, and
//! `LANDFALL_FUZZ_INPUTS=1000` tries 1000 inputs, regardless of the time.

mod seed;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crds::MacAddr;
use model::eligibility::AnnouncementPolicy;
use model::{SharedMap, stable_hash};
use netlink::links::Link;
use speaker::Config;
use speaker::machine::Machine;
use speaker::wire::arp::{Ignored, Verdict};
use speaker::wire::frame::Channel;
use speaker::wire::hello::Packet;
use speaker::wire::seal::KeyRing;
use speaker::wire::{arp, datagram, ndp};
use speaker::{Keys, Snapshot};

use seed::{base_seed, number, replay_command, test_name};

const MINE: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);

/// The maximal number of inputs in the pool, from which the next inputs are made. In a full pool, an accepted input
/// replaces another one.
const POOL_SIZE: usize = 512;

/// The maximum length of a frame from a socket.
const MAX_LENGTH: usize = 2048;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/tests/corpus/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex");
    lines.map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// Changes inputs of the corpus and passes them to `accepts`, which returns whether it accepts an input.
fn fuzz(name: &str, accepts: impl Fn(&[u8]) -> bool) {
    let mut pool = corpus(name);
    let (seed, limit) = (base_seed(), number("LANDFALL_FUZZ_INPUTS"));
    let accepted_count = pool.iter().filter(|input| attempt(&accepts, input, seed, 0)).count();
    assert!(accepted_count > 0, "no input of the corpus is accepted");
    let end = Instant::now() + Duration::from_secs(number("LANDFALL_FUZZ_SECONDS").unwrap_or(1));
    let mut state = stable_hash::mix64(seed ^ stable_hash::hash(name.as_bytes()));
    let mut below = move |end: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (stable_hash::mix64(state) % end.max(1) as u64) as usize
    };
    let (mut tried, mut accepted) = (0u64, 0u64);
    while limit.map_or_else(|| Instant::now() < end, |limit| tried < limit) {
        let mut input = pool[below(pool.len())].clone();
        for _ in 0..=below(4) {
            let other = pool[below(pool.len())].clone();
            mutate(&mut input, &other, &mut below);
        }
        tried += 1;
        if attempt(&accepts, &input, seed, tried) {
            accepted += 1;
            let at = below(POOL_SIZE);
            if pool.len() < POOL_SIZE { pool.push(input) } else { pool[at] = input }
        }
    }
    eprintln!("{name}: {tried} inputs, {accepted} accepted");
    assert!(accepted > 0 || limit.is_some(), "no changed input is accepted: only the first check was tested");
}

/// Tries one input. `tried` is its number in a run with this seed. Inputs of the corpus have number 0.
fn attempt(accepts: &impl Fn(&[u8]) -> bool, input: &[u8], seed: u64, tried: u64) -> bool {
    catch_unwind(AssertUnwindSafe(|| accepts(input))).unwrap_or_else(|panic| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        let variables = format!("LANDFALL_SEED={seed} LANDFALL_FUZZ_INPUTS={tried}");
        eprintln!("failed with {hex}; this replays it: {}", replay_command(&variables, "fuzz", &test_name()));
        resume_unwind(panic)
    })
}

fn mutate(input: &mut Vec<u8>, other: &[u8], below: &mut impl FnMut(usize) -> usize) {
    let (from, to) = (below(input.len() + 1), below(input.len() + 1));
    let (from, to) = (from.min(to), from.max(to));
    match below(7) {
        0 | 1 if !input.is_empty() => {
            let at = below(input.len());
            input[at] ^= 1 << below(8);
        }
        2 if !input.is_empty() => {
            let at = below(input.len());
            input[at] = [0, 1, 2, 7, 8, 0x7f, 0x80, 0xfe, 0xff][below(9)];
        }
        3 => drop(input.drain(from..to)),
        4 => input.truncate(from),
        5 => {
            let piece = input[from..to].to_vec();
            input.splice(to..to, piece);
        }
        _ => {
            let (start, end) = (below(other.len() + 1), below(other.len() + 1));
            let piece = other[start.min(end)..start.max(end)].to_vec();
            input.splice(from..to, piece);
        }
    }
    input.truncate(MAX_LENGTH);
}

#[test]
fn hello_decoder_accepts_only_consistent_packets() {
    fuzz("hello", |input| {
        let Ok(packet) = Packet::decode(input) else { return false };
        assert!(packet.pages.iter().map(|page| page.claims.len()).sum::<usize>() <= input.len());
        // Encoding the packet and decoding it again returns the same packet. A trailer is not part of a packet.
        assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        true
    });
}

#[test]
fn packets_are_opened_only_if_sealed() {
    let mut ring = KeyRing::default();
    ring.set(Duration::ZERO, &Keys::new([&[7; 32][..]]).expect("a key"));
    fuzz("hello", |input| {
        assert!(ring.open(Duration::ZERO, input).is_err(), "this is not sealed");
        let sealed = ring.seal(Duration::ZERO, input.to_vec());
        assert_eq!(ring.open(Duration::ZERO, &sealed), Ok(input));
        true
    });
}

#[test]
fn datagram_decoder_never_panics_on_any_bytes() {
    fuzz("datagram", |input| datagram::unwrap(input).is_ok_and(|(_, payload)| payload.len() < input.len()));
}

#[test]
fn arp_classifier_answers_with_its_own_address() {
    fuzz("arp", |input| {
        let _ = (arp::address_user(input), arp::answering_host(input));
        let verdict = arp::decide(input, MINE, |lb_ip| lb_ip == Ipv4Addr::new(192, 0, 2, 200));
        if let Verdict::Answer(answer) = &verdict {
            assert_eq!(answer[6..12], MINE.octets());
            assert_eq!(arp::address_user(answer), Some((MINE, Ipv4Addr::new(192, 0, 2, 200).into())));
        }
        verdict != Verdict::Ignore(Ignored::Malformed)
    });
}

#[test]
fn ndp_classifier_answers_with_its_own_address() {
    let lb_ip = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xc8);
    fuzz("ndp", |input| {
        // Almost no changed input has a valid checksum, so this repairs the checksum.
        let mut input = input.to_vec();
        repair(&mut input);
        let _ = (ndp::address_user(&input), ndp::answering_host(&input));
        let verdict = ndp::decide(&input, MINE, |address| address == lb_ip);
        if let Verdict::Answer(answer) = &verdict {
            assert_eq!(ndp::address_user(answer), Some((MINE, lb_ip.into())));
        }
        verdict != Verdict::Ignore(Ignored::Malformed)
    });
}

/// Repairs the checksum and the length, as an attacker would.
fn repair(frame: &mut [u8]) {
    if frame.len() < 58 {
        return;
    }
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[56..58].fill(0);
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
    };
    let mut sum = words(&frame[22..]) + u32::from(length) + 58;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[56..58].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// The peer has the key, so the machine opens its packets.
#[test]
fn machine_survives_packets_of_a_faulty_peer() {
    let mut ring = KeyRing::default();
    let keys = Keys::new([&[7; 32][..]]).expect("a key");
    ring.set(Duration::ZERO, &keys);
    let machine = || {
        let mut machine = Machine::new(Config::new("test", "n0", 1));
        let addresses = vec!["192.0.2.10/24".parse().expect("address"), "2001:db8::a/64".parse().expect("address")];
        let link = Link { index: 2, name: "eth0".into(), mac: MINE, addresses, unusable: vec![], is_bridge: false };
        machine.set_keys(Duration::ZERO, &keys);
        machine.set_links(Duration::ZERO, BTreeMap::from([(2, link)]));
        let candidates = Arc::new(["n0", "n1"].map(String::from).into_iter().collect());
        let lb_ip = Ipv4Addr::new(192, 0, 2, 1).into();
        let addresses = SharedMap::from([(lb_ip, AnnouncementPolicy { candidates, epoch: 0 })]);
        let node_addresses = vec![Ipv4Addr::new(192, 0, 2, 10).into()];
        machine.set_snapshot(Duration::ZERO, Some(Arc::new(Snapshot { node_addresses, addresses })));
        machine.set_forwarded(Arc::new(BTreeSet::from([lb_ip])));
        machine
    };
    let state = std::cell::RefCell::new((machine(), Duration::from_secs(1)));
    fuzz("hello", |input| {
        let Ok(mut packet) = Packet::decode(input) else { return false };
        let (machine, now) = &mut *state.borrow_mut();
        *now += Duration::from_millis(1);
        machine.record_wake(*now);
        (packet.sequence, packet.part) = (now.as_millis() as u64, packet.part % 1024);
        (packet.cluster, packet.mac) = (stable_hash::hash(b"test"), MacAddr(2, 0, 0, 0, 0, 7));
        // Echoes of all recent packets of the machine, so that it believes the peer. Its incarnation is that of the first
        // segment of a speaker with incarnation 1, on the link with index 2.
        let id = speaker::wire::hello::id(stable_hash::mix64(1 ^ stable_hash::mix64(1 << 32 | 2)));
        packet.echoes.extend((0..64).map(|sequence| speaker::wire::hello::Echo { id, sequence }));
        let sealed = ring.seal(*now, packet.encode());
        let source = "192.0.2.7".parse().expect("address");
        let before = machine.counters().packets_received;
        machine.receive(*now, 2, Channel::Hello, &datagram::wrap(packet.mac, source, &sealed));
        let output = machine.poll(*now, 256);
        assert!(output.frames.iter().all(|frame| frame.bytes.len() <= 1514));
        assert!(machine.next_deadline(*now).is_some_and(|next| next < *now + Duration::from_secs(70)));
        machine.counters().packets_received > before
    });
}
