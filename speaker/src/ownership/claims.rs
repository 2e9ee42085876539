//! The claims of a node on a link: a set of addresses, each with an epoch.
//!
//! Peers must know each other's claims, thousands of them, at the cost of a few bytes in each Hello and despite lost
//! packets. So claims are sorted into buckets by the hash of their address, and each bucket has a digest. A Hello
//! carries all digests. A receiver whose digest of a bucket differs requests that bucket and receives it as [`Page`]s.
//! Nothing is acknowledged, counted or ordered: after a lost packet, the digests of a later Hello show the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::stable_hash;

/// The greatest epoch. An epoch must fit the `int64` of the API, and shares 64 bits of a packet with three flags.
pub const MAX_EPOCH: u64 = (1 << 61) - 1;

/// The maximum of [`Claims::bits`]: 128 buckets, whose digests take 512 bytes of a Hello.
pub const MAX_BITS: u8 = 7;

/// Up to this number, all claims are in one bucket, which is sent with each Hello (384 bytes for IPv4).
const MAX_IN_EACH_HELLO: usize = 32;

/// The intended number of claims per bucket if there are several buckets. A page with all of them fills about half a
/// packet.
const TARGET_PER_BUCKET: usize = 40;

/// A claim to an address. The greater active claim wins: the higher epoch, then backed, then not ceded. Between equal
/// claims the rank of the node decides ([`crate::ownership::rules`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The number of the claim. A takeover by a node with a quorum raises it.
    pub epoch: u64,
    /// Whether the owner heard a quorum of its peers when it made the claim, or needed none
    /// ([`Position::Backed`](crate::ownership::rules::Position)). An owner without a quorum may itself be cut off, so
    /// its claim must not win against those of the majority.
    pub backed: bool,
    /// Whether the claim is in force. A claim that has ended (a tombstone) is sent for a while, so that the current
    /// owner announces the address again: clients may have heard the former owner last.
    pub active: bool,
    /// Whether the owner intends to keep the address. An owner that cedes it keeps announcing until a successor claims
    /// it ([`crate::ownership::rules`]).
    pub retained: bool,
}

/// A set of claims with the digests of its buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// By the hash of the address, so that each bucket is a range.
    entries: BTreeMap<(u32, IpAddr), Claim>,
    /// There are `1 << bits` buckets.
    bits: u8,
    /// The sum of the entries' digests for each bucket.
    digests: Vec<u32>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), bits: 0, digests: vec![0] }
    }
}

/// All claims of a node to addresses whose hash is in a range. The node claims no other address in that range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The lowest hash in the range.
    pub from: u32,
    /// The highest hash in the range.
    pub to: u32,
    pub claims: Vec<(IpAddr, Claim)>,
}

impl Claims {
    pub fn get(&self, lb_ip: IpAddr) -> Option<Claim> {
        self.entries.get(&(hash_position(lb_ip), lb_ip)).copied()
    }

    /// All claims, in the order of their hashes.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Claim)> + '_ {
        self.entries.iter().map(|((_, lb_ip), claim)| (*lb_ip, *claim))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds the claim and returns the one it replaces.
    pub fn insert(&mut self, lb_ip: IpAddr, claim: Claim) -> Option<Claim> {
        let before = self.remove(lb_ip);
        self.entries.insert((hash_position(lb_ip), lb_ip), claim);
        let digest = &mut self.digests[bucket_of(lb_ip, self.bits)];
        *digest = digest.wrapping_add(claim_digest(lb_ip, claim));
        before
    }

    pub fn remove(&mut self, lb_ip: IpAddr) -> Option<Claim> {
        let claim = self.entries.remove(&(hash_position(lb_ip), lb_ip))?;
        let digest = &mut self.digests[bucket_of(lb_ip, self.bits)];
        *digest = digest.wrapping_sub(claim_digest(lb_ip, claim));
        Some(claim)
    }

    /// The number of hash bits that select the bucket of a claim.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Sorts the claims into `1 << bits` buckets. Returns whether the number of buckets changed.
    pub fn set_bits(&mut self, bits: u8) -> bool {
        if self.bits == bits {
            return false;
        }
        self.bits = bits.min(MAX_BITS);
        self.digests = vec![0; 1 << self.bits];
        for ((_, lb_ip), claim) in &self.entries {
            let digest = &mut self.digests[bucket_of(*lb_ip, self.bits)];
            *digest = digest.wrapping_add(claim_digest(*lb_ip, *claim));
        }
        true
    }

    /// The suitable number of bits for the number of claims.
    pub fn suitable_bits(&self) -> u8 {
        if self.len() <= MAX_IN_EACH_HELLO {
            return 0;
        }
        (1..MAX_BITS).find(|bits| self.len() >> bits <= TARGET_PER_BUCKET).unwrap_or(MAX_BITS)
    }

    pub fn digests(&self) -> &[u32] {
        &self.digests
    }

    /// The buckets whose digest differs from `digests`, one bit each.
    pub fn differing(&self, digests: &[u32]) -> u128 {
        let own = self.digests.iter();
        own.zip(digests).enumerate().filter(|(_, (a, b))| a != b).fold(0, |bits, (n, _)| bits | 1 << n)
    }

    pub fn bucket(&self, lb_ip: IpAddr) -> usize {
        bucket_of(lb_ip, self.bits)
    }

    /// The claims whose hash is in a range, in the order of their hashes, with the hash of each.
    fn range(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, IpAddr, Claim)> {
        let lowest: IpAddr = [0; 4].into();
        let entries = self.entries.range((from, lowest)..).take_while(move |((position, _), _)| *position <= to);
        entries.map(|((position, lb_ip), claim)| (*position, *lb_ip, *claim))
    }

