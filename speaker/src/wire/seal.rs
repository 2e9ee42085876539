//! Who may speak to a speaker: packets are sealed with a key of the cluster (HMAC-SHA256, RFC 2104).
//!
//! Bytes and a [`KeyRing`] in, sealed bytes out; sealed bytes in, the bytes that somebody with a key sealed out, or why
//! nobody did. Nothing is remembered but keys.
//!
//! ```text
//!   body, then for each key: id of the key (4), HMAC of the body (32), then how many keys (1)
//! ```
//!
//! *Rotation.* A packet is sealed with every key of its sender and is believed if one of them is a key of its receiver. So
//! two speakers understand each other for as long as they have one key in common, and nobody has to agree with anybody on
//! which key is in use. A key that is taken out of the set still seals and opens for [`GRACE`]: the new key may simply be
//! written over the old one, and by the time the old one is over, all have heard of the new one. A node that can't be told
//! (it has lost the API server) needs the old key beside the new one for longer than that: the set may hold several.
//!
//! *Cost.* 2.4 µs to seal or to open a packet of 400 bytes, measured in a debug build (the hash is assembly in any build) on
//! a processor with SHA instructions: a quarter of a percent of a core at the 1,000 packets a second of a large cluster.
//!
//! That a packet is sealed says that a speaker of the cluster sent it once, not that it is new: see [`crate::peers::handshake`].

use std::fmt;
use std::time::Duration;

use ring::hmac;

/// For so long a key that was taken out of the set goes on sealing and opening: a Secret reaches all nodes within two
/// minutes or so, also where it is mounted as a file (the kubelet's sync period and the time its cache lives).
pub const GRACE: Duration = Duration::from_secs(300);

/// No set is larger: a packet has room for so many seals.
pub const MAX_KEYS: usize = 3;

/// A key is at least as long as this, in bytes: as long as the half of the hash that RFC 2104 §3 asks for at least.
pub const MIN_KEY: usize = 16;

const TAG: usize = 32;
const SEAL: usize = 4 + TAG;

/// One key. What it is, is never printed.
#[derive(Clone)]
pub struct Key {
    /// Tells it from the others of a set. Not a secret.
    id: u32,
    fingerprint: [u8; TAG],
    hmac: hmac::Key,
}

/// Why something is no set of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKeys {
    /// One of them could be guessed.
    #[error("a key of {0} bytes is too short: it takes {MIN_KEY}")]
    Short(usize),
    /// They don't fit a packet.
    #[error("{0} keys are more than {MAX_KEYS}")]
    Many(usize),
}

impl Key {
    fn new(secret: &[u8]) -> Result<Self, NoKeys> {
        if secret.len() < MIN_KEY {
            return Err(NoKeys::Short(secret.len()));
        }
        let hmac = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let mut fingerprint = [0; TAG];
        fingerprint.copy_from_slice(hmac::sign(&hmac, b"the key of the speakers of Landfall").as_ref());
        let [a, b, c, d, ..] = fingerprint;
        Ok(Self { id: u32::from_be_bytes([a, b, c, d]), fingerprint, hmac })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:08x})", self.id)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Key {}

/// A set of keys. Their order means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// The set of these secrets. One that is there twice counts once.
    ///
    /// # Errors
    /// If they can't be a set of keys.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NoKeys> {
        let mut keys: Vec<Key> = secrets.into_iter().map(Key::new).collect::<Result<_, _>>()?;
        keys.sort_by_key(|key| key.fingerprint);
        keys.dedup();
        if keys.len() > MAX_KEYS { Err(NoKeys::Many(keys.len())) } else { Ok(Self(keys)) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether packets are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing is sealed and everything is believed: whoever is on the LAN can take every address.
    Off,
    /// What is not sealed with one of our keys is dropped. Without a key nothing is said, and nothing claimed.
    Required,
}

/// Why a packet isn't believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is cut off, or the seals don't fit it.
    Malformed,
    /// It has no seal by a key of ours.
    Unsealed,
    /// It has a seal by a key of ours that is wrong.
    Forged,
}

