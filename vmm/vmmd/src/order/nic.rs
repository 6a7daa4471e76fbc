//! Network interfaces.

use std::collections::BTreeSet;

use drover_machine::{
    DeviceBus, Slot,
    devices::{MacAddress, limits::Limits},
};
use drover_tap::{QUEUES_MAX, TapName};
use drover_wire::vm::v1 as wire;

use super::{
    fields::{InvalidField, invalid, parsed},
    limits::limits,
    vm_config::place,
};

/// Most interfaces of one VM: what the slots beside disks and other devices have room for.
pub(super) const NICS_MAX: usize = 8;
/// Each pair is a thread; as many as the disks' queues may be.
const PAIRS_MAX: u16 = 64;
const _: () = assert!(PAIRS_MAX <= QUEUES_MAX);
/// The least that IPv4 asks for (RFC 791), and the most that the field holds.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// An interface in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NicConfig {
    pub(crate) mac: MacAddress,
    pub(crate) tap: TapName,
    pub(crate) pairs: u16,
    pub(crate) mtu: Option<u16>,
    pub(crate) limits: Limits,
    /// Its place among interfaces, counted from 0.
    pub(crate) index: u8,
}

impl NicConfig {
    /// Its slot on a PCI bus: interfaces have the last ones, so that neither disks nor other devices move them, nor they
    /// those.
    pub(crate) fn pci_slot(&self) -> Slot {
        Slot::new(Slot::count(DeviceBus::VirtioPci) - 1 - self.index)
    }
}

pub(super) fn nics(messages: Vec<wire::Nic>) -> Result<Vec<NicConfig>, InvalidField> {
    if messages.len() > NICS_MAX {
        let found = format!("{} interfaces", messages.len());
        return Err(invalid("config.nics", found, &format!("at most {NICS_MAX}")));
    }
    let (mut macs, mut taps) = (BTreeSet::new(), BTreeSet::new());
    let mut nics = Vec::with_capacity(messages.len());
    let mut indexes = BTreeSet::new();
    for (n, message) in messages.into_iter().enumerate() {
        let prefix = format!("config.nics[{n}]");
        let field = |name: &str| format!("{prefix}.{name}");
        let nic = nic(&prefix, message, n)?;
        if !indexes.insert(nic.index) {
            return Err(invalid(&field("place"), nic.index + 1, "a place that no other interface has"));
        }
        if !macs.insert(nic.mac) {
            return Err(invalid(&field("mac"), nic.mac, "an address that no other interface has"));
        }
        if !taps.insert(nic.tap.clone()) {
            return Err(invalid(&field("tap"), &nic.tap, "a tap that no other interface has"));
        }
        nics.push(nic);
    }
    Ok(nics)
}

/// An interface; `n` is its place, counted from 0, where it does not say one.
pub(super) fn nic(prefix: &str, message: wire::Nic, n: usize) -> Result<NicConfig, InvalidField> {
    let field = |name: &str| format!("{prefix}.{name}");
    let pairs = u16::try_from(message.queue_pairs).ok().filter(|pairs| *pairs <= PAIRS_MAX);
    let mtu = match message.mtu {
        0 => None,
        mtu if MTU.contains(&mtu) => u16::try_from(mtu).ok(),
        mtu => return Err(invalid(&field("mtu"), mtu, "68 to 65535, or 0 for none")),
    };
    Ok(NicConfig {
        mac: parsed(&field("mac"), &message.mac)?,
        tap: parsed(&field("tap"), &message.tap)?,
        pairs: pairs
            .ok_or_else(|| {
                let expected = format!("at most {PAIRS_MAX}; 0 is 1");
                invalid(&field("queue_pairs"), message.queue_pairs, &expected)
            })?
            .max(1),
        mtu,
        limits: limits(&field("limits"), message.limits)?,
        index: place(prefix, (message.place, n), NICS_MAX)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: fn(&mut wire::Nic), field: &str) {
        let mut nic = wire::Nic { mac: "52:54:00:00:00:01".into(), tap: "t0".into(), ..wire::Nic::default() };
        change(&mut nic);
        let second = wire::Nic { mac: "52:54:00:00:00:02".into(), tap: "t1".into(), ..wire::Nic::default() };
        match nics(vec![second, nic]) {
            Ok(nics) => assert_eq!((field, nics.len()), ("", 2)),
            Err(error) => assert!(error.to_string().starts_with(field) && !field.is_empty(), "{error}"),
        }
    }

    #[test]
    fn what_is_no_interface_is_refused_by_field() {
        check(|_| {}, "");
        check(|nic| nic.mac = "01:00:00:00:00:00".into(), "config.nics[1].mac");
        check(|nic| nic.mac = "52:54:00:00:00:02".into(), "config.nics[1].mac");
        check(|nic| nic.tap = "../t".into(), "config.nics[1].tap");
        check(|nic| nic.tap = "t1".into(), "config.nics[1].tap");
        check(|nic| nic.place = 1, "config.nics[1].place");
        check(|nic| nic.place = 9, "config.nics[1].place");
        check(|nic| nic.mtu = 67, "config.nics[1].mtu");
        check(|nic| nic.queue_pairs = 65, "config.nics[1].queue_pairs");
        let limits = |per_second| {
            let requests = Some(wire::Rate { per_second, burst: 0 });
            Some(wire::Limits {
                total: Some(wire::Limit { requests, bytes: None }),
                ..wire::Limits::default()
            })
        };
        let nic = |limits| wire::Nic {
            limits,
            mac: "52:54:00:00:00:01".into(),
            tap: "t0".into(),
            ..wire::Nic::default()
        };
        let error = nics(vec![nic(limits(0))]).expect_err("refused").to_string();
        assert!(error.starts_with("config.nics[0].limits.total.requests"), "{error}");
        let nics = nics(vec![nic(limits(1000))]).expect("valid");
        let requests = nics[0].limits.total.requests.expect("limited");
        assert_eq!((requests.per_second(), requests.burst(), nics[0].pairs), (1000, 50, 1));
    }
}
