//! What a node claims on a link: which addresses, each with an epoch.
//!
//! Peers have to know each other's claims, thousands of them, at the price of a few bytes in each Hello and in spite of
//! lost packets. So a set of claims has digests: claims fall into buckets by the hash of their address, each bucket has
//! a digest, and a Hello carries all digests. Whoever finds one that differs from what it knows asks for that bucket and
//! gets it as [`Page`]s. Nothing has to be acknowledged, counted or kept in order, and what is lost heals by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use model::stable_hash;

/// No epoch is greater: it has to fit the `int64` of the API, and a packet has three bits for something else.
pub const MAX_EPOCH: u64 = (1 << 61) - 1;

/// With so many bits there are 128 buckets, whose digests are 512 bytes of a Hello: as much as it can spare.
pub const MAX_BITS: u8 = 7;

/// Up to so many claims make one bucket: they are sent with each Hello (384 bytes for IPv4).
const IN_EACH_HELLO: usize = 32;

/// So many claims are aimed at in each bucket, if there is more than one: a page of them is about half a packet.
const PER_BUCKET: usize = 40;

/// A claim to an address. Of those that are held the greater one wins: first by epoch, then if it is backed, then if
/// its owner means to keep it. Ties are for the rank to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Counts the owners that the address has had.
    pub epoch: u64,
    /// Whether its owner heard most of its peers when it made it. One that hears few of them may be the one that is cut
    /// off: what it claims then must not outbid what the others go on with.
    pub backed: bool,
    /// Whether it still holds. One that is over is told for a while, so that the owner, who may never have heard of it,
    /// announces the address again: clients may have heard more than the owner.
    pub held: bool,
    /// Whether its owner means to keep it. One that doesn't goes on announcing the address, and leaves it to whoever should
    /// have it rather ([`crate::ownership::rules`]).
    pub kept: bool,
}

/// A set of claims with the digests of its buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// By the hash of the address, so that a bucket is a range.
    entries: BTreeMap<(u32, IpAddr), Claim>,
    /// There are `1 << bits` buckets.
    bits: u8,
    /// Of each bucket the sum of its entries' digests.
    digests: Vec<u32>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), bits: 0, digests: vec![0] }
    }
}

/// All claims of a node to addresses whose hash is in a range: what is not in here isn't claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The lowest hash.
    pub from: u32,
    /// The highest hash.
    pub to: u32,
    /// The claims.
    pub claims: Vec<(IpAddr, Claim)>,
}

impl Claims {
    /// The claim to `lb_ip`.
    pub fn get(&self, lb_ip: IpAddr) -> Option<Claim> {
        self.entries.get(&(place(lb_ip), lb_ip)).copied()
    }

    /// All claims, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Claim)> + '_ {
        self.entries.iter().map(|((_, lb_ip), claim)| (*lb_ip, *claim))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Claims `lb_ip`; the claim that was there is replaced and returned.
    pub fn insert(&mut self, lb_ip: IpAddr, claim: Claim) -> Option<Claim> {
        let before = self.remove(lb_ip);
        self.entries.insert((place(lb_ip), lb_ip), claim);
        let digest = &mut self.digests[bucket(lb_ip, self.bits)];
        *digest = digest.wrapping_add(digest_of(lb_ip, claim));
        before
    }

    /// Gives up the claim to `lb_ip`.
    pub fn remove(&mut self, lb_ip: IpAddr) -> Option<Claim> {
        let claim = self.entries.remove(&(place(lb_ip), lb_ip))?;
        let digest = &mut self.digests[bucket(lb_ip, self.bits)];
        *digest = digest.wrapping_sub(digest_of(lb_ip, claim));
        Some(claim)
    }

    /// How many bits of the hash tell the buckets apart.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Sorts the claims into `1 << bits` buckets.
    pub fn set_bits(&mut self, bits: u8) {
        if self.bits == bits {
            return;
        }
        self.bits = bits.min(MAX_BITS);
        self.digests = vec![0; 1 << self.bits];
        for ((_, lb_ip), claim) in &self.entries {
            let digest = &mut self.digests[bucket(*lb_ip, self.bits)];
            *digest = digest.wrapping_add(digest_of(*lb_ip, *claim));
        }
    }

    /// The number of bits that suits the number of claims.
    pub fn fitting_bits(&self) -> u8 {
        if self.len() <= IN_EACH_HELLO {
            return 0;
        }
        (1..MAX_BITS).find(|bits| self.len() >> bits <= PER_BUCKET).unwrap_or(MAX_BITS)
    }

    /// The digest of each bucket.
    pub fn digests(&self) -> &[u32] {
        &self.digests
    }

    /// The buckets, one bit each, whose digest is not that in `digests`.
    pub fn differing(&self, digests: &[u32]) -> u128 {
        let own = self.digests.iter();
        own.zip(digests).enumerate().filter(|(_, (a, b))| a != b).fold(0, |bits, (n, _)| bits | 1 << n)
    }

    /// The bucket that `lb_ip` belongs to.
    pub fn bucket(&self, lb_ip: IpAddr) -> usize {
        bucket(lb_ip, self.bits)
    }