/// The keys in use, and those that were until lately.
#[derive(Clone, Debug)]
pub struct KeyRing {
    authentication: Authentication,
    keys: Keys,
    retired: Vec<(Key, Duration)>,
}

impl KeyRing {
    /// No keys yet.
    pub fn new(authentication: Authentication) -> Self {
        Self { authentication, keys: Keys::default(), retired: Vec::new() }
    }

    /// These keys are in use from now on. An empty set is no news: a Secret that was emptied by mistake must not part the
    /// speakers. Returns whether these are the first ones.
    pub fn set(&mut self, now: Duration, keys: &Keys) -> bool {
        if keys.is_empty() || *keys == self.keys {
            return false;
        }
        let before = std::mem::replace(&mut self.keys, keys.clone());
        let first = before.is_empty();
        self.retired.retain(|(key, until)| now < *until && !keys.0.contains(key));
        self.retired.extend(before.0.into_iter().filter(|key| !keys.0.contains(key)).map(|key| (key, now + GRACE)));
        // The latest are kept: an endless series of rotations must not fill packets.
        let surplus = self.retired.len().saturating_sub(MAX_KEYS);
        self.retired.drain(..surplus);
        first
    }

    /// Whether anything can be said: not without a key where one is required.
    pub fn can_speak(&self) -> bool {
        self.authentication == Authentication::Off || !self.keys.is_empty()
    }

    fn all(&self, now: Duration) -> impl Iterator<Item = &Key> {
        let retired = self.retired.iter().filter(move |(_, until)| now < *until).map(|(key, _)| key);
        self.keys.0.iter().chain(retired)
    }

    /// How many bytes longer a packet becomes when it is sealed.
    pub fn size(&self, now: Duration) -> usize {
        match self.authentication {
            Authentication::Off => 1,
            Authentication::Required => 1 + SEAL * self.all(now).count(),
        }
    }

    /// Seals `body`.
    pub fn seal(&self, now: Duration, mut body: Vec<u8>) -> Vec<u8> {
        let end = body.len();
        let mut count = 0;
        if self.authentication == Authentication::Required {
            for key in self.all(now) {
                let tag = hmac::sign(&key.hmac, &body[..end]);
                body.extend(key.id.to_be_bytes());
                body.extend(tag.as_ref());
                count += 1;
            }
        }
        body.push(count);
        body
    }

