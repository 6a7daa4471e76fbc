//! What makes up a vCPU at rest.

use std::fmt;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};

use crate::{
    HypervisorError, StateError, TimeSample, Vcpu, VmState, cpuid,
    msrs::{self, Msr},
    sections::{SectionReader, SectionWriter},
    time::ticks,
    tsc,
    xsave::{self, Xsave},
};

/// Section numbers. Never used again for something else.
mod section {
    pub(super) const MP_STATE: u16 = 1;
    pub(super) const REGS: u16 = 2;
    pub(super) const SREGS: u16 = 3;
    pub(super) const XSAVE: u16 = 4;
    pub(super) const XCRS: u16 = 5;
    pub(super) const DEBUG_REGS: u16 = 6;
    pub(super) const LOCAL_APIC: u16 = 7;
    pub(super) const EVENTS: u16 = 8;
    pub(super) const MSRS: u16 = 9;
    pub(super) const CPUID: u16 = 10;
    pub(super) const TSC: u16 = 11;
}

/// Most a host's TSC may differ from the guest's where it cannot be scaled: what Linux itself lets a clock drift
/// before it distrusts it (250 ppm; KVM uses the same bound, `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// The saved state of a [`Vcpu`].
#[derive(Clone)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    local_apic: kvm_lapic_state,
    events: kvm_vcpu_events,
    msrs: Vec<Msr>,
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc: Tsc,
}

/// The guest's counter at the moment that the machine's [`VmState`] names, and its frequency (0: not known).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tsc {
    value: u64,
    khz: u32,
}

impl fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuState")
            .field("rip", &format_args!("{:#x}", self.regs.rip))
            .field("tsc", &self.tsc)
            .field("msrs", &self.msrs.len())
            .finish_non_exhaustive()
    }
}

impl VcpuState {
    /// The state as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = SectionWriter::default();
        writer.put_plain(section::MP_STATE, &self.mp_state);
        writer.put_plain(section::REGS, &self.regs);
        writer.put_plain(section::SREGS, &self.sregs);
        writer.put(section::XSAVE, self.xsave.as_bytes());
        writer.put_plain(section::XCRS, &self.xcrs);
        writer.put_plain(section::DEBUG_REGS, &self.debug_regs);
        writer.put_plain(section::LOCAL_APIC, &self.local_apic);
        writer.put_plain(section::EVENTS, &self.events);
        let msrs: Vec<u8> = self
            .msrs
            .iter()
            .flat_map(|msr| msr.index.to_le_bytes().into_iter().chain(msr.value.to_le_bytes()))
            .collect();
        writer.put(section::MSRS, &msrs);
        let cpuid: Vec<u8> = self.cpuid.iter().flat_map(entry_words).flat_map(u32::to_le_bytes).collect();
        writer.put(section::CPUID, &cpuid);
        let tsc = [self.tsc.value.to_le_bytes(), u64::from(self.tsc.khz).to_le_bytes()].concat();
        writer.put(section::TSC, &tsc);
        writer.finish()
    }

    /// The state from bytes, which may come from anywhere.
    ///
    /// # Errors
    /// [`StateError`] says which section is wrong, and how.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let mut reader = SectionReader::new(bytes)?;
        let xsave = reader.take(section::XSAVE)?;
        let [value, khz] = reader.take_u64s(section::TSC)?;
        let khz = u32::try_from(khz).map_err(|_| StateError::SectionLength {
            id: section::TSC,
            found: 16,
            expected: "a frequency of 32 bits",
        })?;
        let state = Self {
            mp_state: reader.take_plain(section::MP_STATE)?,
            regs: reader.take_plain(section::REGS)?,
            sregs: reader.take_plain(section::SREGS)?,
            xsave: Xsave::from_bytes(xsave).ok_or(StateError::SectionLength {
                id: section::XSAVE,
                found: xsave.len(),
                expected: "4096 bytes",
            })?,
            xcrs: reader.take_plain(section::XCRS)?,
            debug_regs: reader.take_plain(section::DEBUG_REGS)?,
            local_apic: reader.take_plain(section::LOCAL_APIC)?,
            events: reader.take_plain(section::EVENTS)?,
            msrs: decode_msrs(reader.take(section::MSRS)?)?,
            cpuid: decode_cpuid(reader.take(section::CPUID)?)?,
            tsc: Tsc { value, khz },
        };
        reader.finish()?;
        Ok(state)
    }
}

