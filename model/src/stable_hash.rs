//! Hashes that are equal in every version of Landfall and on every machine.
//!
//! Speakers of two versions run side by side during an upgrade and must agree on the owner of an address.
//! Dataplanes must agree on share tables, and the controller stores fingerprints in objects. So these values never
//! change; `std::hash` does not guarantee that.

use std::net::IpAddr;

/// FNV-1a with 64 bits (RFC 9923), fed piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    /// The hash of no bytes.
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// FNV-1a with 64 bits (RFC 9923). Short inputs have hashes with similar upper bits: use [`hash`] where those matter.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = Fnv1a::default();
    hash.write(bytes);
    hash.finish()
}

/// FNV-1a with 32 bits (RFC 9923).
pub fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The finalizer of SplitMix64: each bit of the result depends on all bits of `x`. It maps 0 to 0.
pub fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One step of SplitMix64 from state `x`: [`mix64`] of the sum of `x` and the constant increment.
pub fn splitmix64(x: u64) -> u64 {
    mix64(x.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

/// [`fnv1a`], then [`mix64`]: a hash whose upper bits can be compared as a rank.
pub fn hash(bytes: &[u8]) -> u64 {
    mix64(fnv1a(bytes))
}

/// [`hash`] of the bytes of an address in network order.
pub fn hash_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Never change a value in these tests: see the top of this file.

    #[test]
    fn fnv1a_gives_the_values_of_rfc_9923() {
        for (text, long, short) in [
            ("", 0xcbf2_9ce4_8422_2325, 0x811c_9dc5),
            ("a", 0xaf63_dc4c_8601_ec8c, 0xe40c_292c),
            ("foobar", 0x8594_4171_f739_67e8, 0xbf9c_f968),
        ] {
            assert_eq!((fnv1a(text.as_bytes()), fnv1a_32(text.as_bytes())), (long, short), "{text:?}");
        }
        let mut pieces = Fnv1a::default();
        ["foo", "", "bar"].iter().for_each(|piece| pieces.write(piece.as_bytes()));
        assert_eq!(pieces.finish(), fnv1a(b"foobar"));
    }

    #[test]
    fn mixing_gives_the_values_of_splitmix64() {
        assert_eq!([0, 1, 0x5eed].map(mix64), [0, 0x5692_161d_100b_05e5, 0xa18f_67d4_db95_243f]);
        let expected = [0xe220_a839_7b1d_cdaf, 0x910a_2dec_8902_5cc1, 0xe4d9_7177_1b65_2c20];
        assert_eq!([0, 1, u64::MAX].map(splitmix64), expected);
    }

    #[test]
    fn speakers_of_all_versions_compute_equal_hashes() {
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"n1"), 0xf8e4_6110_455c_6e53);
        assert_eq!(hash_ip("192.0.2.1".parse().expect("v4")), 0x1e00_e9a1_2f82_49cb);
        assert_eq!(hash_ip("2001:db8::1".parse().expect("v6")), 0x216d_ba65_aa6c_0c57);
    }
}
