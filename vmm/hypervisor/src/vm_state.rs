//! What of a virtual machine is not in a vCPU: interrupt controllers, interval timer, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};

use crate::{
    HypervisorError, StateError, TimeSample, Vm,
    sections::{SectionReader, SectionWriter},
};

/// Section numbers. Never used again for something else.
mod section {
    pub(super) const TIME: u16 = 1;
    pub(super) const KVM_CLOCK: u16 = 2;
    pub(super) const PIC_MASTER: u16 = 3;
    pub(super) const PIC_SLAVE: u16 = 4;
    pub(super) const IO_APIC: u16 = 5;
    pub(super) const PIT: u16 = 6;
}

/// The saved state of a [`Vm`], its vCPUs apart.
#[derive(Clone)]
pub struct VmState {
    time: TimeSample,
    kvm_clock_ns: u64,
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    io_apic: kvm_irqchip,
    pit: Option<kvm_pit_state2>,
}

impl std::fmt::Debug for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmState")
            .field("time", &self.time)
            .field("kvm_clock_ns", &self.kvm_clock_ns)
            .finish_non_exhaustive()
    }
}

impl VmState {
    /// When it was saved, by the clocks of the host that saved it. Every vCPU's TSC is given for this moment.
    pub fn time(&self) -> &TimeSample {
        &self.time
    }

    /// The state as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = SectionWriter::default();
        let time = [self.time.tsc.to_le_bytes(), self.time.realtime_ns.to_le_bytes()].concat();
        writer.put(section::TIME, &time);
        writer.put(section::KVM_CLOCK, &self.kvm_clock_ns.to_le_bytes());
        writer.put_plain(section::PIC_MASTER, &self.pic_master);
        writer.put_plain(section::PIC_SLAVE, &self.pic_slave);
        writer.put_plain(section::IO_APIC, &self.io_apic);
        if let Some(pit) = &self.pit {
            writer.put_plain(section::PIT, pit);
        }
        writer.finish()
    }

    /// The state from bytes, which may come from anywhere.
    ///
    /// # Errors
    /// [`StateError`] says which section is wrong, and how.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = SectionReader::new(bytes)?;
        let [tsc, realtime_ns] = reader.take_u64s(section::TIME)?;
        let [kvm_clock_ns] = reader.take_u64s(section::KVM_CLOCK)?;
        let mut chip = |id, number| {
            // The chip's number selects what KVM writes to: ours, not the sender's.
            reader.take_plain::<kvm_irqchip>(id).map(|chip| kvm_irqchip { chip_id: number, ..chip })
        };
        let pic_master = chip(section::PIC_MASTER, KVM_IRQCHIP_PIC_MASTER)?;
        let pic_slave = chip(section::PIC_SLAVE, KVM_IRQCHIP_PIC_SLAVE)?;
        let io_apic = chip(section::IO_APIC, KVM_IRQCHIP_IOAPIC)?;
        let pit = match reader.take_plain(section::PIT) {
            Ok(pit) => Some(pit),
            Err(StateError::MissingSection { .. }) => None,
            Err(error) => return Err(error),
        };
        reader.finish()?;
        let time = TimeSample { tsc, realtime_ns };
        Ok(Self { time, kvm_clock_ns, pic_master, pic_slave, io_apic, pit })
    }
}

impl Vm {
    /// Reads the state of a machine whose vCPUs do not run.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses.
    pub fn save(&self) -> Result<VmState, HypervisorError> {
        let fd = &self.shared.fd;
        let time = TimeSample::now();
        let clock = fd.get_clock().map_err(HypervisorError::call("read a guest's clock"))?;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            fd.get_irqchip(&mut chip)
                .map(|()| chip)
                .map_err(HypervisorError::call("read the state of interrupt controllers"))
        };
        let pit = if self.shared.options.pit {
            Some(fd.get_pit2().map_err(HypervisorError::call("read the state of the interval timer"))?)
        } else {
            None
        };
        Ok(VmState {
            time,
            kvm_clock_ns: clock.clock,
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            io_apic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit,
        })
    }

    /// Gives a machine that has not run this state. The guest's clock goes on by the time that has passed since it was
    /// saved, up to `now`.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses; [`StateError::MissingSection`] or
    /// [`StateError::UnknownSection`] if the state has an interval timer and the machine has not, or the reverse.
    pub fn restore(&self, state: &VmState, now: &TimeSample) -> Result<(), HypervisorError> {
        let fd = &self.shared.fd;
        match (&state.pit, self.shared.options.pit) {
            (Some(pit), true) => {
                fd.set_pit2(pit).map_err(HypervisorError::call("set the state of the interval timer"))?;
            }
            (None, false) => {}
            (None, true) => return Err(StateError::MissingSection { id: section::PIT }.into()),
            (Some(_), false) => return Err(StateError::UnknownSection { id: section::PIT }.into()),
        }
        for chip in [&state.pic_master, &state.pic_slave, &state.io_apic] {
            fd.set_irqchip(chip).map_err(HypervisorError::call("set the state of interrupt controllers"))?;
        }
        let clock = state.kvm_clock_ns.saturating_add(now.ns_since(&state.time));
        let clock = kvm_clock_data { clock, ..Default::default() };
        fd.set_clock(&clock).map_err(HypervisorError::call("set a guest's clock"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VmState {
        let chip = |chip_id| kvm_irqchip { chip_id, ..Default::default() };
        VmState {
            time: TimeSample { tsc: 1, realtime_ns: 2 },
            kvm_clock_ns: 3,
            pic_master: chip(0),
            pic_slave: chip(1),
            io_apic: chip(2),
            pit: None,
        }
    }

    #[test]
    fn a_state_survives_its_bytes() {
        let bytes = state().to_bytes();
        let back = VmState::from_bytes(&bytes).unwrap();
        assert_eq!(back.to_bytes(), bytes);
        assert_eq!(back.time(), &TimeSample { tsc: 1, realtime_ns: 2 });
    }

    #[test]
    fn a_chips_number_is_not_the_senders_choice() {
        let mut hostile = state();
        hostile.pic_master.chip_id = 2;
        assert_eq!(VmState::from_bytes(&hostile.to_bytes()).unwrap().pic_master.chip_id, 0);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = state().to_bytes();
        for len in 0..bytes.len() {
            assert!(VmState::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert_eq!(VmState::from_bytes(&[]).unwrap_err(), StateError::MissingSection { id: section::TIME });
    }
}
