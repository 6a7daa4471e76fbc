//! A guest of a few instructions, run on real KVM.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test: it measures real time and may panic"
)]

use std::{sync::mpsc, thread, time::Instant};

use drover_guest_memory::GuestMemory;
use drover_hypervisor::{
    Exit, Gsi, Hypervisor, HypervisorError, IoEvent, IoEventAddress, Message, ProtectedModeEntry, StateError,
    TimeSample, Vcpu, VcpuState, Vm, VmOptions, VmState,
};
use drover_test_prerequisites::kvm;
use drover_units::{Bytes, Gpa, PAGE_SIZE, Pages, VcpuCount};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CODE: Gpa = Gpa::new(0x1000);
const COUNTER: Gpa = Gpa::new(0x2000);
const COPY: Gpa = Gpa::new(0x3000);

/// Talks to a port and to an MMIO register, then counts, writing the port once for each step.
const TALK_AND_COUNT: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xb0, b'A', // mov al, 'A'
    0xee, // out dx, al
    0xec, // in al, dx
    0xa2, 0x00, 0x30, 0x00, 0x00, // mov [0x3000], al
    0xa1, 0x00, 0x00, 0x00, 0xd0, // mov eax, [0xd0000000]
    0xa3, 0x04, 0x00, 0x00, 0xd0, // mov [0xd0000004], eax
    0xff, 0x05, 0x00, 0x20, 0x00, 0x00, // again: inc dword [0x2000]
    0xee, // out dx, al
    0xeb, 0xf7, // jmp again
];

/// Waits for ever with interrupts off.
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp hlt

/// Writes two bytes of its own code to the port with one instruction.
const STRING: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xbe, 0x00, 0x10, 0x00, 0x00, // mov esi, 0x1000
    0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
    0xf3, 0x6e, // rep outsb
    0xf4, // hlt
];

/// Enables its local APIC, then writes to the port whatever vectors 32 to 63 have been requested, whenever they change.
const WATCH_REQUESTS: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, // mov dword [0xfee000f0], 0x1ff
    0x31, 0xdb, // xor ebx, ebx
    0xef, // changed: out dx, eax
    0xa1, 0x10, 0x02, 0xe0, 0xfe, // again: mov eax, [0xfee00210]
    0x39, 0xd8, // cmp eax, ebx
    0x74, 0xf7, // je again
    0x89, 0xc3, // mov ebx, eax
    0xeb, 0xf2, // jmp changed
];

/// Has KVM keep its clock at 0x4000, then writes the port for ever.
const KEEP_TIME: &[u8] = &[
    0xb9, 0x01, 0x4d, 0x56, 0x4b, // mov ecx, 0x4b564d01 (MSR_KVM_SYSTEM_TIME_NEW)
    0xb8, 0x01, 0x40, 0x00, 0x00, // mov eax, 0x4001 (its address, enabled)
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xee, // again: out dx, al
    0xeb, 0xfd, // jmp again
];
/// The flags in what KVM keeps there (Linux, Documentation/virt/kvm/x86/msr.rst), and "the guest was paused by its host".
const CLOCK_FLAGS: Gpa = Gpa::new(0x4000 + 29);
const GUEST_STOPPED: u8 = 2;

struct Guest {
    memory: GuestMemory,
    vm: Vm,
    vcpu: Vcpu,
}

impl Guest {
    fn empty(options: VmOptions) -> Self {
        let memory = GuestMemory::anonymous(Bytes::mib(2));
        let vm = Hypervisor::open().unwrap().create_vm(&memory, options).unwrap();
        let vcpu = vm.create_vcpu(0, VcpuCount::new(1)).unwrap();
        Self { memory, vm, vcpu }
    }

    fn new(code: &[u8]) -> Self {
        let guest = Self::empty(VmOptions::default());
        guest.memory.write(CODE, code).unwrap();
        guest.vcpu.enter_protected_mode(ProtectedModeEntry { rip: CODE, ebx: Gpa::ZERO }).unwrap();
        guest
    }

