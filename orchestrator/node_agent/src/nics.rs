//! Network interfaces: a tap for each, in a bridge of this node.
//!
//! vmmd's process has the tap, which is gone when the process is: nothing is left behind, however it ends. A jailed vmmd cannot
//! make it: it is made here, and its queues are handed over.

use drover_ids::{NodeId, VmId};
use drover_tap::{Interface, TapError, TapName};
use drover_wire::{node::v1::Nic, vm::v1 as vm};
use tonic::Status;

use crate::host_facts::Network;

/// As many as vmmd takes.
const NICS_MAX: usize = 8;

/// Where a tap belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wiring {
    tap: TapName,
    bridge: TapName,
    /// `None`: the kernel's.
    mtu: Option<u16>,
}

/// Gives each interface a tap and finds its bridge.
pub(crate) fn resolve(
    (node, vm): (NodeId, VmId),
    nics: Vec<Nic>,
    networks: &[Network],
) -> Result<(Vec<vm::Nic>, Vec<Wiring>), Status> {
    if nics.len() > NICS_MAX {
        return Err(Status::invalid_argument(format!("spec.nics has more than {NICS_MAX} entries")));
    }
    let mut resolved = (Vec::with_capacity(nics.len()), Vec::with_capacity(nics.len()));
    for (n, nic) in nics.into_iter().enumerate() {
        let (nic, wiring) = resolve_one((node, vm), (nic, n), networks)?;
        resolved.0.push(nic);
        resolved.1.push(wiring);
    }
    Ok(resolved)
}

/// The same for one; `n` is its place, counted from 0, where it does not say one.
pub(crate) fn resolve_one(
    (node, vm): (NodeId, VmId),
    (nic, n): (Nic, usize),
    networks: &[Network],
) -> Result<(vm::Nic, Wiring), Status> {
    let network = find(&nic.network, networks)?;
    let place = if nic.place == 0 { n as u32 + 1 } else { nic.place };
    if place > NICS_MAX as u32 {
        return Err(Status::invalid_argument(format!("nic.place is {place}: at most {NICS_MAX}")));
    }
    let tap = tap_name(node, vm, place - 1);
    let mtu = u16::try_from(nic.mtu)
        .map_err(|_| Status::invalid_argument(format!("spec.nics[{n}].mtu is above 65535")))?;
    let wiring =
        Wiring { tap: tap.clone(), bridge: network.bridge.clone(), mtu: Some(mtu).filter(|mtu| *mtu > 0) };
    let nic = vm::Nic {
        mac: nic.mac,
        tap: tap.to_string(),
        queue_pairs: nic.queue_pairs,
        mtu: nic.mtu,
        limits: nic.limits,
        place,
    };
    Ok((nic, wiring))
}

fn find<'a>(name: &str, networks: &'a [Network]) -> Result<&'a Network, Status> {
    let found = match (name, networks) {
        ("", [only]) => Some(only),
        _ => networks.iter().find(|network| network.name == name),
    };
    found.ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        let known: Vec<_> = networks.iter().map(|network| network.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Status::failed_precondition(format!(
            "this node has no bridge into network '{shown}': it has {known} (--network of its agent)"
        ))
    })
}

/// The same for the same interface of the same VM at the same node, and another for every other: from the random ends of both
/// ids. A VM that moves has two for a moment, and several agents may share a host.
fn tap_name(node: NodeId, vm: VmId, n: u32) -> TapName {
    let end = (node.as_u128() ^ vm.as_u128()) & ((1 << 44) - 1);
    format!("dv{end:011x}.{n}").parse().expect("15 letters, digits and a dot")
}

/// Whether an interface's tap is there: some process has it.
pub(crate) fn is_there(nic: &vm::Nic) -> bool {
    nic.tap.parse().is_ok_and(|tap: TapName| Interface::exists(&tap))
}

/// Puts taps that vmmd has opened into their bridges. Refused where this is not this host's root.
pub(crate) fn connect(wiring: &[Wiring]) -> Result<(), Status> {
    let connect = |Wiring { tap, bridge, mtu }: &Wiring| -> Result<(), TapError> {
        let interface = Interface::find(tap.clone())?;
        if let Some(mtu) = mtu {
            interface.set_mtu(*mtu)?;
        }
        interface.join_bridge(bridge)?;
        interface.set_up(true)
    };
    wiring.iter().try_for_each(|wiring| connect(wiring).map_err(|error| status(&error)))
}

/// What the host's network refuses.
pub(crate) fn status(error: &TapError) -> Status {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    Status::failed_precondition(format!("{error}{}", cause.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(names: &[&str]) -> Vec<Network> {
        let network = |name: &&str| Network { name: (*name).into(), bridge: "br0".parse().expect("a name") };
        names.iter().map(network).collect()
    }

    fn check(network: &str, known: &[&str], expect: Result<&str, &str>) {
        let nic = Nic { network: network.into(), mtu: 9000, ..Nic::default() };
        let vm = VmId::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
        match (resolve((NodeId::from_u128(1), vm), vec![nic.clone(), nic], &networks(known)), expect) {
            (Ok((nics, wiring)), Ok(tap)) => {
                assert_eq!((nics[0].tap.as_str(), wiring[0].mtu), (tap, Some(9000)));
                assert_ne!(nics[0].tap, nics[1].tap);
            }
            (Err(status), Err(text)) => assert!(status.message().contains(text), "{status}"),
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_interface_gets_a_tap_of_its_own_in_the_network_it_names() {
        check("lan", &["wan", "lan"], Ok("dv302099a8056.0"));
        check("", &["lan"], Ok("dv302099a8056.0"));
        check("", &["lan", "wan"], Err("it has lan, wan"));
        check("dmz", &["lan"], Err("network 'dmz'"));
        check("", &[], Err("it has none"));
    }
}
