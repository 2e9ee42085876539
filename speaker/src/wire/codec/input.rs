//! Reads the fields of a packet, one after the other.

/// Why bytes are not a supported packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not a packet of Landfall.
    Foreign,
    /// This version is not supported.
    Version(u8),
    /// Truncated.
    Short,
    /// This field is invalid.
    Invalid(&'static str),
}

/// The bytes that are left to decode.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn name(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let [length] = self.take()?;
        let name = std::str::from_utf8(self.slice(length.into())?);
        name.map(ToOwned::to_owned).map_err(|_| DecodeError::Invalid(field))
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// Reads a count, and then this number of entries. Allocates nothing for missing entries.
    pub(super) fn list<T>(
        &mut self,
        read: impl Fn(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        (0..self.u16()?).map(|_| read(self)).collect()
    }
}
