//! An input that the kernel has refused: [`Refused`]. Pure.

/// The number of checks until a refused input is tried again. They take five minutes.
const CHECKS_UNTIL_RETRY: u32 = 30;

/// The last refused input, while it must not be tried again.
pub(super) struct Refused<T>(Option<(T, u32)>);

impl<T> Default for Refused<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone + PartialEq> Refused<T> {
    /// The kernel has just refused this input.
    pub(super) fn new(input: &T) -> Self {
        Self(Some((input.clone(), CHECKS_UNTIL_RETRY)))
    }

    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Whether this input was refused and must not be tried yet. With `check`, this call counts as one check. Any other
    /// input clears the refusal.
    pub(super) fn blocks(&mut self, input: &T, check: bool) -> bool {
        let Some((refused, checks)) = &mut self.0 else { return false };
        *checks = checks.saturating_sub(u32::from(check));
        let blocks = *checks > 0 && refused == input;
        if !blocks {
            self.0 = None;
        }
        blocks
    }
}
