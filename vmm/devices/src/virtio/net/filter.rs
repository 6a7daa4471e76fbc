//! Which packets the driver wants (5.1.6.5.1 to 5.1.6.5.3). Pure.

use std::{fmt, str::FromStr};

/// Addresses of one kind that are remembered; a driver with more gets all packets of that kind.
pub(super) const ADDRESSES_MAX: usize = 64;
/// Tags are 12 bits.
pub(super) const VLANS: usize = 4096;
/// What the filter looks at: two addresses, and a tag where there is one.
pub(super) const LOOKED_AT: usize = 16;
/// EtherType of a tag (IEEE 802.1Q).
const TAGGED: [u8; 2] = [0x81, 0x00];

/// A MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is not a MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address of one interface: give six bytes in hexadecimal, as 52:54:00:12:34:56")]
pub struct MacError(String);

impl MacAddress {
    /// Whether it is of a group of stations.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    /// Refuses those that no interface can have: of groups, and zero.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            if !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        let address = Self(bytes);
        if parts.next().is_some() || address.is_multicast() || bytes == [0; 6] {
            return Err(error());
        }
        Ok(address)
    }
}

/// A rule of the receive mode, by the number of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Promiscuous = 0,
    AllMulticast = 1,
    AllUnicast = 2,
    NoMulticast = 3,
    NoUnicast = 4,
    NoBroadcast = 5,
}

/// Addresses of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// In ascending order.
    pub(super) addresses: Vec<MacAddress>,
    /// There were more than are remembered.
    pub(super) overflow: bool,
}

impl Table {
    pub(super) fn new(mut addresses: Vec<MacAddress>, overflow: bool) -> Self {
        addresses.sort_unstable();
        addresses.dedup();
        Self { addresses, overflow }
    }

    fn has(&self, address: MacAddress) -> bool {
        self.overflow || self.addresses.binary_search(&address).is_ok()
    }
}

/// What the driver has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// A bit for each [`Mode`].
    pub(super) modes: u8,
    pub(super) unicast: Table,
    pub(super) multicast: Table,
    /// A bit for each tag that passes. `None`: the driver does not filter tags.
    pub(super) vlans: Option<Box<[u8; VLANS / 8]>>,
}

impl Default for Filter {
    /// Of a driver that has not said anything: everything passes.
    fn default() -> Self {
        Self {
            modes: 1 << Mode::Promiscuous as u8,
            unicast: Table::default(),
            multicast: Table::default(),
            vlans: None,
        }
    }
}

impl Filter {
    pub(super) fn set(&mut self, mode: Mode, on: bool) {
        let bit = 1 << mode as u8;
        self.modes = if on { self.modes | bit } else { self.modes & !bit };
    }

    /// Lets packets of a tag through, or keeps them out. The first such command keeps out all others.
    pub(super) fn set_vlan(&mut self, tag: u16, on: bool) {
        let vlans = self.vlans.get_or_insert_with(|| Box::new([0; VLANS / 8]));
        let (byte, bit) = (usize::from(tag) / 8 % vlans.len(), 1 << (tag % 8));
        vlans[byte] = if on { vlans[byte] | bit } else { vlans[byte] & !bit };
    }

    /// Whether there is no need to look.
    pub(super) fn passes_everything(&self) -> bool {
        self.is(Mode::Promiscuous)
    }

    /// Whether the driver wants a packet that begins like this, with this address of its own.
    pub(super) fn passes(&self, own: MacAddress, start: &[u8; LOOKED_AT]) -> bool {
        if self.passes_everything() {
            return true;
        }
        if start[12..14] == TAGGED
            && let Some(vlans) = &self.vlans
        {
            let tag = usize::from(u16::from_be_bytes([start[14], start[15]])) % VLANS;
            if vlans[tag / 8] & 1 << (tag % 8) == 0 {
                return false;
            }
        }
        let mut to = MacAddress::default();
        to.0.copy_from_slice(&start[..6]);
        if to.0 == [0xff; 6] {
            !self.is(Mode::NoBroadcast)
        } else if to.is_multicast() {
            !self.is(Mode::NoMulticast) && (self.is(Mode::AllMulticast) || self.multicast.has(to))
        } else {
            !self.is(Mode::NoUnicast) && (self.is(Mode::AllUnicast) || to == own || self.unicast.has(to))
        }
    }

    fn is(&self, mode: Mode) -> bool {
        self.modes & 1 << mode as u8 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
    const GROUP: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);
    const ALL: MacAddress = MacAddress([0xff; 6]);

    fn check(filter: &Filter, expect: [bool; 4]) {
        let passes = [OWN, OTHER, GROUP, ALL].map(|to| {
            let mut start = [0; LOOKED_AT];
            start[..6].copy_from_slice(&to.0);
            filter.passes(OWN, &start)
        });
        assert_eq!(passes, expect, "own, other, group, all: {filter:?}");
    }

    #[test]
    fn each_mode_does_what_its_name_says() {
        let mut filter = Filter::default();
        check(&filter, [true; 4]);
        filter.set(Mode::Promiscuous, false);
        check(&filter, [true, false, false, true]);
        let with = |mode| {
            let mut with = filter.clone();
            with.set(mode, true);
            with
        };
        check(&with(Mode::AllMulticast), [true, false, true, true]);
        check(&with(Mode::AllUnicast), [true, true, false, true]);
        check(&with(Mode::NoUnicast), [false, false, false, true]);
        check(&with(Mode::NoBroadcast), [true, false, false, false]);
        filter.multicast = Table::new(vec![GROUP], false);
        check(&filter, [true, false, true, true]);
        filter.set(Mode::NoMulticast, true);
        check(&filter, [true, false, false, true]);
        filter.unicast = Table::new(Vec::new(), true);
        check(&filter, [true, true, false, true]);
    }

    #[test]
    fn tags_pass_by_number_once_the_driver_filters_them() {
        let mut filter = Filter::default();
        filter.set(Mode::Promiscuous, false);
        let tagged = |filter: &Filter, tag: u16| {
            let mut start = [0; LOOKED_AT];
            start[..6].copy_from_slice(&OWN.0);
            start[12..14].copy_from_slice(&TAGGED);
            // With a priority, which is no part of the number.
            start[14..].copy_from_slice(&(tag | 0xe000).to_be_bytes());
            filter.passes(OWN, &start)
        };
        assert!(tagged(&filter, 7));
        filter.set_vlan(4095, true);
        assert!(tagged(&filter, 4095) && !tagged(&filter, 7));
        filter.set_vlan(4095, false);
        assert!(!tagged(&filter, 4095));
        check(&filter, [true, false, false, true]);
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let text = "52:54:00:ab:cd:ef";
        assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "52:54:00:ab:cd:+f",
            "5:54:00:ab:cd:ef",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
