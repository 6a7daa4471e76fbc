//! The saved state of an interface: what its driver has been told, and what it has asked for. Its queues are the
//! transport's to save; packets on their way are lost at worst, as on any wire.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

use super::filter::{ADDRESSES_MAX, Filter, MacAddress, Table, VLANS};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetState {
    /// The address that the interface was made with.
    pub(super) hardware_mac: MacAddress,
    /// The one that is in force.
    pub(super) mac: MacAddress,
    pub(super) mtu: Option<u16>,
    pub(super) pairs_max: u16,
    /// In use.
    pub(super) pairs: u16,
    /// Bits of what the host may leave to the driver.
    pub(super) offloads: u64,
    /// The driver has been asked to announce itself, and has not.
    pub(super) announce: bool,
    pub(super) filter: Filter,
}

impl NetState {
    /// Whether an interface like this can stand in, as far as its driver can tell. The error is for people.
    pub(super) fn fits(
        &self,
        hardware_mac: MacAddress,
        mtu: Option<u16>,
        pairs_max: u16,
    ) -> Result<(), String> {
        if self.hardware_mac != hardware_mac {
            return Err(format!(
                "its interface has the address {}, this one {hardware_mac}",
                self.hardware_mac
            ));
        }
        if self.mtu != mtu {
            let text = |mtu: Option<u16>| mtu.map_or("none".to_owned(), |mtu| mtu.to_string());
            return Err(format!("its interface has the MTU {}, this one {}", text(self.mtu), text(mtu)));
        }
        if self.pairs_max != pairs_max || self.pairs == 0 || self.pairs > pairs_max {
            return Err(format!(
                "its interface has {} pairs of queues, {} of them in use, this one {pairs_max}",
                self.pairs_max, self.pairs
            ));
        }
        Ok(())
    }
}

impl SavedState for NetState {
    const KIND: &'static str = "virtio-net";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.bytes(&self.hardware_mac.0);
        payload.bytes(&self.mac.0);
        payload.u16(self.mtu.unwrap_or(0));
        payload.u16(self.pairs_max);
        payload.u16(self.pairs);
        payload.u64(self.offloads);
        payload.bool(self.announce);
        payload.u8(self.filter.modes);
        for table in [&self.filter.unicast, &self.filter.multicast] {
            payload.bool(table.overflow);
            payload.count(table.addresses.len());
            for address in &table.addresses {
                payload.bytes(&address.0);
            }
        }
        payload.bytes(self.filter.vlans.as_ref().map_or(&[][..], |vlans| &vlans[..]));
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let hardware_mac = mac(payload, "hardware_mac")?;
        let own = mac(payload, "mac")?;
        let mtu = Some(payload.u16("mtu")?).filter(|mtu| *mtu != 0);
        let pairs_max = payload.u16("pairs_max")?;
        let pairs = payload.u16("pairs")?;
        let offloads = payload.u64("offloads")?;
        let announce = payload.bool("announce")?;
        let modes = payload.u8("filter.modes")?;
        let unicast = table(payload, "filter.unicast")?;
        let multicast = table(payload, "filter.multicast")?;
        let vlans = match payload.bytes("filter.vlans")? {
            [] => None,
            bytes => {
                let bits: [u8; VLANS / 8] = bytes
                    .try_into()
                    .map_err(|_| StateError::field("filter.vlans", "a bit for each of 4096 tags"))?;
                Some(Box::new(bits))
            }
        };
        let filter = Filter { modes, unicast, multicast, vlans };
        Ok(Self { hardware_mac, mac: own, mtu, pairs_max, pairs, offloads, announce, filter })
    }
}

fn mac(payload: &mut PayloadReader<'_>, field: &'static str) -> Result<MacAddress, StateError> {
    payload.bytes(field)?.try_into().map(MacAddress).map_err(|_| StateError::field(field, "six bytes"))
}

fn table(payload: &mut PayloadReader<'_>, field: &'static str) -> Result<Table, StateError> {
    let overflow = payload.bool(field)?;
    let mut addresses = Vec::new();
    for _ in 0..payload.count(field, ADDRESSES_MAX)? {
        addresses.push(mac(payload, field)?);
    }
    Ok(Table::new(addresses, overflow))
}
