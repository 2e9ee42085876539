//! How the content of a Hello is divided into packets.

use crate::ownership::claims::{self, Page};
use crate::wire::codec::{PAGE_OVERHEAD, size, trailer};
use crate::wire::hello::{self, Heard, HeardRange, Packet};

/// The maximum number of packets of one Hello: its parts and the Hello itself.
pub const MAX_PARTS: usize = 1024;

/// The lists of a Hello, each with the ids of peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerLists {
    /// Sorted by id.
    pub heard: Vec<Heard>,
    pub echoes: Vec<hello::Echo>,
    pub bucket_requests: Vec<hello::BucketRequest>,
    /// At most [`trailer::MAX_RELAY_REQUESTS`](crate::wire::codec::trailer::MAX_RELAY_REQUESTS). The Hello has room for them.
    pub relay_requests: Vec<hello::RelayRequest>,
}

impl PeerLists {
    fn size(&self) -> usize {
        self.heard.len() * size::HEARD
            + self.echoes.len() * size::ECHO
            + self.bucket_requests.len() * size::BUCKET_REQUEST
    }
}

/// Packs the content into packets. Each has at most `room` bytes of content, and the Hello is the last one. `empty` is
/// the packet without content.
pub fn pack(empty: Packet, digests: Vec<u32>, lists: PeerLists, pages: Vec<Page>, room: usize) -> Vec<Packet> {
    let mut left = room - digests.len() * size::DIGEST - trailer::encoded_size(lists.relay_requests.len());
    let all = u16::try_from(lists.heard.len()).unwrap_or(u16::MAX);
    let mut hello = Packet { digests: Some(digests), ..empty.clone() };
    hello.heard.all = all;
    hello.relay_requests = lists.relay_requests.clone();
    let mut parts: Vec<Packet> = Vec::new();
    if lists.size() <= left {
        left -= lists.size();
        hello.heard = HeardRange { all, from: 0, to: u32::MAX, peers: lists.heard };
        (hello.echoes, hello.bucket_requests) = (lists.echoes, lists.bucket_requests);
    } else {
        let ranges = split_heard(&lists.heard, room / size::HEARD).into_iter();
        parts.extend(ranges.map(|heard| Packet { heard, ..empty.clone() }));
        // Each list gets half a packet. Entries without room are sent with a later Hello.
        let (mut echoes, mut bucket_requests) = (lists.echoes, lists.bucket_requests);
        rotate_and_truncate(&mut echoes, room / 2 / size::ECHO, empty.sequence);
        rotate_and_truncate(&mut bucket_requests, room / 2 / size::BUCKET_REQUEST, empty.sequence);
        if !echoes.is_empty() || !bucket_requests.is_empty() {
            parts.push(Packet { heard: hello.heard.clone(), echoes, bucket_requests, ..empty.clone() });
        }
    }
    if pages.iter().map(page_size).sum::<usize>() <= left {
        hello.pages = pages;
    } else {
        pack_pages(&empty, &hello.heard, pages, room, &mut parts);
    }
    // If claims are left out, peers request them.
    parts.truncate(MAX_PARTS - 1);
    for (part, packet) in (1..).zip(&mut parts) {
        packet.part = part;
    }
    parts.push(hello);
    parts
}

/// Appends packets with these pages to `parts`. A packet repeats the list of heard peers if the list fits.
fn pack_pages(empty: &Packet, heard: &HeardRange, pages: Vec<Page>, room: usize, parts: &mut Vec<Packet>) {
    let mut left = 0;
    for page in pages {
        if page_size(&page) > left {
            let room_beside_list = room - heard.peers.len() * size::HEARD;
            if page_size(&page) <= room_beside_list {
                parts.push(Packet { heard: heard.clone(), ..empty.clone() });
                left = room_beside_list;
            } else {
                // The page takes the whole packet: this part covers no ids. The Hello covers them.
                let heard = HeardRange { all: heard.all, from: 1, to: 0, peers: vec![] };
                parts.push(Packet { heard, ..empty.clone() });
                left = room;
            }
        }
        left = left.saturating_sub(page_size(&page));
        parts.last_mut().expect("invariant: the first page opens a packet").pages.push(page);
    }
}

/// Splits `heard`, which is sorted, into ranges of at most `limit` entries that together cover all ids.
fn split_heard(heard: &[Heard], limit: usize) -> Vec<HeardRange> {
    let all = u16::try_from(heard.len()).unwrap_or(u16::MAX);
    let mut ranges: Vec<HeardRange> = Vec::new();
    for peers in heard.chunks(limit) {
        let from = ranges.last().map_or(0, |before| before.to.saturating_add(1));
        let to = peers.last().map_or(u32::MAX, |last| last.id);
        ranges.push(HeardRange { all, from, to, peers: peers.to_vec() });
    }
    match ranges.last_mut() {
        Some(last) => last.to = u32::MAX,
        None => ranges.push(HeardRange { all, from: 0, to: u32::MAX, peers: vec![] }),
    }
    ranges
}

