//! The seal of packets between speakers: HMAC-SHA256 (RFC 2104) with the keys of the cluster.
//!
//! A [`KeyRing`] seals bytes, and opens sealed bytes or returns why they are refused. Its only state is the keys.
//!
//! ```text
//!   body, then for each key: id of the key (4), HMAC of the body (32), then the number of keys (1)
//! ```
//!
//! *Rotation.* A sender seals a packet with each of its keys. A receiver accepts the packet if it has one of these
//! keys. So two speakers understand each other while they have a common key, and need not agree on the key in use. A
//! removed key still seals and opens for [`GRACE`], so a new key can simply replace the old one: all nodes learn the
//! new one before the old one expires. A node that has lost the API server needs both keys for longer, so a set can
//! hold several.
//!
//! *Cost.* To seal or open a packet of 400 bytes takes 2.4 µs on a processor with SHA instructions. This was measured
//! in a debug build, but the hash is assembly in any build. At the 1,000 packets per second of a large cluster, the
//! seals take 0.25 % of a core.
//!
//! A seal proves that a speaker of the cluster sent the packet once, not that it is new: see
//! [`crate::peers::handshake`].

use std::fmt;
use std::time::Duration;

use ring::hmac;

/// A removed key seals and opens for this time. A Secret reaches all nodes within about two minutes, even if it is
/// mounted as a file (sync period and cache lifetime of the kubelet).
pub const GRACE: Duration = Duration::from_secs(300);

/// The maximum number of keys in a set. A packet has at most twice as many seals: those of the current keys and those
/// of the latest removed keys.
pub const MAX_KEYS: usize = 3;

/// The minimum length of a key in bytes: half the hash, the minimum of FIPS 198 (2002) §3. RFC 2104 §3 discourages keys
/// that are shorter than the hash.
pub const MIN_KEY: usize = 16;

const TAG_LEN: usize = 32;
const SEAL_LEN: usize = 4 + TAG_LEN;

/// One key. Its content is never printed.
#[derive(Clone)]
pub struct Key {
    fingerprint: [u8; TAG_LEN],
    hmac: hmac::Key,
}

/// Why secrets are not a valid set of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("a key of {0} bytes is too short: at least {MIN_KEY} are required")]
    Short(usize),
    #[error("{0} keys are too many: at most {MAX_KEYS} are supported")]
    Many(usize),
}

impl Key {
    fn new(secret: &[u8]) -> Result<Self, KeySetError> {
        if secret.len() < MIN_KEY {
            return Err(KeySetError::Short(secret.len()));
        }
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let mut fingerprint = [0; TAG_LEN];
        fingerprint.copy_from_slice(hmac::sign(&hmac, b"the key of the speakers of Landfall").as_ref());
        Ok(Self { fingerprint, hmac })
    }

    /// Identifies the key within a set. Not secret.
    fn id(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.fingerprint;
        [a, b, c, d]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:08x})", u32::from_be_bytes(self.id()))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Key {}

/// A set of keys without order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// The set of these secrets without duplicates.
    ///
    /// # Errors
    /// If a secret is too short, or there are too many.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, KeySetError> {
        let mut keys: Vec<Key> = secrets.into_iter().map(Key::new).collect::<Result<_, _>>()?;
        keys.sort_by_key(|key| key.fingerprint);
        keys.dedup();
        if keys.len() > MAX_KEYS { Err(KeySetError::Many(keys.len())) } else { Ok(Self(keys)) }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// It is truncated, or the number of seals is wrong.
    Malformed,
    /// It has no seal by a known key.
    Unsealed,
    /// Its seal by a known key is wrong.
    Forged,
}

/// The current keys, and the recently removed ones.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: Keys,
    /// Removed keys, each with the end of its grace period.
    retired: Vec<(Key, Duration)>,
}

impl KeyRing {
    /// Replaces the keys. An empty set is ignored, so that a Secret emptied by mistake does not separate the speakers.
    /// Returns whether these are the first keys.
    pub fn set(&mut self, now: Duration, keys: &Keys) -> bool {
        if keys.is_empty() || *keys == self.keys {
            return false;
        }
        let before = std::mem::replace(&mut self.keys, keys.clone());
        let first = before.is_empty();
        self.retired.retain(|(key, until)| now < *until && !keys.0.contains(key));
        self.retired.extend(before.0.into_iter().filter(|key| !keys.0.contains(key)).map(|key| (key, now + GRACE)));
        // Only the latest removed keys are kept, because many rotations must not overfill packets.
        let surplus = self.retired.len().saturating_sub(MAX_KEYS);
        self.retired.drain(..surplus);
        first
    }

    /// Whether there is a key. Without one no packet is sent and no address is claimed.
    pub fn can_seal(&self) -> bool {
        !self.keys.is_empty()
    }

    fn active_keys(&self, now: Duration) -> impl Iterator<Item = &Key> {
        let retired = self.retired.iter().filter(move |(_, until)| now < *until).map(|(key, _)| key);
        self.keys.0.iter().chain(retired)
    }

    /// The number of bytes that sealing adds to a packet.
    pub fn overhead(&self, now: Duration) -> usize {
        1 + SEAL_LEN * self.active_keys(now).count()
    }

    pub fn seal(&self, now: Duration, mut body: Vec<u8>) -> Vec<u8> {
        let end = body.len();
        let mut count = 0;
        for key in self.active_keys(now) {
            let tag = hmac::sign(&key.hmac, &body[..end]);
            body.extend(key.id());
            body.extend(tag.as_ref());
            count += 1;
        }
        body.push(count);
        body
    }

