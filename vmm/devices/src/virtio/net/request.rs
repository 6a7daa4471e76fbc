//! What a chain of the control queue asks for (5.1.6.5). Hostile numbers in, typed values out.

use drover_guest_memory::{GuestMemory, MemoryError};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_VLAN,
};

use super::filter::{ADDRESSES_MAX, MacAddress, Mode, Table, VLANS};
use crate::virtio::chain::Chain;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Receive(Mode, bool),
    Addresses { unicast: Table, multicast: Table },
    OwnAddress(MacAddress),
    Vlan(u16, bool),
    Announced,
    Pairs(u16),
    Offloads(u64),
}

/// Reads the command of a chain. `None`: it is none that there is, or breaks off.
pub(super) fn parse(chain: &Chain, memory: &GuestMemory) -> Result<Option<Command>, MemoryError> {
    let mut data = Data { chain, memory, at: 0 };
    let Some([class, command]) = data.next()? else { return Ok(None) };
    let command = match (u32::from(class), command) {
        (VIRTIO_NET_CTRL_RX, command) => {
            let mode = match command {
                0 => Mode::Promiscuous,
                1 => Mode::AllMulticast,
                2 => Mode::AllUnicast,
                3 => Mode::NoMulticast,
                4 => Mode::NoUnicast,
                5 => Mode::NoBroadcast,
                _ => return Ok(None),
            };
            data.next()?.map(|[on]| Command::Receive(mode, on != 0))
        }
        (VIRTIO_NET_CTRL_MAC, command) if u32::from(command) == VIRTIO_NET_CTRL_MAC_TABLE_SET => {
            let Some(unicast) = data.table()? else { return Ok(None) };
            data.table()?.map(|multicast| Command::Addresses { unicast, multicast })
        }
        (VIRTIO_NET_CTRL_MAC, command) if u32::from(command) == VIRTIO_NET_CTRL_MAC_ADDR_SET => {
            data.next()?.map(MacAddress).filter(|address| !address.is_multicast()).map(Command::OwnAddress)
        }
        (VIRTIO_NET_CTRL_VLAN, command @ 0..=1) => data
            .next()?
            .map(u16::from_le_bytes)
            .filter(|tag| usize::from(*tag) < VLANS)
            .map(|tag| Command::Vlan(tag, command == 0)),
        (VIRTIO_NET_CTRL_ANNOUNCE, 0) => Some(Command::Announced),
        (VIRTIO_NET_CTRL_MQ, 0) => data.next()?.map(u16::from_le_bytes).map(Command::Pairs),
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0) => data.next()?.map(u64::from_le_bytes).map(Command::Offloads),
        _ => None,
    };
    Ok(command)
}

/// The readable bytes of a chain, one after the other.
struct Data<'a> {
    chain: &'a Chain,
    memory: &'a GuestMemory,
    at: u64,
}

impl Data<'_> {
    fn next<const N: usize>(&mut self) -> Result<Option<[u8; N]>, MemoryError> {
        let mut bytes = [0; N];
        let count = self.chain.read(self.memory, self.at, &mut bytes)?;
        self.at = self.at.saturating_add(N as u64);
        Ok((count == N).then_some(bytes))
    }

    /// A count and as many addresses. Of more than are remembered only that there are more.
    fn table(&mut self) -> Result<Option<Table>, MemoryError> {
        let Some(count) = self.next()?.map(u32::from_le_bytes) else { return Ok(None) };
        let len = u64::from(count) * 6;
        if self.chain.readable_len().saturating_sub(self.at) < len {
            return Ok(None);
        }
        if count as usize > ADDRESSES_MAX {
            self.at = self.at.saturating_add(len);
            return Ok(Some(Table::new(Vec::new(), true)));
        }
        let mut addresses = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let Some(address) = self.next()? else { return Ok(None) };
            addresses.push(MacAddress(address));
        }
        Ok(Some(Table::new(addresses, false)))
    }
}

#[cfg(test)]
mod tests {
    use drover_units::{Bytes, Gpa};
    use virtio_queue::desc::split::Descriptor;

    use super::*;

    fn check(bytes: &[u8], expect: Option<Command>) {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        memory.write(Gpa::new(0x1000), bytes).unwrap();
        let mut chain = Chain::with_capacity(4);
        // The class alone, the rest, and the answer's byte.
        let descriptors = [(0x1000, 1, 1), (0x1001, bytes.len() as u32 - 1, 1), (0x8000, 1, 2)]
            .map(|(address, len, flags)| Descriptor::new(address, len, flags, 0));
        chain.fill(0, descriptors.into_iter(), 4).unwrap();
        assert_eq!(parse(&chain, &memory).unwrap(), expect, "{bytes:x?}");
    }

    #[test]
    fn commands_are_read() {
        check(&[0, 0, 1], Some(Command::Receive(Mode::Promiscuous, true)));
        check(&[0, 5, 0], Some(Command::Receive(Mode::NoBroadcast, false)));
        check(&[0, 6, 0], None);
        check(&[0, 0], None);
        check(&[1, 1, 2, 0, 0, 0, 0, 9], Some(Command::OwnAddress(MacAddress([2, 0, 0, 0, 0, 9]))));
        check(&[1, 1, 1, 0, 0, 0, 0, 9], None);
        check(&[1, 1, 2, 0, 0, 0, 0], None);
        check(&[2, 0, 0xff, 0x0f], Some(Command::Vlan(4095, true)));
        check(&[2, 1, 1, 0], Some(Command::Vlan(1, false)));
        check(&[2, 0, 0, 0x10], None);
        check(&[3, 0], Some(Command::Announced));
        check(&[4, 0, 2, 0], Some(Command::Pairs(2)));
        check(&[4, 1, 2, 0], None);
        check(&[5, 0, 1, 2, 0, 0, 0, 0, 0, 0], Some(Command::Offloads(0x201)));
        check(&[9, 9, 9], None);
    }

    #[test]
    fn tables_are_read_as_far_as_they_are_there() {
        let empty = Table::default;
        check(
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            Some(Command::Addresses { unicast: empty(), multicast: empty() }),
        );
        let group = MacAddress([1, 0, 0x5e, 0, 0, 1]);
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        bytes.extend(group.0);
        let multicast = Table::new(vec![group], false);
        check(&bytes, Some(Command::Addresses { unicast: empty(), multicast }));
        bytes.pop();
        check(&bytes, None);
        check(&[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], None);
        let mut many = vec![1, 0, 65, 0, 0, 0];
        many.extend([2; 65 * 6]);
        many.extend([0, 0, 0, 0]);
        let unicast = Table::new(Vec::new(), true);
        check(&many, Some(Command::Addresses { unicast, multicast: empty() }));
    }
}
