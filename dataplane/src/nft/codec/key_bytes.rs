//! The bytes of a key or value. There may be a million of them, and none is longer than the registers: so they are kept
//! without an allocation. Pure.

use std::ops::Deref;

#[derive(Clone, Copy)]
pub(in crate::nft) struct KeyBytes {
    bytes: [u8; 64],
    length: usize,
}

impl KeyBytes {
    pub(super) fn empty() -> Self {
        Self { bytes: [0; 64], length: 0 }
    }

    /// Appends `more`.
    pub(super) fn and(mut self, more: &[u8]) -> Self {
        let end = self.length + more.len();
        self.bytes[self.length..end].copy_from_slice(more);
        self.length = end;
        self
    }
}

impl Deref for KeyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