    fn counter(&self) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(COUNTER, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Runs the guest past its talk, to the port write of step `step`.
    fn count_to(&mut self, step: u32) {
        while self.counter() < step {
            self.run_to_port_write();
        }
    }

    fn run_to_port_write(&mut self) {
        let mut bound = self.vcpu.bind().unwrap();
        loop {
            match bound.run().unwrap() {
                Exit::PortWrite { .. } => return,
                Exit::PortRead { data, .. } | Exit::MmioRead { data, .. } => data.fill(0x5a),
                Exit::MmioWrite { .. } | Exit::Interrupted => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Completes the pending access, so that the vCPU can be saved.
    fn settle(&mut self) {
        self.vcpu.kicker().kick();
        let mut bound = self.vcpu.bind().unwrap();
        assert_eq!(bound.run().unwrap(), Exit::Interrupted);
    }

    fn save(&self) -> (Vec<u8>, Vec<u8>) {
        let machine = self.vm.save().unwrap();
        let vcpu = self.vcpu.save(machine.time()).unwrap();
        (machine.to_bytes(), vcpu.to_bytes())
    }

    /// A second guest with the same memory and this state.
    fn clone_with(&self, (machine, vcpu): &(Vec<u8>, Vec<u8>)) -> Result<Self, HypervisorError> {
        let mut copy = Self::empty(VmOptions::default());
        let mut ram = vec![0; 2 << 20];
        self.memory.read(Gpa::ZERO, &mut ram).unwrap();
        copy.memory.write(Gpa::ZERO, &ram).unwrap();
        let machine = VmState::from_bytes(machine)?;
        let now = TimeSample::now();
        copy.vm.restore(&machine, &now)?;
        copy.vcpu.restore(&VcpuState::from_bytes(vcpu)?, &machine, &now)?;
        Ok(copy)
    }
}

#[test]
fn a_guest_talks_to_ports_and_addresses() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(TALK_AND_COUNT);
    let mut bound = guest.vcpu.bind().unwrap();
    let port = 0x3f8;
    assert_eq!(bound.run().unwrap(), Exit::PortWrite { port, width: 1, data: b"A" });
    match bound.run().unwrap() {
        Exit::PortRead { port: 0x3f8, width: 1, data } => data.copy_from_slice(b"z"),
        other => panic!("{other:?}"),
    }
    match bound.run().unwrap() {
        Exit::MmioRead { address, data } if address == Gpa::new(0xd000_0000) => {
            data.copy_from_slice(&[1, 2, 3, 4]);
        }
        other => panic!("{other:?}"),
    }
    let address = Gpa::new(0xd000_0004);
    assert_eq!(bound.run().unwrap(), Exit::MmioWrite { address, data: &[1, 2, 3, 4] });
    assert_eq!(bound.run().unwrap(), Exit::PortWrite { port, width: 1, data: &[1] });
    drop(bound);
    let mut read_from_port = [0];
    guest.memory.read(COPY, &mut read_from_port).unwrap();
    assert_eq!(&read_from_port, b"z");
    assert_eq!(guest.counter(), 1);
}

#[test]
fn a_guest_with_kvms_clock_is_told_that_it_was_paused() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(KEEP_TIME);
    assert!(!guest.vcpu.note_pause().unwrap(), "it has no clock yet");
    guest.run_to_port_write();
    guest.run_to_port_write();
    guest.settle();
    let told = guest.vcpu.note_pause().unwrap();
    guest.run_to_port_write();
    let mut flags = [0];
    guest.memory.read(CLOCK_FLAGS, &mut flags).unwrap();
    // A host that lacks the call tells nobody.
    assert_eq!(flags[0] & GUEST_STOPPED != 0, told);
}

#[test]
fn a_string_instruction_brings_all_of_its_bytes() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(STRING);
    let mut bound = guest.vcpu.bind().unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match bound.run().unwrap() {
            Exit::PortWrite { port: 0x3f8, width: 1, data } => seen.extend_from_slice(data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, STRING[..2]);
}

#[test]
fn a_kick_ends_a_run_whether_it_comes_before_or_during_it() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(HALT);
    guest.settle();
    for _ in 0..20 {
        let kicker = guest.vcpu.kicker();
        let (started, wait_for_start) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut bound = guest.vcpu.bind().unwrap();
                started.send(()).unwrap();
                assert_eq!(bound.run().unwrap(), Exit::Interrupted);
            });
            wait_for_start.recv().unwrap();
            kicker.kick();
        });
    }
    let kicker = guest.vcpu.kicker();
    drop(guest);
    kicker.kick();
}

