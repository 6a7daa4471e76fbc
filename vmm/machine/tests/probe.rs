//! The probe guest in a real machine: boot, pause, move, end.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test: it measures real time, prints what it measured, and may panic"
)]

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use drover_block::{MemoryImage, Owner};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_machine::{
    ConsoleSink, Disk, EventSink, Hypervisor, KernelImage, Machine, MachineConfig, MachineError,
    MachineEvent, Ownership, PauseGuard, Planned, ResetAction,
};
use drover_probe_record::Event;
use drover_saved_state::Envelope;
use drover_test_prerequisites::{kvm, probe_image};
use drover_units::{Bytes, PAGE_SIZE, Pages, VcpuCount};

/// How long anything may take before a test gives up waiting for it.
const LIMIT: Duration = Duration::from_secs(20);
const MEMORY: Bytes = Bytes::mib(64);

/// Cuts the console's bytes into lines, and notes when the first byte came.
#[derive(Debug)]
struct Lines {
    line: Vec<u8>,
    first_byte: Option<Instant>,
    lines: Sender<(String, Instant)>,
}

impl ConsoleSink for Lines {
    fn write(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        self.first_byte.get_or_insert(now);
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned();
                let _ = self.lines.send((line, self.first_byte.take().unwrap_or(now)));
            } else {
                self.line.push(byte);
            }
        }
    }
}

/// A machine, what it says, and what it prints.
struct Subject {
    machine: Machine,
    events: Receiver<MachineEvent>,
    lines: Receiver<(String, Instant)>,
}

/// What a test wants of its machine.
struct Wanted<'a> {
    vcpus: u32,
    cmdline: &'a str,
    disks: Vec<Disk>,
    owner: Option<Owner>,
}

impl Subject {
    /// Builds a machine with the probe, or one that waits for it.
    fn build(wanted: Wanted<'_>, boot: bool) -> (Self, PauseGuard) {
        let (line_sender, lines) = channel();
        let (event_sender, events) = channel();
        let console = Box::new(Lines { line: Vec::new(), first_byte: None, lines: line_sender });
        let config = MachineConfig {
            cmdline: wanted.cmdline.to_owned(),
            on_reset: ResetAction::End,
            ..MachineConfig::new(VcpuCount::new(wanted.vcpus), MEMORY)
        };
        let ownership = wanted.owner.map_or(Ownership::Later, Ownership::Take);
        let ready = Planned::new(config)
            .unwrap()
            .allocate_memory()
            .unwrap()
            .open_volumes(wanted.disks, ownership)
            .unwrap()
            .attach_devices(&Hypervisor::open().unwrap(), console, EventSink::channel(event_sender))
            .unwrap();
        let (machine, paused) = if boot {
            ready.boot(&KernelImage::open(&probe_image()).unwrap()).unwrap()
        } else {
            ready.receive().unwrap()
        };
        (Self { machine, events, lines }, paused)
    }

    fn boot(cmdline: &str) -> (Self, PauseGuard) {
        Self::build(Wanted { vcpus: 2, cmdline, disks: Vec::new(), owner: None }, true)
    }

    fn next_line(&self) -> (String, Instant) {
        self.lines
            .recv_timeout(LIMIT)
            .unwrap_or_else(|_| panic!("no line in time; {:?}", self.machine.ended()))
    }

