//! Accesses to the common configuration, parsed: which field, and what to do with it (4.1.4.3).
//!
//! Pure: offsets and bytes in, values out. A field answers to an access of its own width at its own address, those of
//! 64 bits also to each half of it (4.1.3.1).

/// Length of the structure, bytes, without the fields of features that are not offered.
pub(super) const COMMON_LEN: u64 = 0x38;

/// A read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    DeviceFeaturesSelect,
    DeviceFeatures,
    DriverFeaturesSelect,
    DriverFeatures,
    ConfigVector,
    QueueCount,
    Status,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    /// All of an address, or one half of it: bits to shift by.
    QueueAddress(Ring, Part),
}

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    DeviceFeaturesSelect(u32),
    DriverFeaturesSelect(u32),
    DriverFeatures(u32),
    ConfigVector(u16),
    Status(u8),
    QueueSelect(u16),
    QueueSize(u16),
    QueueVector(u16),
    QueueEnable(u16),
    QueueAddress(Ring, Part, u64),
}

/// One of a queue's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    Descriptors,
    Available,
    Used,
}

/// How much of a 64-bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Low,
    High,
}

impl Part {
    /// `field` with this part replaced.
    pub(super) fn replace(self, field: u64, value: u64) -> u64 {
        match self {
            Self::Whole => value,
            Self::Low => field & !0xffff_ffff | value & 0xffff_ffff,
            Self::High => field & 0xffff_ffff | value << 32,
        }
    }

    /// This part of `field`.
    pub(super) fn of(self, field: u64) -> u64 {
        match self {
            Self::Whole | Self::Low => field,
            Self::High => field >> 32,
        }
    }
}

/// What a read of `len` bytes at `offset` asks for.
pub(super) fn parse_read(offset: u64, len: usize) -> Option<Read> {
    Some(match (offset, len) {
        (0x00, 4) => Read::DeviceFeaturesSelect,
        (0x04, 4) => Read::DeviceFeatures,
        (0x08, 4) => Read::DriverFeaturesSelect,
        (0x0c, 4) => Read::DriverFeatures,
        (0x10, 2) => Read::ConfigVector,
        (0x12, 2) => Read::QueueCount,
        (0x14, 1) => Read::Status,
        (0x15, 1) => Read::ConfigGeneration,
        (0x16, 2) => Read::QueueSelect,
        (0x18, 2) => Read::QueueSize,
        (0x1a, 2) => Read::QueueVector,
        (0x1c, 2) => Read::QueueEnable,
        (0x1e, 2) => Read::QueueNotifyOffset,
        _ => {
            let (ring, part) = address(offset, len)?;
            Read::QueueAddress(ring, part)
        }
    })
}

/// What a write of `data` at `offset` asks for.
pub(super) fn parse_write(offset: u64, data: &[u8]) -> Option<Write> {
    let mut bytes = [0; 8];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    let value = u64::from_le_bytes(bytes);
    let (word, half) = (value as u32, value as u16);
    Some(match (offset, data.len()) {
        (0x00, 4) => Write::DeviceFeaturesSelect(word),
        (0x08, 4) => Write::DriverFeaturesSelect(word),
        (0x0c, 4) => Write::DriverFeatures(word),
        (0x10, 2) => Write::ConfigVector(half),
        (0x14, 1) => Write::Status(value as u8),
        (0x16, 2) => Write::QueueSelect(half),
        (0x18, 2) => Write::QueueSize(half),
        (0x1a, 2) => Write::QueueVector(half),
        (0x1c, 2) => Write::QueueEnable(half),
        (offset, len) => {
            let (ring, part) = address(offset, len)?;
            Write::QueueAddress(ring, part, value)
        }
    })
}

fn address(offset: u64, len: usize) -> Option<(Ring, Part)> {
    let ring = match offset & !7 {
        0x20 => Ring::Descriptors,
        0x28 => Ring::Available,
        0x30 => Ring::Used,
        _ => return None,
    };
    let part = match (offset & 7, len) {
        (0, 8) => Part::Whole,
        (0, 4) => Part::Low,
        (4, 4) => Part::High,
        _ => return None,
    };
    Some((ring, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_answer_to_their_width_at_their_address() {
        assert_eq!(parse_read(0x14, 1), Some(Read::Status));
        assert_eq!(parse_read(0x20, 8), Some(Read::QueueAddress(Ring::Descriptors, Part::Whole)));
        assert_eq!(
            parse_write(0x2c, &[1, 0, 0, 0]),
            Some(Write::QueueAddress(Ring::Available, Part::High, 1))
        );
        assert_eq!(parse_write(0x10, &[0xff, 0xff]), Some(Write::ConfigVector(0xffff)));
        for (offset, len) in
            [(0x14, 2), (0x14, 4), (0, 8), (0x22, 2), (0x24, 8), (0x1e, 4), (0x11, 1), (0x38, 2)]
        {
            assert_eq!(parse_read(offset, len), None, "{len} bytes at {offset:#x}");
        }
        // What the device says, the driver cannot write.
        for (offset, len) in [(0x04, 4), (0x12, 2), (0x15, 1), (0x1e, 2), (0, 9)] {
            assert_eq!(parse_write(offset, &vec![0; len]), None, "{len} bytes at {offset:#x}");
        }
    }

    #[test]
    fn a_field_is_put_together_from_its_parts() {
        let field = Part::Low.replace(0x1111_2222_3333_4444, 0xaaaa_bbbb);
        assert_eq!(field, 0x1111_2222_aaaa_bbbb);
        assert_eq!(Part::High.replace(field, 0xcccc_dddd), 0xcccc_dddd_aaaa_bbbb);
        assert_eq!(Part::High.of(field), 0x1111_2222);
        assert_eq!(Part::Whole.replace(field, 5), 5);
    }
}