#[test]
fn the_log_has_the_pages_that_the_guest_wrote() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(TALK_AND_COUNT);
    guest.count_to(1);
    guest.vm.start_dirty_log().unwrap();
    guest.vm.take_dirty_log(0).unwrap();
    guest.count_to(3);
    let page = |gpa: Gpa| 1_u64 << (gpa.get() / PAGE_SIZE);
    assert_eq!(guest.vm.take_dirty_log(0).unwrap()[0], page(COUNTER));
    assert_eq!(guest.vm.take_dirty_log(0).unwrap()[0], 0, "taken once");
    guest.vm.stop_dirty_log().unwrap();
    assert!(guest.vm.take_dirty_log(0).is_err());
    assert!(guest.vm.take_dirty_log(7).is_err());
    assert_eq!(Pages::new(512).to_bytes(), Some(guest.memory.size()));
}

#[test]
fn a_state_moves_and_the_guest_goes_on_where_it_was() {
    if !kvm() {
        return;
    }
    let mut source = Guest::new(TALK_AND_COUNT);
    source.count_to(5);
    source.settle();
    let begin = Instant::now();
    let state = source.save();
    let saved = begin.elapsed();
    let mut target = source.clone_with(&state).unwrap();
    println!(
        "saved in {saved:?}: {} + {} bytes; moved in {:?}",
        state.0.len(),
        state.1.len(),
        begin.elapsed()
    );
    assert_eq!(target.counter(), 5);
    target.count_to(8);
    assert_eq!(source.counter(), 5);
}

#[test]
fn every_part_of_a_state_reads_back_as_it_was_restored() {
    if !kvm() {
        return;
    }
    let mut source = Guest::new(TALK_AND_COUNT);
    source.count_to(1);
    source.settle();
    let (machine, mut vcpu) = source.save();
    // Values that a new vCPU does not have. XMM0 is at byte 160 of the XSAVE area, and bit 1 of the word at byte 512
    // says that it is in use (Intel SDM volume 1, 13.4); DR0 is the first of the debug registers; the task priority
    // is at 0x80 of the APIC's page.
    let (xsave, debug, apic) = (section(&vcpu, 4).start, section(&vcpu, 6).start, section(&vcpu, 7).start);
    vcpu[xsave + 160..xsave + 168].copy_from_slice(b"drover!!");
    vcpu[xsave + 512] |= 0b10;
    vcpu[debug..debug + 2].copy_from_slice(&[0x34, 0x12]);
    vcpu[apic + 0x80] = 0x20;
    // The processor priority, at 0xa0, follows from it. The vector of the (masked) timer is at 0x320.
    vcpu[apic + 0xa0] = 0x20;
    vcpu[apic + 0x320] = 0x31;
    let sregs = section(&vcpu, 3);
    // CR8, which is the task priority again: the last but four of the words of sregs.
    vcpu[sregs.end - 56..sregs.end - 48].copy_from_slice(&2_u64.to_le_bytes());
    // The kernel's GS base is a register of its own.
    let msrs = section(&vcpu, 9);
    let gs_base = msrs.step_by(12).find(|&at| vcpu[at..at + 4] == 0xc000_0102_u32.to_le_bytes()).unwrap();
    vcpu[gs_base + 4..gs_base + 12].copy_from_slice(&0x1234_5000_u64.to_le_bytes());
    let target = source.clone_with(&(machine.clone(), vcpu.clone())).unwrap();
    let (machine_back, vcpu_back) = target.save();
    for id in [1, 2, 3, 4, 5, 6, 7, 8, 10] {
        let (sent, back) = (&vcpu[section(&vcpu, id)], &vcpu_back[section(&vcpu_back, id)]);
        let differs = sent.iter().zip(back).position(|(a, b)| a != b);
        assert_eq!(differs, None, "section {id} of the vCPU differs at this byte");
    }
    for id in [3, 4, 5] {
        assert_eq!(machine[section(&machine, id)], machine_back[section(&machine_back, id)], "section {id}");
    }
    // Registers in any order, but for those that count.
    let registers =
        |state: &[u8]| -> Vec<Vec<u8>> { state[section(state, 9)].chunks(12).map(<[u8]>::to_vec).collect() };
    let different: Vec<_> =
        registers(&vcpu).into_iter().filter(|msr| !registers(&vcpu_back).contains(msr)).collect();
    assert!(different.is_empty(), "{different:x?}");
}

