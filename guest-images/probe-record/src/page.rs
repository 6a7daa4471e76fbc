//! Contents of a page of RAM that the probe keeps rewriting.
//!
//! A page's words follow from the seed, the page's number and the pass that wrote it last. So a page that arrives on the
//! other side of a migration as it was a pass ago is as wrong as one with a flipped bit.

/// 64-bit words in a page of 4 KiB.
pub const PAGE_WORDS: usize = 512;

/// A page of RAM.
pub type Page = [u64; PAGE_WORDS];

/// Odd, so that all words of a page differ.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a page holds after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageContent {
    /// The probe's seed.
    pub seed: u64,
    /// The page's number in the swept region.
    pub page: u64,
    /// The sweep that wrote it.
    pub pass: u64,
}

impl PageContent {
    /// Fills a page.
    pub fn write(self, page: &mut Page) {
        let start = self.start();
        for (index, word) in page.iter_mut().enumerate() {
            *word = start.wrapping_add((index as u64).wrapping_mul(STEP));
        }
    }

    /// Whether a page holds exactly this.
    pub fn matches(self, page: &Page) -> bool {
        let start = self.start();
        // No early exit: a whole page is the usual case, and this form becomes vector instructions.
        let difference = page.iter().enumerate().fold(0, |difference, (index, word)| {
            difference | (word ^ start.wrapping_add((index as u64).wrapping_mul(STEP)))
        });
        difference == 0
    }

    fn start(self) -> u64 {
        crate::mix(crate::mix(crate::mix(self.seed) ^ self.page) ^ self.pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTENT: PageContent = PageContent { seed: 1, page: 2, pass: 3 };

    fn written() -> Page {
        let mut page = [0; PAGE_WORDS];
        CONTENT.write(&mut page);
        page
    }

    #[test]
    fn a_written_page_matches() {
        assert!(CONTENT.matches(&written()));
    }

    #[test]
    fn any_other_content_does_not() {
        for other in [
            PageContent { seed: 2, ..CONTENT },
            PageContent { page: 3, ..CONTENT },
            PageContent { pass: 2, ..CONTENT },
        ] {
            assert!(!other.matches(&written()), "{other:?}");
        }
        assert!(!CONTENT.matches(&[0; PAGE_WORDS]));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(word in 0..PAGE_WORDS, bit in 0..64) {
            let mut page = written();
            page[word] ^= 1u64 << bit;
            prop_assert!(!CONTENT.matches(&page));
        }
    }
}