/// Shortens `list` to `limit` entries. With each sequence other entries remain, so that all are sent in turn.
fn rotate_and_truncate<T>(list: &mut Vec<T>, limit: usize, sequence: u64) {
    if list.len() > limit {
        let by = (sequence as usize).wrapping_mul(limit) % list.len();
        list.rotate_left(by);
        list.truncate(limit);
    }
}

fn page_size(page: &Page) -> usize {
    PAGE_OVERHEAD + page.claims.iter().map(|(lb_ip, _)| claims::encoded_size(*lb_ip)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::time::Duration;

    use crds::MacAddr;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::wire::codec;

    const ROOM: usize = 1000;

    fn empty() -> Packet {
        Packet {
            cluster: 1,
            node: "n1".into(),
            mac: MacAddr(2, 0, 0, 0, 0, 1),
            link: "eth0".into(),
            incarnation: 2,
            sequence: 3,
            part: 0,
            interval: Config::INTERVAL,
            leaving: false,
            blind: false,
            routine: false,
            heard: HeardRange { all: 0, from: 1, to: 0, peers: vec![] },
            echoes: vec![],
            probed: vec![],
            bucket_requests: vec![],
            relay_requests: vec![],
            bits: 7,
            digests: None,
            pages: vec![],
        }
    }

    proptest! {
        /// No packet is too large. All heard peers are listed. Each id is covered, and all packets that cover it agree
        /// whether it is heard.
        #[test]
        fn any_amount_of_content_fits(
            ids in btree_set(any::<u32>(), 0..800),
            echoes in 0u32..400,
            requests in 0u32..200,
            relays in 0..=trailer::MAX_RELAY_REQUESTS,
            pages in vec(0u32..70, 0..40),
            id in any::<u32>(),
        ) {
            let heard: Vec<Heard> = ids.iter().map(|id| Heard { id: *id, age: Duration::ZERO }).collect();
            let request = hello::RelayRequest { relay: 1, id: 2, is_served: true };
            let lists = PeerLists {
                heard,
                echoes: (0..echoes).map(|id| hello::Echo { id, sequence: 0 }).collect(),
                bucket_requests: (0..requests).map(|id| hello::BucketRequest { id, buckets: 1 }).collect(),
                relay_requests: vec![request; relays],
            };
            let claim = claims::Claim { epoch: 1, backed: true, active: true, retained: true };
            let claims = |n: u32| (0..n).map(|n| (IpAddr::from(n.to_be_bytes()), claim)).collect();
            let pages: Vec<Page> = pages.into_iter().map(|n| Page { from: 0, to: n, claims: claims(n) }).collect();
            let packets = pack(empty(), vec![0; 128], lists, pages.clone(), ROOM);
            let limit = ROOM + codec::overhead("n1", "eth0");
            prop_assert!(packets.iter().all(|packet| packet.encode().len() <= limit));
            let (hello, parts) = packets.split_last().expect("a Hello");
            prop_assert!(hello.digests.is_some() && hello.part == 0);
            prop_assert!(parts.iter().all(|part| part.digests.is_none() && part.part > 0));
            prop_assert!(packets.iter().all(|packet| packet.heard.all as usize == ids.len()));
            let covering: Vec<&Packet> = packets.iter().filter(|packet| packet.heard.covers(id)).collect();
            prop_assert!(!covering.is_empty());
            for packet in covering {
                prop_assert_eq!(packet.heard.peers.iter().any(|heard| heard.id == id), ids.contains(&id));
            }
            let heard = packets.iter().flat_map(|packet| &packet.heard.peers).map(|heard| heard.id);
            prop_assert_eq!(heard.collect::<BTreeSet<u32>>(), ids);
            let sent: Vec<Page> = packets.into_iter().flat_map(|packet| packet.pages).collect();
            prop_assert_eq!(sent, pages);
        }
    }

    #[test]
    fn entries_without_room_are_sent_later() {
        let sent = |sequence| {
            let mut list: Vec<u32> = (0..10).collect();
            rotate_and_truncate(&mut list, 4, sequence);
            list
        };
        let all: BTreeSet<u32> = (5..8).flat_map(sent).collect();
        assert_eq!(all.len(), 10);
        assert_eq!((sent(0), sent(1)), (vec![0, 1, 2, 3], vec![4, 5, 6, 7]));
    }
}
