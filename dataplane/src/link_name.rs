//! The name of a network interface: [`LinkName`]. Pure.

use std::fmt;

/// The name of a network interface: up to 15 bytes (IFNAMSIZ), padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName([u8; 16]);

impl LinkName {
    /// `None` if no interface can have this name.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let fits = !name.is_empty() && name.len() < bytes.len() && !name.bytes().any(|byte| byte == 0 || byte == b'/');
        fits.then(|| bytes[..name.len()].copy_from_slice(name.as_bytes()))?;
        Some(Self(bytes))
    }

    /// All 16 bytes, as in a register of nf_tables.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_has_up_to_fifteen_bytes() {
        assert_eq!(LinkName::new("eth0").map(|link| link.to_string()).as_deref(), Some("eth0"));
        assert!(LinkName::new("abcdefghijklmno").is_some());
        assert!(["", "abcdefghijklmnop", "a/b", "a\0b"].into_iter().all(|name| LinkName::new(name).is_none()));
    }
}