fn entry_words(entry: &kvm_cpuid_entry2) -> [u32; 7] {
    [entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// Most registers a state may carry: KVM lists about 100 on the richest hosts.
const MSRS_MAX: usize = 1024;

fn decode_msrs(bytes: &[u8]) -> Result<Vec<Msr>, StateError> {
    let (entries, rest) = bytes.as_chunks::<12>();
    if !rest.is_empty() || entries.len() > MSRS_MAX {
        let expected = "12 bytes for each of at most 1024 registers";
        return Err(StateError::SectionLength { id: section::MSRS, found: bytes.len(), expected });
    }
    let decode = |entry: &[u8; 12]| {
        let (index, value) = entry.split_first_chunk::<4>().expect("an entry has 12 bytes");
        let value = value.try_into().expect("12 bytes less 4 are 8");
        Msr { index: u32::from_le_bytes(*index), value: u64::from_le_bytes(value) }
    };
    Ok(entries.iter().map(decode).collect())
}

fn decode_cpuid(bytes: &[u8]) -> Result<Vec<kvm_cpuid_entry2>, StateError> {
    let (entries, rest) = bytes.as_chunks::<28>();
    if !rest.is_empty() || entries.len() > KVM_MAX_CPUID_ENTRIES {
        let expected = "28 bytes for each of at most 256 entries";
        return Err(StateError::SectionLength { id: section::CPUID, found: bytes.len(), expected });
    }
    let decode = |entry: &[u8; 28]| {
        let (words, _) = entry.as_chunks::<4>();
        let word = |n: usize| u32::from_le_bytes(words[n]);
        kvm_cpuid_entry2 {
            function: word(0),
            index: word(1),
            flags: word(2),
            eax: word(3),
            ebx: word(4),
            ecx: word(5),
            edx: word(6),
            ..Default::default()
        }
    };
    Ok(entries.iter().map(decode).collect())
}

impl Vcpu {
    /// The registers of a state of this machine's vCPUs, found out by the first to be saved.
    fn savable_msrs(&self) -> Result<&[u32], HypervisorError> {
        if let Some(known) = self.shared.saved_msrs.get() {
            return Ok(known);
        }
        let listed = self.shared.device.msr_indices()?.iter().copied();
        let listed: Vec<u32> = listed.filter(|index| self.shared.options.cpu.has_msr(*index)).collect();
        let savable = msrs::savable(&self.fd, &listed)?;
        Ok(self.shared.saved_msrs.get_or_init(|| savable))
    }

    /// Reads the state of a vCPU that does not run and whose last run ended with [`Exit::Interrupted`]. `time` is that
    /// of the machine's state ([`VmState::time`]), the same for all its vCPUs.
    ///
    /// [`Exit::Interrupted`]: crate::Exit::Interrupted
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses.
    pub fn save(&self, time: &TimeSample) -> Result<VcpuState, HypervisorError> {
        let call = HypervisorError::call;
        let fd = &self.fd;
        // First: KVM settles a pending INIT or SIPI into the other registers when asked for this.
        let mp_state = fd.get_mp_state().map_err(call("read a processor's run state"))?;
        let msrs = msrs::read_all(fd, self.savable_msrs()?)?;
        Ok(VcpuState {
            mp_state,
            regs: fd.get_regs().map_err(call("read a processor's registers"))?,
            sregs: fd.get_sregs().map_err(call("read a processor's state"))?,
            xsave: xsave::read(fd)?,
            xcrs: self.read_xcrs()?,
            debug_regs: fd.get_debug_regs().map_err(call("read a processor's debug registers"))?,
            local_apic: fd.get_lapic().map_err(call("read a local APIC"))?,
            events: fd.get_vcpu_events().map_err(call("read a processor's pending events"))?,
            msrs,
            cpuid: self.cpuid.as_slice().to_vec(),
            tsc: Tsc { value: tsc::read(fd, time)?, khz: self.topology.tsc_khz.unwrap_or(0) },
        })
    }

    fn read_xcrs(&self) -> Result<kvm_xcrs, HypervisorError> {
        if !self.shared.device.has_xcrs() {
            return Ok(kvm_xcrs::default());
        }
        self.fd.get_xcrs().map_err(HypervisorError::call("read a processor's extended control registers"))
    }

    /// Gives a vCPU that has not run this state. Its TSC goes on by the time from `machine`'s save up to `now`, which is
    /// the same for all vCPUs of a machine.
    ///
    /// # Errors
    /// [`StateError::CpuFeatures`], [`StateError::TscFrequency`], [`StateError::TscFixed`] or
    /// [`StateError::MsrRefused`] where this host cannot
    /// carry the guest; [`HypervisorError::Call`] where KVM refuses the state.
    pub fn restore(
        &mut self,
        state: &VcpuState,
        machine: &VmState,
        now: &TimeSample,
    ) -> Result<(), HypervisorError> {
        self.restore_cpuid(&state.cpuid)?;
        self.restore_registers(state, machine, now)
    }

    /// Gives a vCPU that has run the state of one that has not ([`Vm::state_at_power_on`](crate::Vm::state_at_power_on)).
    /// Its CPUID stays: it may have come from another host with the guest.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn reset(
        &mut self,
        state: &VcpuState,
        machine: &VmState,
        now: &TimeSample,
    ) -> Result<(), HypervisorError> {
        self.restore_registers(state, machine, now)
    }

    fn restore_registers(
        &self,
        state: &VcpuState,
        machine: &VmState,
        now: &TimeSample,
    ) -> Result<(), HypervisorError> {
        let call = HypervisorError::call;
        let khz = self.check_tsc_frequency(state.tsc.khz)?;
        let fd = &self.fd;
        fd.set_mp_state(state.mp_state).map_err(call("set a processor's run state"))?;
        fd.set_sregs(&state.sregs).map_err(call("set a processor's state"))?;
        fd.set_regs(&state.regs).map_err(call("set a processor's registers"))?;
        // A state from a host without any has none to set; the features were compared with CPUID.
        if state.xcrs.nr_xcrs > 0 {
            fd.set_xcrs(&state.xcrs).map_err(call("set a processor's extended control registers"))?;
        }
        xsave::write(fd, &state.xsave)?;
        fd.set_debug_regs(&state.debug_regs).map_err(call("set a processor's debug registers"))?;
        let elapsed = ticks(now.ns_since(machine.time()), khz);
        tsc::write(fd, now, state.tsc.value.wrapping_add(elapsed), khz)?;
        // The APIC before the registers: a TSC deadline counts only in an APIC in deadline mode.
        fd.set_lapic(&state.local_apic).map_err(call("set a local APIC"))?;
        msrs::write_all(fd, &state.msrs)?;
        // Last: setting the other registers clears pending exceptions.
        fd.set_vcpu_events(&state.events).map_err(call("set a processor's pending events"))
    }

    /// The guest keeps the CPUID it has seen, if this host has all of its features.
    fn restore_cpuid(&mut self, entries: &[kvm_cpuid_entry2]) -> Result<(), HypervisorError> {
        let guest: CpuId = cpuid::from_entries(entries)?;
        cpuid::check_features(&guest, &self.cpuid)?;
        self.fd.set_cpuid2(&guest).map_err(HypervisorError::call("set a virtual processor's features"))?;
        self.cpuid = guest;
        Ok(())
    }

    /// The frequency at which the guest's counter goes on, or an error if this host's differs too much.
    fn check_tsc_frequency(&self, guest_khz: u32) -> Result<u32, StateError> {
        let host_khz = self.topology.tsc_khz.unwrap_or(0);
        if guest_khz == 0 || host_khz == 0 {
            // One of the hosts does not know: there is nothing to compare.
            return Ok(guest_khz.max(host_khz));
        }
        let difference_ppm = u64::from(guest_khz.abs_diff(host_khz)) * 1_000_000 / u64::from(host_khz);
        if difference_ppm > TSC_TOLERANCE_PPM {
            return Err(StateError::TscFrequency { guest_khz, host_khz });
        }
        Ok(host_khz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VcpuState {
        VcpuState {
            mp_state: kvm_mp_state { mp_state: 3 },
            regs: kvm_regs { rip: 0x1000, ..Default::default() },
            sregs: kvm_sregs::default(),
            xsave: Xsave::from_bytes(&[7; 4096]).unwrap(),
            xcrs: kvm_xcrs::default(),
            debug_regs: kvm_debugregs::default(),
            local_apic: kvm_lapic_state::default(),
            events: kvm_vcpu_events::default(),
            msrs: vec![Msr { index: 0xc000_0080, value: 0x501 }, Msr { index: 0x6e0, value: u64::MAX }],
            cpuid: vec![kvm_cpuid_entry2 { function: 1, edx: 0xabcd, ..Default::default() }],
            tsc: Tsc { value: 0x1234, khz: 2_000_000 },
        }
    }

    #[test]
    fn a_state_survives_its_bytes() {
        let bytes = state().to_bytes();
        let back = VcpuState::from_bytes(&bytes).unwrap();
        assert_eq!(back.to_bytes(), bytes);
        assert_eq!((back.regs.rip, back.tsc), (0x1000, Tsc { value: 0x1234, khz: 2_000_000 }));
        assert_eq!(back.msrs[1], Msr { index: 0x6e0, value: u64::MAX });
    }

    /// Version 1 for ever: number and length of every section. A change needs a new version of the envelope.
    #[test]
    fn the_layout_is_that_of_version_1() {
        let bytes = state().to_bytes();
        let mut reader = SectionReader::new(&bytes).unwrap();
        let lengths: Vec<_> = (1..=11).map(|id| reader.take(id).unwrap().len()).collect();
        assert_eq!(lengths, [4, 144, 312, 4096, 392, 128, 1024, 64, 24, 28, 16]);
        reader.finish().unwrap();
    }

    #[test]
    fn every_truncation_and_every_odd_length_is_an_error() {
        let bytes = state().to_bytes();
        for len in (0..bytes.len()).step_by(7) {
            assert!(VcpuState::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(decode_msrs(&[0; 13]).is_err());
        assert!(decode_msrs(&vec![0; 12 * (MSRS_MAX + 1)]).is_err());
        assert!(decode_cpuid(&[0; 27]).is_err());
        assert!(decode_cpuid(&vec![0; 28 * (KVM_MAX_CPUID_ENTRIES + 1)]).is_err());
    }
}
