//! The hashes that all speakers of a cluster have to agree on, whatever version they are: they decide who takes an
//! address, and whether two speakers know the same claims. Changing one means a new version of the Hello.

use std::net::IpAddr;

/// FNV-1a with 64 bits, then the finalizer of splitmix64: FNV alone leaves the upper bits of short inputs alike, and
/// ranks compare those first.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

/// The hash of an address.
pub fn of_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    }
}

/// Spreads a change of any bit over all bits (splitmix64).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_what_every_version_computes() {
        // Never change these: speakers of two versions live side by side during an upgrade.
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"n1"), 0xf8e4_6110_455c_6e53);
        assert_eq!(of_address("192.0.2.1".parse().expect("v4")), 0x1e00_e9a1_2f82_49cb);
    }
}
