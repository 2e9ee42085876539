//! Keys and values as the kernel has them. There may be a million of them, and no more bytes than registers have, so they need
//! no memory of their own. Pure.

use std::ops::Deref;

/// Bytes of a key or of a value.
#[derive(Clone, Copy)]
pub(in crate::nft) struct Bytes {
    bytes: [u8; 64],
    length: usize,
}

impl Bytes {
    /// None yet.
    pub(super) fn none() -> Self {
        Self { bytes: [0; 64], length: 0 }
    }

    /// Appends these.
    pub(super) fn and(mut self, more: &[u8]) -> Self {
        let end = self.length + more.len();
        self.bytes[self.length..end].copy_from_slice(more);
        self.length = end;
        self
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
