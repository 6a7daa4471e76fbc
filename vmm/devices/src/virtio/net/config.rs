//! The configuration space (section 5.1.4) and the features that say which of its fields count.

use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::{
        VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN,
        VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
        VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE,
        VIRTIO_NET_S_LINK_UP,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use super::{filter::MacAddress, offloads};

const LEN: usize = 12;

/// What the space says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) mac: MacAddress,
    pub(super) announce: bool,
    pub(super) pairs_max: u16,
    pub(super) mtu: Option<u16>,
}

/// What the driver may ask for.
pub(super) fn features(host: drover_tap::Offloads, pairs_max: u16, mtu: Option<u16>) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_CTRL_RX_EXTRA,
        VIRTIO_NET_F_CTRL_VLAN,
        VIRTIO_NET_F_CTRL_MAC_ADDR,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
    ];
    let optional = [(pairs_max > 1, VIRTIO_NET_F_MQ), (mtu.is_some(), VIRTIO_NET_F_MTU)];
    let bits = always.into_iter().chain(optional.into_iter().filter_map(|(on, bit)| on.then_some(bit)));
    bits.fold(offloads::features(host), |features, bit| features | 1 << bit)
}

impl Space {
    fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let announce = if self.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = (VIRTIO_NET_S_LINK_UP | announce) as u16;
        bytes[..6].copy_from_slice(&self.mac.0);
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.pairs_max.to_le_bytes());
        bytes[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// Fills `data` from the space at `offset`; what is beyond it is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let space = self.bytes();
        let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
        let there = &space[from..from.saturating_add(data.len()).min(LEN)];
        data.fill(0);
        data[..there.len()].copy_from_slice(there);
    }

    /// A number that is another one after the space has changed (4.2.2.1).
    pub(super) fn generation(&self) -> u32 {
        // FNV-1a, on every host the same.
        self.bytes()
            .iter()
            .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_is_read_in_any_pieces_and_ends() {
        let mac = MacAddress([2, 3, 4, 5, 6, 7]);
        let space = Space { mac, announce: false, pairs_max: 4, mtu: Some(9000) };
        let whole = [2, 3, 4, 5, 6, 7, 1, 0, 4, 0, 0x28, 0x23, 0, 0];
        for (from, to) in [(0, 14), (5, 7), (11, 14), (12, 14)] {
            let mut data = vec![0xff; to - from];
            space.read(from as u64, &mut data);
            assert_eq!(data, whole[from..to]);
        }
        let mut data = [0xff; 2];
        space.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 2]);
        let announcing = Space { announce: true, ..space };
        assert_ne!(space.generation(), announcing.generation());
        announcing.read(6, &mut data);
        assert_eq!(data, [3, 0]);
    }
}