/// Where in a state the bytes of a section are.
fn section(state: &[u8], id: u8) -> std::ops::Range<usize> {
    let mut at = 0;
    loop {
        let start = at + 6;
        let end = start + u32::from_le_bytes(state[at + 2..start].try_into().unwrap()) as usize;
        if state[at..at + 2] == [id, 0] {
            return start..end;
        }
        at = end;
    }
}

fn words<const N: usize>(state: &[u8], id: u8) -> [u64; N] {
    let bytes = &state[section(state, id)];
    std::array::from_fn(|n| u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap()))
}

/// A machine state's sample of the host's clocks: its TSC, and real time in nanoseconds.
fn sample(machine: &[u8]) -> [u64; 2] {
    words(machine, 1)
}

/// A vCPU state's TSC at that moment, and its frequency in kHz.
fn guest_tsc(vcpu: &[u8]) -> [u64; 2] {
    words(vcpu, 11)
}

#[test]
fn the_tsc_goes_on_by_the_time_that_has_passed() {
    if !kvm() {
        return;
    }
    let mut source = Guest::new(TALK_AND_COUNT);
    source.count_to(1);
    source.settle();
    let before = source.save();
    let after = source.clone_with(&before).unwrap().save();
    let [guest_before, khz] = guest_tsc(&before.1);
    let expect = (sample(&after.0)[1] - sample(&before.0)[1]) * khz / 1_000_000;
    let found = guest_tsc(&after.1)[0].wrapping_sub(guest_before);
    // Ten milliseconds: on a busy host a thread may lose its CPU between the reads of the two clocks.
    assert!(found.abs_diff(expect) < khz * 10, "{found} ticks instead of {expect}");
}

