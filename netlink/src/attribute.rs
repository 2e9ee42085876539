//! Netlink attributes: length, type and value, padded to four bytes. Some attributes contain other attributes.
//!
//! Numbers in the attributes of netfilter are big-endian; lengths and types are in host byte order. Pure.

/// The flag of an attribute that contains attributes (NLA_F_NESTED).
const NESTED: u16 = 1 << 15;
/// The bits of the type without flags (NLA_TYPE_MASK).
const TYPE: u16 = 0x3fff;
/// The length of the header in bytes.
const HEADER: usize = 4;
/// Attributes begin at multiples of this many bytes.
const ALIGN: usize = 4;

/// Writes attributes, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends to `bytes`, whose length must be a multiple of four.
    pub fn append_to(bytes: Vec<u8>) -> Self {
        debug_assert_eq!(bytes.len() % ALIGN, 0);
        Self { bytes }
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(HEADER + value.len()).expect("invariant: values are shorter than 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        self
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text, terminated by a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends everything that `other` has written.
    pub fn append(&mut self, other: &Self) {
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// Reserves room for `more` bytes, so that appending them moves no memory.
    pub fn reserve(&mut self, more: usize) {
        self.bytes.reserve_exact(more);
    }

    /// Removes everything, but keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Appends an attribute whose value is the attributes that `inner` writes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        inner(self);
        let length = u16::try_from(self.bytes.len() - start).expect("invariant: lists are split below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + HEADER].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        self
    }
}

/// An attribute that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Without flags.
    pub kind: u16,
    /// Whether the header has the flag NLA_F_NESTED. The kernel does not set it in every attribute that contains
    /// attributes.
    pub is_nested: bool,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The length of the header in bytes.
    pub const HEADER: usize = HEADER;

    pub fn u8(&self) -> Option<u8> {
        Some(u8::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn u16(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    pub fn u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The text, which ends at the first zero byte; `None` if it is not UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.value.split(|byte| *byte == 0).next()?).ok()
    }

    /// The attributes inside.
    pub fn inner(&self) -> Attributes<'a> {
        attributes(self.value)
    }
}

/// Reads attributes; ends at the first truncated one.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

impl<'a> Attributes<'a> {
    /// The first attribute of this type.
    pub fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let (header, _) = self.rest.split_first_chunk::<HEADER>()?;
        let [l0, l1, k0, k1] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([k0, k1]);
        Some(Attribute { kind: kind & TYPE, is_nested: kind & NESTED != 0, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut writer = Writer::default();
        writer.u8(1, 7).nest(2, |inner| {
            inner.text(3, "web").u32(4, 0xdead_beef);
        });
        let bytes = writer.finish();
        assert_eq!(bytes.len(), 8 + 4 + 8 + 8);
        let read = attributes(&bytes);
        assert_eq!(read.find(1).and_then(|a| a.u8()), Some(7));
        let inner = read.find(2).expect("nested").inner();
        assert_eq!(inner.find(3).and_then(|a| a.text()), Some("web"));
        assert_eq!(inner.find(4).and_then(|a| a.u32()), Some(0xdead_beef));
        assert_eq!(inner.find(5), None);
    }

    proptest! {
        #[test]
        fn reading_any_bytes_ends_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let read: Vec<_> = attributes(&bytes).flat_map(|a| a.inner().chain([a])).collect();
            prop_assert!(read.len() <= bytes.len());
        }
    }
}
