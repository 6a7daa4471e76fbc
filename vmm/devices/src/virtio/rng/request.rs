//! How much of what a driver asks for it gets at once. Pure.

/// Most bytes for one request. The driver asks again for more (5.4.6): Linux asks for 64 bytes to a few hundred.
pub(super) const REQUEST_BYTES_MAX: usize = 4096;

/// Most bytes in one [`PERIOD_MS`]: 5 MiB/s, a hundred times what a guest with every use for it takes, and a few per
/// cent of a processor.
pub(super) const PERIOD_BYTES: usize = 256 << 10;
/// How long the driver waits once it has had so much.
pub(super) const PERIOD_MS: u64 = 50;

/// What is left of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance(usize);

impl Allowance {
    /// All of it.
    pub(super) const FULL: Self = Self(PERIOD_BYTES);

    /// How many bytes a request for `asked` gets. `None`: none before the next period.
    pub(super) fn grant(&mut self, asked: u64) -> Option<usize> {
        let granted = usize::try_from(asked).unwrap_or(usize::MAX).min(REQUEST_BYTES_MAX);
        self.0 = self.0.checked_sub(granted)?;
        Some(granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_a_page_at_most_and_a_period_so_many() {
        let mut allowance = Allowance::FULL;
        assert_eq!(allowance.grant(64), Some(64));
        assert_eq!(allowance.grant(0), Some(0));
        let pages = (0..).take_while(|_| allowance.grant(u64::MAX) == Some(REQUEST_BYTES_MAX)).count();
        assert_eq!(pages, PERIOD_BYTES / REQUEST_BYTES_MAX - 1);
        assert_eq!(allowance.grant(REQUEST_BYTES_MAX as u64), None);
        assert_eq!(allowance.grant(64), Some(64), "what is left is for whoever needs less");
    }
}