    /// The claims of one bucket, as pages of at most `room` bytes each (see [`encoded_size`]).
    pub fn pages(&self, bucket: usize, room: usize) -> Vec<Page> {
        let (from, to) = bucket_range(bucket, self.bits);
        let (mut pages, mut taken) = (Vec::new(), 0);
        let mut page = Page { from, to, claims: Vec::new() };
        for (position, lb_ip, claim) in self.range(from, to) {
            let last = page.claims.last().map(|(lb_ip, _)| hash_position(*lb_ip));
            // Claims of equal hash stay on one page: a page ends between two hashes.
            if taken + encoded_size(lb_ip) > room && last.is_some_and(|last| last < position) {
                page.to = position - 1;
                pages.push(std::mem::replace(&mut page, Page { from: position, to, claims: Vec::new() }));
                taken = 0;
            }
            taken += encoded_size(lb_ip);
            page.claims.push((lb_ip, claim));
        }
        pages.push(page);
        pages
    }

    /// Replaces the claims in the page's range by those of the page. Returns the addresses whose claim changed.
    pub fn replace(&mut self, page: &Page) -> BTreeSet<IpAddr> {
        let is_inside = |lb_ip: IpAddr| (page.from..=page.to).contains(&hash_position(lb_ip));
        let new: BTreeMap<IpAddr, Claim> = page.claims.iter().copied().filter(|(lb_ip, _)| is_inside(*lb_ip)).collect();
        let old = self.range(page.from, page.to).filter(|(_, lb_ip, claim)| new.get(lb_ip) != Some(claim));
        let mut changed: BTreeSet<IpAddr> = old.map(|(_, lb_ip, _)| lb_ip).collect();
        changed.extend(new.keys().filter(|lb_ip| self.get(**lb_ip).is_none()));
        for lb_ip in &changed {
            match new.get(lb_ip) {
                Some(claim) => self.insert(*lb_ip, *claim),
                None => self.remove(*lb_ip),
            };
        }
        changed
    }
}

/// The number of bytes of a claim in a packet: the address, then epoch and flags.
pub fn encoded_size(lb_ip: IpAddr) -> usize {
    if lb_ip.is_ipv4() { 4 + 8 } else { 16 + 8 }
}

/// The part of the address's hash by which claims are sorted.
fn hash_position(lb_ip: IpAddr) -> u32 {
    (stable_hash::hash_ip(lb_ip) >> 32) as u32
}

fn bucket_of(lb_ip: IpAddr, bits: u8) -> usize {
    // A shift by 32 bits would overflow.
    hash_position(lb_ip).checked_shr(32 - u32::from(bits)).unwrap_or(0) as usize
}

/// The lowest and the highest hash of a bucket.
fn bucket_range(bucket: usize, bits: u8) -> (u32, u32) {
    let width = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
    let from = (bucket as u32).checked_shl(32 - u32::from(bits)).unwrap_or(0);
    (from, from | width)
}

fn claim_digest(lb_ip: IpAddr, claim: Claim) -> u32 {
    let flags = u64::from(claim.backed) << 2 | u64::from(claim.active) << 1 | u64::from(claim.retained);
    let claim = claim.epoch << 3 | flags;
    stable_hash::mix64(stable_hash::hash_ip(lb_ip) ^ stable_hash::mix64(claim)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLAIM: Claim = Claim { epoch: 1, backed: true, active: true, retained: true };

    fn claims_to(addresses: impl IntoIterator<Item = u32>) -> Claims {
        let mut claims = Claims::default();
        for n in addresses {
            claims.insert(IpAddr::from(n.to_be_bytes()), CLAIM);
        }
        claims.set_bits(claims.suitable_bits());
        claims
    }

    #[test]
    fn each_page_of_five_thousand_claims_fits_a_packet() {
        let claims = claims_to(0..5000);
        assert_eq!(claims.bits(), 7);
        let pages: Vec<Page> = (0..128).flat_map(|bucket| claims.pages(bucket, 1000)).collect();
        assert_eq!(pages.len(), 128);
        assert_eq!(pages.iter().map(|page| page.claims.len()).sum::<usize>(), 5000);
    }

    proptest! {
        #[test]
        fn reading_all_differing_pages_yields_equal_claims(
            mine in proptest::collection::btree_set(0u32..600, 0..300),
            known in proptest::collection::btree_set(0u32..600, 0..300),
            room in 1usize..1000,
        ) {
            let (mine, mut copy) = (claims_to(mine), claims_to(known));
            copy.set_bits(mine.bits());
            let differing = copy.differing(mine.digests());
            for bucket in (0..128).filter(|bucket| differing & 1 << bucket != 0) {
                for page in mine.pages(bucket, room) {
                    copy.replace(&page);
                }
            }
            prop_assert_eq!(copy, mine);
        }

        #[test]
        fn digests_do_not_depend_on_history(
            addresses in proptest::collection::vec(any::<u32>(), 0..100),
            bits in 0u8..=MAX_BITS,
        ) {
            let mut straight = claims_to(addresses.iter().copied());
            straight.set_bits(bits);
            let mut detour = Claims::default();
            detour.set_bits(bits);
            for n in addresses.iter().rev() {
                detour.insert(IpAddr::from(n.to_be_bytes()), Claim { active: false, ..CLAIM });
                detour.insert(IpAddr::from(n.to_be_bytes()), CLAIM);
            }
            prop_assert_eq!(straight.digests(), detour.digests());
        }
    }
}
