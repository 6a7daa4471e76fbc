//! Quantities as types: each has one unit, and arithmetic that is checked.
//!
//! Guest-, disk- and network-supplied numbers become one of these before anything computes with them, so that an
//! overflow is a `None` that the caller must answer, never a wrapped length.
#![forbid(unsafe_code)]

use std::fmt;

mod display;

/// Size of a page of guest RAM, bytes. x86-64's base page; dirty tracking and migration work in this unit.
pub const PAGE_SIZE: u64 = 4096;
/// Size of a sector, bytes. virtio-blk fixes this unit regardless of the disk's block size (virtio 1.2, 5.2.4).
pub const SECTOR_SIZE: u64 = 512;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// None of it.
            pub const ZERO: Self = Self(0);

            /// Wraps a number that is already in this unit.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }
            /// The number in this unit.
            pub const fn get(self) -> $inner {
                self.0
            }
            /// The sum, or `None` where it would overflow.
            #[must_use]
            pub const fn checked_add(self, other: Self) -> Option<Self> {
                match self.0.checked_add(other.0) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// The difference, or `None` where it would be negative.
            #[must_use]
            pub const fn checked_sub(self, other: Self) -> Option<Self> {
                match self.0.checked_sub(other.0) {
                    Some(difference) => Some(Self(difference)),
                    None => None,
                }
            }
            /// The sum, or the largest value where it would overflow.
            #[must_use]
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
            /// The difference, or zero where it would be negative.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
    };
}

quantity! {
    /// A number of bytes. Displays with binary prefixes (`256 MiB`); parses the same, and `256M`.
    Bytes(u64)
}
quantity! {
    /// A number of 4 KiB pages.
    Pages(u64)
}
quantity! {
    /// A number of 512-byte sectors, or the position of one on a disk.
    Sectors(u64)
}
quantity! {
    /// A guest-physical address.
    Gpa(u64)
}
quantity! {
    /// A number of virtual CPUs.
    VcpuCount(u32)
}
quantity! {
    /// A rate, bytes in a second.
    BytesPerSec(u64)
}

impl Bytes {
    /// `n` KiB. For constants.
    ///
    /// # Panics
    /// Where the result does not fit 64 bits.
    pub const fn kib(n: u64) -> Self {
        Self(n.checked_mul(1 << 10).expect("a constant below 2^54"))
    }
    /// `n` MiB. For constants.
    ///
    /// # Panics
    /// Where the result does not fit 64 bits.
    pub const fn mib(n: u64) -> Self {
        Self(n.checked_mul(1 << 20).expect("a constant below 2^44"))
    }
    /// `n` GiB. For constants.
    ///
    /// # Panics
    /// Where the result does not fit 64 bits.
    pub const fn gib(n: u64) -> Self {
        Self(n.checked_mul(1 << 30).expect("a constant below 2^34"))
    }
    /// Whole sectors, or `None` if this is not a multiple of a sector.
    #[must_use]
    pub const fn to_sectors(self) -> Option<Sectors> {
        if self.0.is_multiple_of(SECTOR_SIZE) { Some(Sectors(self.0 / SECTOR_SIZE)) } else { None }
    }
    /// Whole pages, or `None` if this is not a multiple of a page.
    #[must_use]
    pub const fn to_pages(self) -> Option<Pages> {
        if self.0.is_multiple_of(PAGE_SIZE) { Some(Pages(self.0 / PAGE_SIZE)) } else { None }
    }
}

impl Sectors {
    /// The size in bytes, or `None` where it overflows.
    #[must_use]
    pub const fn to_bytes(self) -> Option<Bytes> {
        match self.0.checked_mul(SECTOR_SIZE) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }
}

impl Pages {
    /// The size in bytes, or `None` where it overflows.
    #[must_use]
    pub const fn to_bytes(self) -> Option<Bytes> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }
}

impl Gpa {
    /// The address `offset` further on, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_offset(self, offset: Bytes) -> Option<Self> {
        match self.0.checked_add(offset.0) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }
}

impl fmt::LowerHex for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

pub use display::ParseBytesError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_overflow_are_none() {
        assert_eq!(Bytes::new(u64::MAX).checked_add(Bytes::new(1)), None);
        assert_eq!(Sectors::new(u64::MAX).to_bytes(), None);
        assert_eq!(Gpa::new(u64::MAX).checked_offset(Bytes::new(1)), None);
        assert_eq!(Pages::new(1).checked_sub(Pages::new(2)), None);
    }

    #[test]
    fn sizes_that_are_not_whole_units_are_none() {
        assert_eq!(Bytes::new(513).to_sectors(), None);
        assert_eq!(Bytes::new(1024).to_sectors(), Some(Sectors::new(2)));
        assert_eq!(Bytes::new(4095).to_pages(), None);
        assert_eq!(Bytes::new(8192).to_pages(), Some(Pages::new(2)));
    }
}
