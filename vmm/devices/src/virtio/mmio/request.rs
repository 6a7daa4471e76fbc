//! Accesses to the register window, parsed: which register, and what to do with it (section 4.2.2).
//!
//! Pure: offsets and bytes in, values out. The configuration space takes any width; every other register takes four
//! bytes at its own address and nothing else.

use virtio_bindings::virtio_mmio as mmio;

/// Length of the register window, bytes.
pub(super) const WINDOW_LEN: u64 = 0x1000;
/// Where the configuration space begins.
const CONFIG_SPACE: u64 = mmio::VIRTIO_MMIO_CONFIG as u64;

/// A read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Magic,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    QueueSizeMax,
    QueueReady,
    InterruptStatus,
    Status,
    /// There is no shared memory: its length reads as all ones (4.2.2).
    NoSharedMemory,
    ConfigGeneration,
    /// Bytes of the configuration space from this offset on.
    Config(u64),
}

/// A write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    DeviceFeaturesSelect(u32),
    DriverFeatures(u32),
    DriverFeaturesSelect(u32),
    QueueSelect(u32),
    QueueSize(u32),
    QueueReady(bool),
    QueueNotify(u32),
    InterruptAck(u32),
    Status(u32),
    QueueAddress(Ring, Half, u32),
    /// Bytes for the configuration space from this offset on.
    Config(u64),
}

/// One of a queue's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    Descriptors,
    Available,
    Used,
}

/// One half of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

impl Half {
    /// `address` with this half replaced.
    pub(super) fn replace(self, address: u64, value: u32) -> u64 {
        match self {
            Self::Low => address & !0xffff_ffff | u64::from(value),
            Self::High => address & 0xffff_ffff | u64::from(value) << 32,
        }
    }
}

/// What a read of `len` bytes at `offset` asks for; `None` where no register answers.
pub(super) fn parse_read(offset: u64, len: usize) -> Option<Read> {
    if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
        return Some(Read::Config(offset));
    }
    if len != 4 {
        return None;
    }
    Some(match u32::try_from(offset).ok()? {
        mmio::VIRTIO_MMIO_MAGIC_VALUE => Read::Magic,
        mmio::VIRTIO_MMIO_VERSION => Read::Version,
        mmio::VIRTIO_MMIO_DEVICE_ID => Read::DeviceId,
        mmio::VIRTIO_MMIO_VENDOR_ID => Read::VendorId,
        mmio::VIRTIO_MMIO_DEVICE_FEATURES => Read::DeviceFeatures,
        mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => Read::QueueSizeMax,
        mmio::VIRTIO_MMIO_QUEUE_READY => Read::QueueReady,
        mmio::VIRTIO_MMIO_INTERRUPT_STATUS => Read::InterruptStatus,
        mmio::VIRTIO_MMIO_STATUS => Read::Status,
        mmio::VIRTIO_MMIO_SHM_LEN_LOW
        | mmio::VIRTIO_MMIO_SHM_LEN_HIGH
        | mmio::VIRTIO_MMIO_SHM_BASE_LOW
        | mmio::VIRTIO_MMIO_SHM_BASE_HIGH => Read::NoSharedMemory,
        mmio::VIRTIO_MMIO_CONFIG_GENERATION => Read::ConfigGeneration,
        _ => return None,
    })
}

/// What a write of `data` at `offset` asks for; `None` where no register answers.
pub(super) fn parse_write(offset: u64, data: &[u8]) -> Option<Write> {
    if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
        return Some(Write::Config(offset));
    }
    let value = u32::from_le_bytes(data.try_into().ok()?);
    Some(match u32::try_from(offset).ok()? {
        mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => Write::DeviceFeaturesSelect(value),
        mmio::VIRTIO_MMIO_DRIVER_FEATURES => Write::DriverFeatures(value),
        mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => Write::DriverFeaturesSelect(value),
        mmio::VIRTIO_MMIO_QUEUE_SEL => Write::QueueSelect(value),
        mmio::VIRTIO_MMIO_QUEUE_NUM => Write::QueueSize(value),
        mmio::VIRTIO_MMIO_QUEUE_READY => Write::QueueReady(value & 1 == 1),
        mmio::VIRTIO_MMIO_QUEUE_NOTIFY => Write::QueueNotify(value),
        mmio::VIRTIO_MMIO_INTERRUPT_ACK => Write::InterruptAck(value),
        mmio::VIRTIO_MMIO_STATUS => Write::Status(value),
        mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => Write::QueueAddress(Ring::Descriptors, Half::Low, value),
        mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => Write::QueueAddress(Ring::Descriptors, Half::High, value),
        mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => Write::QueueAddress(Ring::Available, Half::Low, value),
        mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => Write::QueueAddress(Ring::Available, Half::High, value),
        mmio::VIRTIO_MMIO_QUEUE_USED_LOW => Write::QueueAddress(Ring::Used, Half::Low, value),
        mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => Write::QueueAddress(Ring::Used, Half::High, value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_answer_to_four_bytes_at_their_address_only() {
        assert_eq!(parse_read(0, 4), Some(Read::Magic));
        assert_eq!(parse_read(0x70, 4), Some(Read::Status));
        assert_eq!(parse_write(0x70, &[7, 0, 0, 0]), Some(Write::Status(7)));
        for (offset, len) in [(0, 1), (0, 8), (1, 4), (0x72, 2), (0x50, 4), (0xf8, 4)] {
            assert_eq!(parse_read(offset, len), None, "{len} bytes at {offset:#x}");
        }
        for (offset, len) in [(0x70, 1), (0x70, 8), (0x71, 4), (0x60, 4), (0, 4), (0xfe, 4)] {
            assert_eq!(parse_write(offset, &vec![0; len]), None, "{len} bytes at {offset:#x}");
        }
    }

    #[test]
    fn the_configuration_space_answers_to_any_width() {
        for len in [1, 2, 4, 8] {
            assert_eq!(parse_read(0x103, len), Some(Read::Config(3)));
            assert_eq!(parse_write(0x103, &vec![0; len]), Some(Write::Config(3)));
        }
    }

    #[test]
    fn an_address_is_put_together_from_its_halves() {
        let address = Half::Low.replace(0x1111_2222_3333_4444, 0xaaaa_bbbb);
        assert_eq!(address, 0x1111_2222_aaaa_bbbb);
        assert_eq!(Half::High.replace(address, 0xcccc_dddd), 0xcccc_dddd_aaaa_bbbb);
    }
}
