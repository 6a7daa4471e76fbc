//! Which features stand for which offloads.

use drover_tap::Offloads;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

/// What the driver may take over: the bits of features and of the control command (5.1.6.5.6) are the same.
pub(super) const GUEST: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | GUEST_USO;
const GUEST_USO: u64 = 1 << VIRTIO_NET_F_GUEST_USO4 | 1 << VIRTIO_NET_F_GUEST_USO6;
/// Those by which a packet may be longer than the MTU.
pub(super) const GUEST_LARGE: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6 | GUEST_USO;

/// What is offered where the host can do this much.
pub(super) fn features(host: Offloads) -> u64 {
    if !host.checksum {
        return 0;
    }
    let mut features =
        1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    if host.tso4 {
        features |= 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO4;
    }
    if host.tso6 {
        features |= 1 << VIRTIO_NET_F_GUEST_TSO6 | 1 << VIRTIO_NET_F_HOST_TSO6;
    }
    if host.ecn {
        features |= 1 << VIRTIO_NET_F_GUEST_ECN | 1 << VIRTIO_NET_F_HOST_ECN;
    }
    if host.uso {
        features |= GUEST_USO | 1 << VIRTIO_NET_F_HOST_USO;
    }
    features
}

/// What the host may leave to a driver that has these bits. Without checksums nothing; the kernel knows datagrams of
/// both protocols only together.
pub(super) fn left_to_driver(bits: u64) -> Offloads {
    let has = |bit: u32| bits & 1 << VIRTIO_NET_F_GUEST_CSUM != 0 && bits & 1 << bit != 0;
    let tso4 = has(VIRTIO_NET_F_GUEST_TSO4);
    let tso6 = has(VIRTIO_NET_F_GUEST_TSO6);
    Offloads {
        checksum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4,
        tso6,
        ecn: has(VIRTIO_NET_F_GUEST_ECN) && (tso4 || tso6),
        uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_gets_what_it_takes_and_nothing_without_checksums() {
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        assert_eq!(features(Offloads::default()), 0);
        assert_eq!(left_to_driver(features(all)), all);
        assert_eq!(left_to_driver(GUEST), all);
        assert_eq!(left_to_driver(GUEST & !(1 << VIRTIO_NET_F_GUEST_CSUM)), Offloads::default());
        assert_eq!(
            left_to_driver(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_ECN),
            Offloads { checksum: true, ..Offloads::default() },
            "congestion marks are of TCP segments"
        );
    }
}
