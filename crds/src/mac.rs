//! Addresses of network interfaces on a link.

use std::fmt;

/// The address of a network interface on a link (EUI-48).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Reads `02:00:00:00:00:01`. Only the address of a single station is one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?);
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            *byte = parts.next()??;
        }
        let mac = Self(bytes);
        (parts.next().is_none() && mac.is_station()).then_some(mac)
    }

    /// Whether it may be the address of one station: neither a group nor zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_as_it_is_written_and_a_group_has_none() {
        let mac = Mac([2, 0, 0x5e, 0x10, 0xff, 1]);
        assert_eq!(Mac::parse(&mac.to_string()), Some(mac));
        for no in
            ["", "02:00:5e:10:ff", "02:00:5e:10:ff:1", "02:00:5e:10:ff:01:02", "01:00:5e:00:00:01", "00:00:00:00:00:00"]
        {
            assert_eq!(Mac::parse(no), None, "{no}");
        }
    }
}
