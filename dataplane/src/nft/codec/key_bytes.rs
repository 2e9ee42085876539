//! The bytes of a key or value. A table can have a million keys and values, and they are at most as long as the
//! registers. So their bytes are stored without an allocation. Pure.

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
    pub(super) fn append(mut self, more: &[u8]) -> Self {
        let end = self.length + more.len();
        self.bytes[self.length..end].copy_from_slice(more);
        self.length = end;
        self
    }

    /// Appends zeros up to the end of a word.
    pub(super) fn pad(self) -> Self {
        Self { length: self.length.next_multiple_of(4), ..self }
    }
}

impl Deref for KeyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