    /// The body of a sealed packet.
    ///
    /// # Errors
    /// If the packet is refused.
    pub fn open<'a>(&self, now: Duration, sealed: &'a [u8]) -> Result<&'a [u8], SealError> {
        let (count, rest) = sealed.split_last().ok_or(SealError::Malformed)?;
        let end = rest.len().checked_sub(usize::from(*count) * SEAL_LEN).ok_or(SealError::Malformed)?;
        let (body, seals) = rest.split_at(end);
        let ids_and_tags = seals.chunks_exact(SEAL_LEN).map(|seal| seal.split_at(4));
        let mut known =
            ids_and_tags.filter_map(|(id, tag)| Some((self.active_keys(now).find(|key| key.id() == id)?, tag)));
        // Only one seal per packet is verified, because a forged packet must not cost a calculation for each of its
        // seals.
        let (key, tag) = known.next().ok_or(SealError::Unsealed)?;
        hmac::verify(&key.hmac, body, tag).map_err(|_| SealError::Forged)?;
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"an old key of the cluster";
    const NEW: &[u8] = b"a new key of the cluster";

    fn ring(secrets: &[&[u8]]) -> KeyRing {
        let mut ring = KeyRing::default();
        ring.set(Duration::ZERO, &Keys::new(secrets.iter().copied()).expect("keys"));
        ring
    }

    fn open_by(ring: &KeyRing, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        ring.open(Duration::ZERO, sealed).map(<[u8]>::to_vec)
    }

    #[test]
    fn speakers_with_a_common_key_accept_each_other() {
        let body = b"hello".to_vec();
        for (case, sender, receiver, expected) in [
            ("the same key", &[OLD][..], &[OLD][..], Ok(body.clone())),
            ("the sender has a new key as well", &[OLD, NEW], &[OLD], Ok(body.clone())),
            ("the receiver has a new key as well", &[OLD], &[NEW, OLD], Ok(body.clone())),
            ("no common key", &[OLD], &[NEW], Err(SealError::Unsealed)),
        ] {
            let sealed = ring(sender).seal(Duration::ZERO, body.clone());
            assert_eq!(open_by(&ring(receiver), &sealed), expected, "{case}");
        }
        let (sealed, without) = (ring(&[OLD]).seal(Duration::ZERO, body), KeyRing::default());
        assert_eq!((without.can_seal(), open_by(&without, &sealed)), (false, Err(SealError::Unsealed)));
    }

    #[test]
    fn replaced_key_is_accepted_during_the_grace_period() {
        let (mut ahead, behind) = (ring(&[OLD]), ring(&[OLD]));
        let at = Duration::from_secs(1000);
        assert!(!ahead.set(at, &Keys::new([NEW]).expect("keys")), "not the first keys");
        let (good, expired) = (at + GRACE - Duration::from_millis(1), at + GRACE);
        for (from, to) in [(&ahead, &behind), (&behind, &ahead), (&ahead, &ring(&[NEW]))] {
            assert!(to.open(good, &from.seal(good, b"hello".to_vec())).is_ok());
        }
        assert_eq!(behind.open(expired, &ahead.seal(expired, b"hello".to_vec())), Err(SealError::Unsealed));
        assert_eq!(ahead.open(expired, &behind.seal(expired, b"hello".to_vec())), Err(SealError::Unsealed));
        assert!(!ahead.set(expired, &Keys::default()) && ahead.can_seal(), "an empty set changes nothing");
    }

    #[test]
    fn packet_with_any_changed_byte_is_refused() {
        let ring = ring(&[OLD]);
        let sealed = ring.seal(Duration::ZERO, b"hello".to_vec());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open_by(&ring, &changed).is_err(), "byte {at}");
            assert!(open_by(&ring, &sealed[..at]).is_err(), "{at} bytes");
        }
        let mut changed = sealed.clone();
        changed[0] ^= 1;
        assert_eq!(open_by(&ring, &changed), Err(SealError::Forged));
    }

    #[test]
    fn short_or_too_many_keys_are_refused() {
        let many: Vec<[u8; MIN_KEY]> = (0..4).map(|n| [n; MIN_KEY]).collect();
        assert_eq!(Keys::new([&b"short"[..]]), Err(KeySetError::Short(5)));
        assert_eq!(Keys::new(many.iter().map(|key| &key[..])), Err(KeySetError::Many(4)));
        assert_eq!(Keys::new([OLD, NEW, OLD]), Keys::new([NEW, OLD]));
        let shown = format!("{:?}", Keys::new([OLD]).expect("keys"));
        assert!(!shown.contains("old"), "{shown}");
    }

    #[test]
    fn number_of_seals_is_bounded_across_rotations() {
        let mut ring = ring(&[OLD]);
        for n in 0..20u8 {
            let secrets = [[n; 16], [n + 100; 16], [n + 200; 16]];
            ring.set(Duration::from_secs(n.into()), &Keys::new(secrets.iter().map(|key| &key[..])).expect("keys"));
        }
        let now = Duration::from_secs(20);
        assert_eq!(
            (ring.seal(now, Vec::new()).len(), ring.overhead(now)),
            (1 + SEAL_LEN * 2 * MAX_KEYS, 1 + SEAL_LEN * 2 * MAX_KEYS)
        );
    }
}
