//! Saved states that are almost right: a real one with some bytes changed, and checksums that fit again.

/// A payload that is being changed.
#[derive(Debug)]
pub struct Changed {
    /// As it is now.
    pub bytes: Vec<u8>,
}

impl Changed {
    /// Not changed yet.
    pub fn new(payload: &[u8]) -> Self {
        Self { bytes: payload.to_vec() }
    }

    /// One change: what, where (two bytes), and two bytes of what is put there. The highest bit of the first byte is the
    /// caller's.
    pub fn apply(&mut self, change: &[u8]) {
        let byte = |index: usize| change.get(index).copied().unwrap_or(0);
        if self.bytes.is_empty() {
            self.bytes.push(byte(3));
            return;
        }
        let at = usize::from(u16::from_le_bytes([byte(1), byte(2)])) % self.bytes.len();
        let word = |value: u64, len: usize| value.to_le_bytes()[..len].to_vec();
        let number = u64::from(byte(3)) | u64::from(byte(4)) << 8;
        let new = match byte(0) & 7 {
            0 | 1 => vec![byte(3)],
            2 => word(number, 2),
            3 => word(number, 4),
            4 => word(number << (byte(0) >> 1 & 0x3c), 8),
            5 => word(u64::MAX - number, 1 << (byte(0) >> 3 & 3)),
            6 => {
                self.bytes.truncate(at);
                return;
            }
            _ => {
                self.bytes.insert(at, byte(3));
                return;
            }
        };
        let end = (at + new.len()).min(self.bytes.len());
        self.bytes[at..end].copy_from_slice(&new[..end - at]);
    }
}

/// An envelope around this payload, as drover-saved-state has it.
pub fn resealed(kind: &str, instance: u16, version: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"DrvS\x01\0".to_vec();
    bytes.push(kind.len() as u8);
    bytes.extend(kind.as_bytes());
    bytes.extend(instance.to_le_bytes());
    bytes.extend(version.to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}
