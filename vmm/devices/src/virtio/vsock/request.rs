//! Packet headers (5.10.6) and the host's handshake. Pure.

use crate::virtio::ring::RingError;

/// Length of a packet's header.
pub(super) const HEADER_LEN: usize = 44;
/// Most data in one packet: what Linux sends at most.
pub(super) const DATA_BYTES_MAX: u32 = 64 << 10;
/// The host's CID.
pub(super) const HOST_CID: u64 = 2;

const TYPE_STREAM: u16 = 1;
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// A connection as both sides name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Response,
    Reset,
    /// With its flags.
    Shutdown(u32),
    /// With the length of its data.
    Data(u32),
    CreditUpdate,
    CreditRequest,
}

/// How much the sender of a packet buffers for this connection, and how much it has taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credit {
    pub(super) buffer: u32,
    pub(super) forwarded: u32,
}

/// A packet without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) ports: Ports,
    pub(super) operation: Operation,
    pub(super) credit: Credit,
}

/// A guest's packet, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Packet(Packet),
    /// One that cannot be for anybody here: answered by a reset, unless it is one.
    Misdirected(Ports),
    /// Not from this guest, or a reset that means nothing.
    Ignored,
}

/// Parses the header of a chain that has `readable` bytes in all.
pub(super) fn parse(header: &[u8; HEADER_LEN], readable: u64, cid: u64) -> Result<Parsed, RingError> {
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let (source, destination) = (u64_at(0), u64_at(8));
    let ports = Ports { guest: u32_at(16), host: u32_at(20) };
    let (len, kind, operation, flags) = (u32_at(24), u16_at(28), u16_at(30), u32_at(32));
    if source != cid {
        return Ok(Parsed::Ignored);
    }
    if len > DATA_BYTES_MAX || HEADER_LEN as u64 + u64::from(len) > readable {
        return Err(RingError::Request("a packet whose data is not there"));
    }
    let operation = match operation {
        1 => Operation::Request,
        2 => Operation::Response,
        3 => Operation::Reset,
        4 => Operation::Shutdown(flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND)),
        5 => Operation::Data(len),
        6 => Operation::CreditUpdate,
        7 => Operation::CreditRequest,
        _ => return Ok(Parsed::Misdirected(ports)),
    };
    if destination != HOST_CID || kind != TYPE_STREAM {
        let ignored = operation == Operation::Reset;
        return Ok(if ignored { Parsed::Ignored } else { Parsed::Misdirected(ports) });
    }
    let credit = Credit { buffer: u32_at(36), forwarded: u32_at(40) };
    Ok(Parsed::Packet(Packet { ports, operation, credit }))
}

impl Packet {
    /// The header of a packet to the guest.
    pub(super) fn encode(&self, cid: u64) -> [u8; HEADER_LEN] {
        let (operation, len, flags) = match self.operation {
            Operation::Request => (1_u16, 0, 0),
            Operation::Response => (2, 0, 0),
            Operation::Reset => (3, 0, 0),
            Operation::Shutdown(flags) => (4, 0, flags),
            Operation::Data(len) => (5, len, 0),
            Operation::CreditUpdate => (6, 0, 0),
            Operation::CreditRequest => (7, 0, 0),
        };
        let mut header = [0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &HOST_CID.to_le_bytes());
        put(8, &cid.to_le_bytes());
        put(16, &self.ports.host.to_le_bytes());
        put(20, &self.ports.guest.to_le_bytes());
        put(24, &len.to_le_bytes());
        put(28, &TYPE_STREAM.to_le_bytes());
        put(30, &operation.to_le_bytes());
        put(32, &flags.to_le_bytes());
        put(36, &self.credit.buffer.to_le_bytes());
        put(40, &self.credit.forwarded.to_le_bytes());
        header
    }
}

/// Longest handshake, with its line end.
pub(super) const HANDSHAKE_BYTES_MAX: usize = 32;

/// The port of a host's `CONNECT <port>` (without its line end).
pub(super) fn handshake(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?;
    let port = port.strip_suffix(b"\r").unwrap_or(port);
    // Digits only: `parse` takes a sign too.
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(port).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: u64 = 3;

    fn header(change: impl FnOnce(&mut [u8; HEADER_LEN])) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = 3;
        header[8] = 2;
        header[16..20].copy_from_slice(&7_u32.to_le_bytes());
        header[20..24].copy_from_slice(&9_u32.to_le_bytes());
        header[24] = 100;
        header[28] = 1;
        header[30] = 5;
        header[36..40].copy_from_slice(&1000_u32.to_le_bytes());
        header[40] = 5;
        change(&mut header);
        header
    }

    fn check(change: impl FnOnce(&mut [u8; HEADER_LEN]), expect: Option<Parsed>) {
        let header = header(change);
        assert_eq!(parse(&header, 144, CID).ok(), expect, "{header:?}");
    }

    #[test]
    fn a_packet_is_for_a_connection_or_for_nobody() {
        let ports = Ports { guest: 7, host: 9 };
        let credit = Credit { buffer: 1000, forwarded: 5 };
        let packet = |operation| Some(Parsed::Packet(Packet { ports, operation, credit }));
        check(|_| {}, packet(Operation::Data(100)));
        check(|header| header[30] = 1, packet(Operation::Request));
        check(|header| (header[30], header[32]) = (4, 0xff), packet(Operation::Shutdown(3)));
        check(|header| header[0] = 4, Some(Parsed::Ignored));
        check(|header| header[8] = 3, Some(Parsed::Misdirected(ports)));
        check(|header| header[28] = 2, Some(Parsed::Misdirected(ports)));
        check(|header| (header[28], header[30]) = (2, 3), Some(Parsed::Ignored));
        check(|header| header[30] = 0, Some(Parsed::Misdirected(ports)));
        check(|header| header[31] = 1, Some(Parsed::Misdirected(ports)));
        check(|header| header[24] = 101, None);
        check(|header| header[27] = 0xff, None);
    }

    #[test]
    fn what_is_sent_is_understood_by_the_other_side() {
        let packet = Packet {
            ports: Ports { host: 1 << 30, guest: 80 },
            operation: Operation::Shutdown(SHUTDOWN_SEND),
            credit: Credit { buffer: 65536, forwarded: u32::MAX },
        };
        let header = packet.encode(CID);
        assert_eq!(header[..16], [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[16..24], [0, 0, 0, 0x40, 80, 0, 0, 0]);
        assert_eq!(header[24..36], [0, 0, 0, 0, 1, 0, 4, 0, 2, 0, 0, 0]);
        assert_eq!(header[36..], [0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_handshake_names_a_port() {
        assert_eq!(handshake(b"CONNECT 22"), Some(22));
        assert_eq!(handshake(b"CONNECT 4294967295\r"), Some(u32::MAX));
        for bad in
            [&b""[..], b"CONNECT ", b"connect 22", b"CONNECT +22", b"CONNECT 22 ", b"CONNECT 4294967296"]
        {
            assert_eq!(handshake(bad), None, "{bad:?}");
        }
    }
}