    /// The claims of one bucket, as pages of at most `room` bytes each (see [`size`]).
    pub fn pages(&self, bucket: usize, room: usize) -> Vec<Page> {
        let range = range(bucket, self.bits);
        let mut taken = 0;
        let mut pages = vec![Page { from: *range.start(), to: *range.end(), claims: Vec::new() }];
        let lowest: IpAddr = [0; 4].into();
        for ((place, lb_ip), claim) in self.entries.range((*range.start(), lowest)..) {
            if place > range.end() {
                break;
            }
            let page = pages.last_mut().expect("invariant: there is always a last page");
            let last = page.claims.last().map(|(lb_ip, _)| self::place(*lb_ip));
            // What has the same hash goes together: pages meet between two hashes.
            if taken + size(*lb_ip) > room && last.is_some_and(|last| last < *place) {
                page.to = place - 1;
                pages.push(Page { from: *place, to: *range.end(), claims: Vec::new() });
                taken = 0;
            }
            taken += size(*lb_ip);
            pages.last_mut().expect("invariant: one was pushed").claims.push((*lb_ip, *claim));
        }
        pages
    }

    /// Takes over what a page says. Returns the addresses whose claim changed.
    pub fn replace(&mut self, page: &Page) -> BTreeSet<IpAddr> {
        let new: BTreeMap<IpAddr, Claim> =
            page.claims.iter().copied().filter(|(lb_ip, _)| (page.from..=page.to).contains(&place(*lb_ip))).collect();
        let lowest: IpAddr = [0; 4].into();
        let old: Vec<IpAddr> = self
            .entries
            .range((page.from, lowest)..)
            .take_while(|((place, _), _)| *place <= page.to)
            .map(|((_, lb_ip), _)| *lb_ip)
            .collect();
        let gone = old.into_iter().filter(|lb_ip| !new.contains_key(lb_ip));
        let mut changed: BTreeSet<IpAddr> = gone.collect();
        for lb_ip in &changed {
            self.remove(*lb_ip);
        }
        for (lb_ip, claim) in new {
            if self.get(lb_ip) != Some(claim) {
                self.insert(lb_ip, claim);
                changed.insert(lb_ip);
            }
        }
        changed
    }
}

/// How many bytes a claim to `lb_ip` takes in a packet: the address and the epoch.
pub fn size(lb_ip: IpAddr) -> usize {
    if lb_ip.is_ipv4() { 4 + 8 } else { 16 + 8 }
}

/// Where an address is in the order of hashes.
fn place(lb_ip: IpAddr) -> u32 {
    (stable_hash::hash_ip(lb_ip) >> 32) as u32
}

fn bucket(lb_ip: IpAddr, bits: u8) -> usize {
    // A shift by all 32 bits is none in Rust.
    place(lb_ip).checked_shr(32 - u32::from(bits)).unwrap_or(0) as usize
}

/// The hashes that belong to a bucket.
fn range(bucket: usize, bits: u8) -> RangeInclusive<u32> {
    let width = u32::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
    let from = (bucket as u32).checked_shl(32 - u32::from(bits)).unwrap_or(0);
    from..=from | width
}

fn digest_of(lb_ip: IpAddr, claim: Claim) -> u32 {
    let flags = u64::from(claim.backed) << 2 | u64::from(claim.held) << 1 | u64::from(claim.kept);
    let claim = claim.epoch << 3 | flags;
    stable_hash::mix64(stable_hash::hash_ip(lb_ip) ^ stable_hash::mix64(claim)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(addresses: impl IntoIterator<Item = u32>) -> Claims {
        let mut claims = Claims::default();
        for n in addresses {
            claims.insert(IpAddr::from(n.to_be_bytes()), Claim { epoch: 1, backed: true, held: true, kept: true });
        }
        claims.set_bits(claims.fitting_bits());
        claims
    }

    #[test]
    fn five_thousand_claims_fall_into_pages_that_fit_a_packet() {
        let claims = set(0..5000);
        assert_eq!(claims.bits(), 7);
        let pages: Vec<Page> = (0..128).flat_map(|bucket| claims.pages(bucket, 1000)).collect();
        assert_eq!(pages.len(), 128);
        assert_eq!(pages.iter().map(|page| page.claims.len()).sum::<usize>(), 5000);
    }

    #[test]
    fn a_backed_claim_beats_one_that_is_not_and_the_epoch_beats_both() {
        let claim = |epoch, backed| Claim { epoch, backed, held: true, kept: true };
        assert!(claim(2, false) > claim(1, true));
        assert!(claim(1, true) > claim(1, false));
    }

    proptest! {
        #[test]
        fn whoever_reads_all_differing_pages_knows_the_same(
            mine in proptest::collection::btree_set(0u32..600, 0..300),
            known in proptest::collection::btree_set(0u32..600, 0..300),
            room in 1usize..1000,
        ) {
            let (mine, mut copy) = (set(mine), set(known));
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
        fn digests_do_not_depend_on_how_a_set_came_to_be(
            addresses in proptest::collection::vec(any::<u32>(), 0..100),
            bits in 0u8..=MAX_BITS,
        ) {
            let straight = { let mut s = set(addresses.iter().copied()); s.set_bits(bits); s };
            let mut detour = Claims::default();
            detour.set_bits(bits);
            for n in addresses.iter().rev() {
                detour.insert(IpAddr::from(n.to_be_bytes()), Claim { epoch: 1, backed: true, held: false, kept: true });
                detour.insert(IpAddr::from(n.to_be_bytes()), Claim { epoch: 1, backed: true, held: true, kept: true });
            }
            prop_assert_eq!(straight.digests(), detour.digests());
        }
    }
}