    /// The next event that `wanted` takes, passing over others; errors of the probe fail the test.
    fn wait_for<T>(&self, wanted: impl Fn(&Event<String>) -> Option<T>) -> T {
        loop {
            let (line, _) = self.next_line();
            let event = Event::parse(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            if let Event::Error { what } = &event {
                panic!("the probe says: {what}");
            }
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    }

    /// Throws away what has been printed so far.
    fn forget_lines(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    fn acknowledged(&self) -> u64 {
        self.wait_for(|event| match event {
            Event::Ack { seq, .. } => Some(*seq),
            _ => None,
        })
    }

    fn heartbeat(&self) -> (u64, u64) {
        self.wait_for(|event| match event {
            Event::Hb { n, tsc } => Some((*n, *tsc)),
            _ => None,
        })
    }
}

fn copy_memory(from: &Machine, to: &Machine) {
    for run in from.memory().populated().unwrap().runs() {
        for chunk in run.chunks(Pages::new(256)) {
            let mut buffer = vec![0; (chunk.pages.get() * PAGE_SIZE) as usize];
            from.memory().read_pages(chunk, &mut buffer).unwrap();
            to.memory().write_pages(chunk, &buffer).unwrap();
        }
    }
}

#[test]
fn the_probe_boots_and_beats() {
    if !kvm() {
        return;
    }
    probe_image();
    let begin = Instant::now();
    let (subject, paused) = Subject::boot("probe.heartbeat=5 probe.seed=7");
    let built = begin.elapsed();
    let start = Instant::now();
    paused.resume().unwrap();
    let (line, first_byte) = subject.next_line();
    println!("built in {built:?}, first byte {:?} after start", first_byte - start);
    match Event::parse(&line) {
        Ok(Event::Boot { seed: 7, vcpus: 2, tsc_khz, .. }) => assert!(tsc_khz > 100_000, "{tsc_khz}"),
        other => panic!("{line}: {other:?}"),
    }
    assert_eq!(subject.heartbeat().0, 1);
    assert_eq!(subject.heartbeat().0, 2);
}

#[test]
fn a_paused_machine_stands_still_until_the_last_guard_is_gone() {
    if !kvm() {
        return;
    }
    let (subject, paused) = Subject::boot("probe.heartbeat=2 probe.seed=1 probe.dirty=4,64");
    paused.resume().unwrap();
    let (_, before) = subject.heartbeat();
    let begin = Instant::now();
    let user = subject.machine.pause(LIMIT).unwrap();
    println!("paused in {:?}", begin.elapsed());
    let lease = subject.machine.pause(LIMIT).unwrap();
    drop(user);

    subject.forget_lines();
    subject.machine.start_dirty_log().unwrap();
    let silence = subject.lines.recv_timeout(Duration::from_millis(100));
    assert!(matches!(silence, Err(RecvTimeoutError::Timeout)), "a paused machine printed {silence:?}");
    assert!(subject.machine.take_dirty().unwrap().is_empty(), "a paused machine wrote memory");

    lease.resume().unwrap();
    let (_, after) = subject.heartbeat();
    assert!(after > before, "the TSC runs on: {before} {after}");
    subject.heartbeat();
    assert!(!subject.machine.take_dirty().unwrap().is_empty(), "a running machine writes memory");
    subject.machine.stop_dirty_log();
    assert!(subject.machine.take_dirty().unwrap().is_empty(), "nothing is logged any more");
}

/// Pauses the source, moves it and its disks to the target, and runs it there. Returns the states.
fn move_guest(source: &Subject, target: &Subject, target_paused: PauseGuard, owner: &Owner) -> Vec<Envelope> {
    let paused = source.machine.pause(LIMIT).unwrap();
    copy_memory(&source.machine, &target.machine);
    let begin = Instant::now();
    let states = source.machine.save(&paused).unwrap();
    let saved = begin.elapsed();
    let begin = Instant::now();
    target.machine.restore(&target_paused, &states).unwrap();
    println!("saved in {saved:?}, restored in {:?}", begin.elapsed());
    source.machine.release_volumes(&paused).unwrap();
    target.machine.acquire_volumes(&target_paused, owner).unwrap();
    target_paused.resume().unwrap();
    // The source never runs again.
    std::mem::forget(paused);
    states
}

fn owner(epoch: u64) -> Owner {
    Owner { vm: VmId::from_u128(1), node: NodeId::from_u128(2), epoch: OwnerEpoch::new(epoch), pid: 3 }
}

fn disk(image: &MemoryImage) -> Vec<Disk> {
    vec![Disk { id: "test-volume".to_owned(), backend: Arc::new(image.open()), queues: 1 }]
}

#[test]
fn a_guest_moves_to_another_machine_and_goes_on() {
    if !kvm() {
        return;
    }
    let image = MemoryImage::new(Bytes::mib(1));
    let cmdline = "probe.heartbeat=2 probe.seed=9 probe.disk=64,0 probe.dirty=8,32";
    let wanted = |owner| Wanted { vcpus: 2, cmdline, disks: disk(&image), owner };
    let (mut current, paused) = Subject::build(wanted(Some(owner(1))), true);
    paused.resume().unwrap();
    current.acknowledged();
    for epoch in 2..6 {
        let (target, target_paused) = Subject::build(wanted(None), false);
        let (mut last, _) = current.heartbeat();
        move_guest(&current, &target, target_paused, &owner(epoch));
        // What the source had printed before it was paused: the last heartbeat of it.
        while let Ok((line, _)) = current.lines.try_recv() {
            if let Ok(Event::Hb { n, .. }) = Event::parse(&line) {
                last = n;
            }
        }
        // The first line may be the rest of one that the source began.
        let (_rest, _) = target.next_line();
        let (next, _) = target.heartbeat();
        assert!(
            next == last + 1 || next == last + 2,
            "heartbeat {last} at the source, then {next} at the target"
        );
        assert_eq!(target.heartbeat().0, next + 1);
        let acknowledged = target.acknowledged();
        assert!(target.acknowledged() > acknowledged, "the disk goes on");
        assert!(target.machine.panel().disk_metrics().any(|disk| disk.writes > 0));
        current = target;
    }
    current.machine.stop(LIMIT).unwrap();
}

#[test]
fn a_guest_that_halts_ends_the_machine_once() {
    if !kvm() {
        return;
    }
    let (subject, paused) = Subject::boot("probe.heartbeat=50 probe.seed=1 probe.halt=20");
    paused.resume().unwrap();
    subject.wait_for(|event| matches!(event, Event::Halt {}).then_some(()));
    assert_eq!(subject.events.recv_timeout(LIMIT), Ok(MachineEvent::GuestShutdown));
    assert_eq!(subject.machine.ended(), Some(MachineEvent::GuestShutdown));
    let paused = subject.machine.pause(LIMIT).unwrap();
    assert!(matches!(subject.machine.save(&paused), Err(MachineError::Ended(MachineEvent::GuestShutdown))));
    paused.resume().unwrap();
    subject.machine.stop(LIMIT).unwrap();
    assert!(subject.events.recv().is_err(), "told once");
}

#[test]
fn states_that_do_not_fit_are_refused_with_their_name() {
    if !kvm() {
        return;
    }
    let (source, paused) = Subject::boot("probe.heartbeat=2 probe.seed=1");
    paused.resume().unwrap();
    source.heartbeat();
    let paused = source.machine.pause(LIMIT).unwrap();
    let states = source.machine.save(&paused).unwrap();
    let check = |states: &[Envelope], expect: fn(&MachineError) -> bool| {
        let (target, target_paused) =
            Subject::build(Wanted { vcpus: 2, cmdline: "", disks: Vec::new(), owner: None }, false);
        let error = target.machine.restore(&target_paused, states).unwrap_err();
        assert!(expect(&error), "{error:?}");
        // What has no guest does not run.
        assert!(matches!(target_paused.resume(), Err(MachineError::NotRestored)));
        assert!(target.lines.try_recv().is_err());
    };
    check(&[], |error| matches!(error, MachineError::MissingState { kind, .. } if kind == "kvm-vm"));
    for missing in 0..states.len() {
        let mut rest = states.clone();
        rest.remove(missing);
        check(&rest, |error| matches!(error, MachineError::MissingState { .. }));
    }
    let twice: Vec<_> = states.iter().chain(states.last()).cloned().collect();
    check(&twice, |error| matches!(error, MachineError::UnknownState { .. }));
    for (index, state) in states.iter().enumerate() {
        let cut = &state.payload()[..state.payload().len() / 2];
        let mut damaged = states.clone();
        damaged[index] = Envelope::new(state.kind().clone(), state.instance(), state.version(), cut.to_vec());
        check(&damaged, |error| {
            matches!(
                error,
                MachineError::State { .. } | MachineError::Hypervisor(_) | MachineError::Device { .. }
            )
        });
    }
    let refused = source.machine.restore(&paused, &states).unwrap_err();
    assert!(matches!(refused, MachineError::NotIncoming), "{refused}");
    paused.resume().unwrap();
    source.heartbeat();
}

/// A console whose device breaks.
#[derive(Debug)]
struct Broken;

impl ConsoleSink for Broken {
    fn write(&mut self, _bytes: &[u8]) {
        panic!("the console is broken");
    }
}

#[test]
fn a_panic_in_a_vcpu_thread_ends_the_machine_with_its_message() {
    if !kvm() {
        return;
    }
    let (event_sender, events) = channel();
    let config = MachineConfig::new(VcpuCount::new(2), MEMORY);
    let (machine, paused) = Planned::new(config)
        .unwrap()
        .allocate_memory()
        .unwrap()
        .open_volumes(Vec::new(), Ownership::Later)
        .unwrap()
        .attach_devices(&Hypervisor::open().unwrap(), Box::new(Broken), EventSink::channel(event_sender))
        .unwrap()
        .boot(&KernelImage::open(&probe_image()).unwrap())
        .unwrap();
    paused.resume().unwrap();
    let expect = MachineEvent::Failure("vCPU 0: panic: the console is broken".to_owned());
    assert_eq!(events.recv_timeout(LIMIT), Ok(expect));
    drop(machine.pause(LIMIT).unwrap());
    machine.stop(LIMIT).unwrap();
}

#[test]
fn machines_and_guards_go_from_thread_to_thread() {
    fn check<T: Send + Sync>() {}
    check::<Machine>();
    check::<PauseGuard>();
    check::<EventSink>();
}

#[test]
fn a_machine_that_is_dropped_while_it_runs_is_gone() {
    if !kvm() {
        return;
    }
    let (subject, paused) = Subject::boot("probe.heartbeat=2 probe.seed=1");
    paused.resume().unwrap();
    subject.heartbeat();
    let Subject { machine, lines, .. } = subject;
    let guard = machine.pause(LIMIT).unwrap();
    drop(machine);
    // A guard that outlives its machine starts nothing.
    drop(guard);
    while lines.recv_timeout(Duration::from_millis(50)).is_ok() {}
}