    /// The body of what was sealed.
    ///
    /// # Errors
    /// If it isn't to be believed.
    pub fn open<'a>(&self, now: Duration, sealed: &'a [u8]) -> Result<&'a [u8], Refused> {
        let (count, rest) = sealed.split_last().ok_or(Refused::Malformed)?;
        let end = rest.len().checked_sub(usize::from(*count) * SEAL).ok_or(Refused::Malformed)?;
        let (body, seals) = rest.split_at(end);
        if self.authentication == Authentication::Off {
            return Ok(body);
        }
        let mut forged = false;
        for seal in seals.chunks_exact(SEAL) {
            let (id, tag) = seal.split_at(4);
            // One attempt for each packet: whoever sends nonsense must not have us calculate for every seal in it.
            let Some(key) = self.all(now).find(|key| key.id.to_be_bytes() == id) else { continue };
            forged = hmac::verify(&key.hmac, body, tag).is_err();
            if !forged {
                return Ok(body);
            }
            break;
        }
        Err(if forged { Refused::Forged } else { Refused::Unsealed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: &[u8] = b"an old key of the cluster";
    const NEW: &[u8] = b"a new key of the cluster";

    fn ring(secrets: &[&[u8]]) -> KeyRing {
        let mut ring = KeyRing::new(Authentication::Required);
        ring.set(Duration::ZERO, &Keys::new(secrets.iter().copied()).expect("keys"));
        ring
    }

    fn opened(by: &KeyRing, sealed: &[u8]) -> Result<Vec<u8>, Refused> {
        by.open(Duration::ZERO, sealed).map(<[u8]>::to_vec)
    }

    #[test]
    fn those_who_have_a_key_in_common_believe_each_other_and_others_do_not() {
        let body = b"hello".to_vec();
        for (what, sender, receiver, expected) in [
            ("the same key", &[OLD][..], &[OLD][..], Ok(body.clone())),
            ("the sender has a new one too", &[OLD, NEW], &[OLD], Ok(body.clone())),
            ("the receiver has a new one too", &[OLD], &[NEW, OLD], Ok(body.clone())),
            ("nothing in common", &[OLD], &[NEW], Err(Refused::Unsealed)),
        ] {
            let sealed = ring(sender).seal(Duration::ZERO, body.clone());
            assert_eq!(opened(&ring(receiver), &sealed), expected, "{what}");
        }
        let open = KeyRing::new(Authentication::Off).seal(Duration::ZERO, body.clone());
        assert_eq!(opened(&ring(&[OLD]), &open), Err(Refused::Unsealed));
        assert_eq!(opened(&KeyRing::new(Authentication::Off), &open), Ok(body.clone()));
        let sealed = ring(&[OLD]).seal(Duration::ZERO, body.clone());
        assert_eq!(opened(&KeyRing::new(Authentication::Off), &sealed), Ok(body));
        let without = KeyRing::new(Authentication::Required);
        assert_eq!((without.can_speak(), opened(&without, &sealed)), (false, Err(Refused::Unsealed)));
    }

    #[test]
    fn a_key_that_is_replaced_in_one_go_is_good_for_as_long_as_others_may_not_know_of_it() {
        let (mut ahead, behind) = (ring(&[OLD]), ring(&[OLD]));
        let at = Duration::from_secs(1000);
        assert!(!ahead.set(at, &Keys::new([NEW]).expect("keys")), "not the first keys");
        let (good, over) = (at + GRACE - Duration::from_millis(1), at + GRACE);
        for (from, to) in [(&ahead, &behind), (&behind, &ahead), (&ahead, &ring(&[NEW]))] {
            assert!(to.open(good, &from.seal(good, b"hello".to_vec())).is_ok());
        }
        assert_eq!(behind.open(over, &ahead.seal(over, b"hello".to_vec())), Err(Refused::Unsealed));
        assert_eq!(ahead.open(over, &behind.seal(over, b"hello".to_vec())), Err(Refused::Unsealed));
        assert!(!ahead.set(over, &Keys::default()) && ahead.can_speak(), "an empty set changes nothing");
    }

    #[test]
    fn a_packet_that_was_changed_anywhere_is_refused() {
        let ring = ring(&[OLD]);
        let sealed = ring.seal(Duration::ZERO, b"hello".to_vec());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(opened(&ring, &changed).is_err(), "byte {at}");
            assert!(opened(&ring, &sealed[..at]).is_err(), "{at} bytes");
        }
        let mut changed = sealed.clone();
        changed[0] ^= 1;
        assert_eq!(opened(&ring, &changed), Err(Refused::Forged));
    }

    #[test]
    fn keys_that_can_be_guessed_or_do_not_fit_are_refused() {
        let many: Vec<[u8; MIN_KEY]> = (0..4).map(|n| [n; MIN_KEY]).collect();
        assert_eq!(Keys::new([&b"short"[..]]), Err(NoKeys::Short(5)));
        assert_eq!(Keys::new(many.iter().map(|key| &key[..])), Err(NoKeys::Many(4)));
        assert_eq!(Keys::new([OLD, NEW, OLD]), Keys::new([NEW, OLD]));
        let shown = format!("{:?}", Keys::new([OLD]).expect("keys"));
        assert!(!shown.contains("old"), "{shown}");
    }

    #[test]
    fn however_often_keys_change_seals_are_no_more_than_fit() {
        let mut ring = ring(&[OLD]);
        for n in 0..20u8 {
            let secrets = [[n; 16], [n + 100; 16], [n + 200; 16]];
            ring.set(Duration::from_secs(n.into()), &Keys::new(secrets.iter().map(|key| &key[..])).expect("keys"));
        }
        let now = Duration::from_secs(20);
        assert_eq!(
            (ring.seal(now, Vec::new()).len(), ring.size(now)),
            (1 + SEAL * 2 * MAX_KEYS, 1 + SEAL * 2 * MAX_KEYS)
        );
    }

    proptest! {
        #[test]
        fn opening_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = opened(&ring(&[OLD]), &bytes);
        }
    }
}