#[test]
fn a_tsc_from_elsewhere_goes_on_or_is_refused() {
    if !kvm() {
        return;
    }
    let mut source = Guest::new(TALK_AND_COUNT);
    source.count_to(1);
    source.settle();
    let mut state = source.save();
    // Far from where a new vCPU's counter is on any host.
    let counter = section(&state.1, 11).start;
    state.1[counter + 6] ^= 1;
    match source.clone_with(&state) {
        Ok(target) => {
            let moved = guest_tsc(&target.save().1)[0].wrapping_sub(guest_tsc(&state.1)[0]);
            assert!(moved < 1 << 40, "the guest's time jumped by {moved} ticks");
        }
        Err(HypervisorError::State(StateError::TscFixed { .. })) => {}
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn hostile_states_are_refused_and_change_no_running_guest() {
    if !kvm() {
        return;
    }
    let mut source = Guest::new(TALK_AND_COUNT);
    source.count_to(1);
    source.settle();
    let (machine, vcpu) = source.save();
    for len in [0, 1, 6, 7, vcpu.len() / 2, vcpu.len() - 1] {
        assert!(source.clone_with(&(machine.clone(), vcpu[..len].to_vec())).is_err(), "{len} bytes");
    }
    // Ask for a feature that no host has: bit 10 of leaf 1's EDX is reserved.
    let mut greedy = vcpu.clone();
    let cpuid = section(&greedy, 10);
    let leaf_1 = cpuid.clone().step_by(28).find(|&at| greedy[at..at + 4] == [1, 0, 0, 0]).unwrap();
    greedy[leaf_1 + 25] |= 1 << 2;
    match source.clone_with(&(machine, greedy)) {
        Err(HypervisorError::State(StateError::CpuFeatures {
            function: 1,
            register: "EDX",
            bits: 0x400,
            ..
        })) => {}
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("a feature that does not exist was accepted"),
    }
    source.count_to(3);
}

#[test]
fn doorbells_ring_without_an_exit_until_they_are_disconnected() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(TALK_AND_COUNT);
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    // The port write of each step carries the step's AL, which is 0x5a from `run_to_port_write`.
    let doorbell = IoEvent { address: IoEventAddress::Mmio(Gpa::new(0xd000_0004)), value: Some(0x5a5a_5a5a) };
    guest.vm.connect_io_event(doorbell, &event).unwrap();
    assert!(guest.vm.connect_io_event(doorbell, &event).is_err(), "twice");
    guest.count_to(1);
    assert_eq!(event.read().unwrap(), 1);
    guest.vm.disconnect_io_event(doorbell, &event).unwrap();
    assert!(guest.vm.disconnect_io_event(doorbell, &event).is_err(), "twice");
}

#[test]
fn interrupt_lines_pulse_and_pins_that_do_not_exist_are_refused() {
    if !kvm() {
        return;
    }
    let guest = Guest::empty(VmOptions { pit: true, ..Default::default() });
    guest.vm.irq_line(Gsi(5)).unwrap().pulse().unwrap();
    assert!(matches!(guest.vm.irq_line(Gsi(24)), Err(HypervisorError::NoSuchPin { .. })));
    // With an interval timer the state has one section more, and only such a machine takes it.
    let state = VmState::from_bytes(&guest.vm.save().unwrap().to_bytes()).unwrap();
    let now = TimeSample::now();
    Guest::empty(VmOptions { pit: true, ..Default::default() }).vm.restore(&state, &now).unwrap();
    assert!(Guest::empty(VmOptions::default()).vm.restore(&state, &now).is_err());
}

/// What the guest writes next.
fn requests_seen(guest: &mut Guest) -> u32 {
    let mut bound = guest.vcpu.bind().unwrap();
    match bound.run().unwrap() {
        Exit::PortWrite { port: 0x3f8, width: 4, data } => u32::from_le_bytes(data.try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_reaches_its_processor_as_the_vector_that_is_routed_at_the_moment() {
    if !kvm() {
        return;
    }
    let mut guest = Guest::new(WATCH_REQUESTS);
    let lines = [guest.vm.msi_line().unwrap(), guest.vm.msi_line().unwrap()];
    requests_seen(&mut guest);
    // Without a message nothing happens, or the vectors below would not be alone.
    lines[0].pulse().unwrap();
    let to = |data| Message { address: 0xfee0_0000, data };
    lines[0].route(to(0x30)).unwrap();
    lines[1].route(to(0x31)).unwrap();
    lines[1].pulse().unwrap();
    assert_eq!(requests_seen(&mut guest), 1 << 17);
    lines[1].route(to(0x32)).unwrap();
    lines[1].pulse().unwrap();
    assert_eq!(requests_seen(&mut guest), 1 << 17 | 1 << 18);
    drop(lines);
    // Their numbers are free again.
    let again = guest.vm.msi_line().unwrap();
    again.route(to(0x33)).unwrap();
    again.pulse().unwrap();
    assert_eq!(requests_seen(&mut guest), 0b111 << 17);
}

#[test]
fn vcpus_that_cannot_be_are_refused() {
    if !kvm() {
        return;
    }
    let guest = Guest::empty(VmOptions::default());
    for (number, of) in [(0, 0), (1, 1), (0, 256)] {
        let error = guest.vm.create_vcpu(number, VcpuCount::new(of)).unwrap_err();
        assert!(matches!(error, HypervisorError::VcpuCount { .. }), "{number} of {of}: {error}");
    }
}
