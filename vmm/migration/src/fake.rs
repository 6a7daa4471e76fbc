//! A guest without KVM, and a world that watches: everything that migration promises is checked from in here, at the
//! moment in which it could be broken.
//!
//! A [`FakeGuest`] has RAM, a vCPU that writes it and its volume, a device that writes RAM while it drains, registers
//! that travel as saved state, and a lock on a volume that it shares with its peer through the [`World`]. The vCPU is
//! stepped by hand (simulation) or by a thread (driver tests).

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use drover_guest_memory::{DirtyPages, DirtyTracker, GuestMemory};
use drover_ids::{OwnerEpoch, VmId};
use drover_saved_state::{Envelope, Kind, PayloadReader, PayloadWriter, SavedState, StateError};
use drover_units::{Bytes, Gpa, PAGE_SIZE, VcpuCount};

use crate::{
    guest::{GuestError, MigratableGuest},
    shape::{CpuShape, DeviceShape, MachineShape, RamRange},
};

/// A small generator: the same seed gives the same run (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Source,
    Target,
}

/// A step that is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    StartDirtyLog,
    TakeDirty,
    Pause,
    Save,
    Release,
    Acquire,
    Resume,
    Restore,
}

/// What a guest is, byte for byte: the CRC of its RAM, and its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Image {
    ram: u32,
    registers: u64,
}

/// What both guests share: the volume, and the eyes of the test.
#[derive(Debug, Default)]
pub(crate) struct World {
    state: Mutex<WorldState>,
}

#[derive(Debug, Default)]
struct WorldState {
    running: BTreeSet<Side>,
    ever_ran: BTreeSet<Side>,
    /// Who holds the lock, and the newest epoch that ever did.
    holder: Option<Side>,
    epoch: OwnerEpoch,
    /// The volume may hold what the source's RAM does not know.
    target_owned: bool,
    stopped_as: Option<Image>,
    violations: Vec<String>,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock().unwrap()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(crate) fn is_running(&self, side: Side) -> bool {
        self.lock().running.contains(&side)
    }

    pub(crate) fn ever_ran(&self, side: Side) -> bool {
        self.lock().ever_ran.contains(&side)
    }

    pub(crate) fn holder(&self) -> Option<(Side, OwnerEpoch)> {
        let state = self.lock();
        state.holder.map(|side| (side, state.epoch))
    }

    /// Whether the target ever took the volume. A source must not run again after that, whatever is granted: its RAM is
    /// older than the volume.
    pub(crate) fn target_owned(&self) -> bool {
        self.lock().target_owned
    }

    /// The process of this end is gone, and with it its vCPUs and its lock.
    pub(crate) fn kill(&self, side: Side) {
        let mut state = self.lock();
        state.running.remove(&side);
        if state.holder == Some(side) {
            state.holder = None;
        }
    }

    /// Refuses every owner older than `epoch` from now on.
    pub(crate) fn fence(&self, epoch: OwnerEpoch) {
        let mut state = self.lock();
        state.epoch = state.epoch.max(epoch);
    }
}

impl WorldState {
    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }
}

/// The registers of the one vCPU, as saved state.
struct Registers(u64);

impl SavedState for Registers {
    const KIND: &'static str = "fake-vcpu";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u64(self.0);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        Ok(Self(payload.u64("registers")?))
    }
}

/// The vCPU: runs only while its gate is open, and the gate does not close in the middle of a step.
#[derive(Debug)]
pub(crate) struct Vcpu {
    side: Side,
    world: Arc<World>,
    memory: GuestMemory,
    state: Mutex<VcpuState>,
    changed: Condvar,
}

#[derive(Debug)]
struct VcpuState {
    open: bool,
    ended: bool,
    registers: u64,
    random: Random,
    /// What the guest believes to be in each page's first eight bytes.
    model: Vec<u64>,
}

impl Vcpu {
    /// Writes `pages` random pages and the volume, if the gate is open. Says whether it was.
    pub(crate) fn step(&self, pages: u64) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.open {
            for _ in 0..pages {
                self.write_page(&mut state);
            }
            self.world.lock().check_volume_write(self.side);
        }
        state.open
    }

    fn write_page(&self, state: &mut VcpuState) {
        let page = state.random.below(state.model.len() as u64);
        state.registers = state.registers.wrapping_add(1);
        // Now and then a page becomes zero, so that zero pages travel in later rounds too.
        let value = if state.random.one_in(8) { 0 } else { state.registers };
        state.model[page as usize] = value;
        let mut bytes = [0; PAGE_SIZE as usize];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        bytes[4088..].copy_from_slice(&value.to_le_bytes());
        self.memory.write(Gpa::new(page * PAGE_SIZE), &bytes).unwrap();
    }

    /// The process of this vCPU is gone.
    pub(crate) fn stop(&self) {
        self.set_open(false);
    }

    fn set_open(&self, open: bool) {
        self.state.lock().unwrap().open = open;
        self.changed.notify_all();
    }

    fn run(&self, pages: u64, pace: Duration) {
        let mut state = self.state.lock().unwrap();
        while !state.ended {
            if state.open {
                drop(state);
                self.step(pages);
                state = self.state.lock().unwrap();
                // The lock is free meanwhile; an end or a pause is seen at once.
                let open = |state: &mut VcpuState| state.open && !state.ended;
                state = self.changed.wait_timeout_while(state, pace, open).unwrap().0;
            } else {
                state = self.changed.wait(state).unwrap();
            }
        }
    }
}

impl WorldState {
    fn check_volume_write(&mut self, side: Side) {
        let holder = self.holder;
        self.require(holder == Some(side), || format!("{side:?} writes a volume held by {holder:?}"));
    }
}

/// The guest.
#[derive(Debug)]
pub(crate) struct FakeGuest {
    side: Side,
    world: Arc<World>,
    memory: GuestMemory,
    vcpu: Arc<Vcpu>,
    thread: Option<JoinHandle<()>>,
    tracker: Option<DirtyTracker>,
    paused: bool,
    over: bool,
    /// Everything that was ever taken from the dirty log.
    pub(crate) taken: DirtyPages,
    /// Steps that fail from now on, each once.
    pub(crate) faults: BTreeSet<Fault>,
    /// The shape to claim, where a test wants a wrong one.
    pub(crate) claimed: Option<MachineShape>,
    /// State to save and restore besides the registers.
    pub(crate) ballast: Vec<Envelope>,
}

pub(crate) const SOURCE_EPOCH: OwnerEpoch = OwnerEpoch::new(4);
pub(crate) const TARGET_EPOCH: OwnerEpoch = OwnerEpoch::new(5);

impl FakeGuest {
    /// A guest that runs, with its volume, and a third of its pages written.
    pub(crate) fn running(world: &Arc<World>, size: Bytes, seed: u64) -> Self {
        let mut guest = Self::built(world, Side::Source, size, seed);
        guest.acquire_volumes(SOURCE_EPOCH).unwrap();
        guest.resume().unwrap();
        guest.vcpu.step(guest.memory.size().to_pages().unwrap().get() / 3);
        guest
    }

    /// A machine that waits for a guest.
    pub(crate) fn incoming(world: &Arc<World>, size: Bytes) -> Self {
        Self::built(world, Side::Target, size, 0)
    }

    fn built(world: &Arc<World>, side: Side, size: Bytes, seed: u64) -> Self {
        let memory = GuestMemory::anonymous(size);
        let model = vec![0; usize::try_from(size.get() / PAGE_SIZE).unwrap()];
        let state = VcpuState { open: false, ended: false, registers: 0, random: Random(seed), model };
        let vcpu = Arc::new(Vcpu {
            side,
            world: Arc::clone(world),
            memory: memory.clone(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        Self {
            side,
            world: Arc::clone(world),
            memory,
            vcpu,
            thread: None,
            tracker: None,
            paused: true,
            over: false,
            taken: DirtyPages::new(),
            faults: BTreeSet::new(),
            claimed: None,
            ballast: Vec::new(),
        }
    }

    pub(crate) fn vcpu(&self) -> Arc<Vcpu> {
        Arc::clone(&self.vcpu)
    }

    /// Runs the vCPU on a thread: `pages` written every `pace`.
    pub(crate) fn start_thread(&mut self, pages: u64, pace: Duration) {
        let vcpu = self.vcpu();
        self.thread = Some(std::thread::spawn(move || vcpu.run(pages, pace)));
    }

    /// Whether RAM holds what this guest's own vCPU wrote, and nothing else.
    pub(crate) fn memory_is_intact(&self) -> bool {
        let state = self.vcpu.state.lock().unwrap();
        state.model.iter().enumerate().all(|(page, value)| {
            // The first page is the draining device's.
            page == 0 || self.first_word(page as u64) == *value
        })
    }

    fn first_word(&self, page: u64) -> u64 {
        let mut word = [0; 8];
        self.memory.read(Gpa::new(page * PAGE_SIZE), &mut word).unwrap();
        u64::from_le_bytes(word)
    }

    /// The pages that the dirty log holds now.
    pub(crate) fn logged(&mut self) -> DirtyPages {
        self.tracker.as_mut().map(DirtyTracker::take).unwrap_or_default()
    }

    fn image(&self) -> Image {
        let mut page = vec![0; PAGE_SIZE as usize];
        let pages = self.memory.size().get() / PAGE_SIZE;
        let ram = (0..pages).fold(0, |crc, number| {
            self.memory.read(Gpa::new(number * PAGE_SIZE), &mut page).unwrap();
            crc32c::crc32c_append(crc, &page)
        });
        Image { ram, registers: self.vcpu.state.lock().unwrap().registers }
    }

    fn fail(&mut self, fault: Fault) -> Result<(), GuestError> {
        let over = self.over;
        let side = self.side;
        self.world.lock().require(!over, || format!("{side:?} is asked for {fault:?} after its end"));
        if self.faults.remove(&fault) {
            Err(GuestError::new(format!("{fault:?} was made to fail")))
        } else {
            Ok(())
        }
    }
}

impl Drop for FakeGuest {
    fn drop(&mut self) {
        self.vcpu.state.lock().unwrap().ended = true;
        self.vcpu.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the vCPU thread does not panic");
        }
    }
}

/// The shape of every fake guest of this size.
pub(crate) fn fake_shape(memory: &GuestMemory) -> MachineShape {
    MachineShape {
        vm: VmId::from_u128(7),
        vcpus: VcpuCount::new(1),
        memory: memory.layout().ranges().iter().map(RamRange::from).collect(),
        page_size: 4096,
        devices: vec![DeviceShape { kind: "fake-vcpu".to_owned(), identity: String::new(), version: 1 }],
        cpu: CpuShape { vendor: "DroverFake12".to_owned(), features: vec![0b1011] },
    }
}

impl MigratableGuest for FakeGuest {
    fn shape(&self) -> MachineShape {
        self.claimed.clone().unwrap_or_else(|| fake_shape(&self.memory))
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn start_dirty_log(&mut self) -> Result<(), GuestError> {
        self.fail(Fault::StartDirtyLog)?;
        self.tracker = Some(DirtyTracker::new(&self.memory));
        Ok(())
    }

    fn take_dirty(&mut self) -> Result<DirtyPages, GuestError> {
        self.fail(Fault::TakeDirty)?;
        let taken = self.logged();
        self.taken = self.taken.union(&taken);
        Ok(taken)
    }

    fn mark_dirty(&mut self, pages: &DirtyPages) {
        if let Some(tracker) = &mut self.tracker {
            tracker.mark(pages);
        }
    }

    fn stop_dirty_log(&mut self) {
        // The tracker stays: tests look at what is in it.
    }

    fn pause(&mut self, _limit: Duration) -> Result<(), GuestError> {
        // A pause that fails half-way has stopped the vCPU.
        self.vcpu.set_open(false);
        self.fail(Fault::Pause)?;
        // A device completes its last request.
        self.memory.write(Gpa::new(16), &self.vcpu.state.lock().unwrap().registers.to_le_bytes()).unwrap();
        self.paused = true;
        let image = self.image();
        let mut world = self.world.lock();
        world.running.remove(&self.side);
        world.stopped_as = Some(image);
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<Envelope>, GuestError> {
        self.fail(Fault::Save)?;
        let (paused, side) = (self.paused, self.side);
        self.world.lock().require(paused, || format!("{side:?} is saved while it runs"));
        // Saving may write RAM as well.
        self.memory.write(Gpa::new(24), &[1; 8]).unwrap();
        let image = self.image();
        self.world.lock().stopped_as = Some(image);
        let registers = Registers(self.vcpu.state.lock().unwrap().registers);
        Ok([vec![registers.to_envelope(0)], self.ballast.clone()].concat())
    }

    fn release_volumes(&mut self) -> Result<(), GuestError> {
        let (paused, side) = (self.paused, self.side);
        let mut world = self.world.lock();
        world.require(paused, || format!("{side:?} releases its volume while it runs"));
        if world.holder == Some(side) {
            world.holder = None;
        }
        drop(world);
        // A release that fails has released some.
        self.fail(Fault::Release)
    }

    fn acquire_volumes(&mut self, epoch: OwnerEpoch) -> Result<(), GuestError> {
        self.fail(Fault::Acquire)?;
        let mut world = self.world.lock();
        if world.holder.is_some_and(|holder| holder != self.side) || world.epoch > epoch {
            let (holder, newest) = (world.holder, world.epoch);
            return Err(GuestError::new(format!("the volume is held by {holder:?}, epoch {newest}")));
        }
        world.holder = Some(self.side);
        world.epoch = epoch;
        world.target_owned |= self.side == Side::Target;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.fail(Fault::Resume)?;
        let image = self.image();
        let side = self.side;
        {
            let mut world = self.world.lock();
            let others: Vec<Side> = world.running.iter().copied().filter(|other| *other != side).collect();
            world.require(others.is_empty(), || format!("{side:?} is resumed while {others:?} runs"));
            world.check_volume_write(side);
            let stale = side == Side::Source && world.target_owned;
            world.require(!stale, || "the source resumes with RAM older than the volume".to_owned());
            if let (Some(stopped_as), true) = (world.stopped_as, self.paused) {
                world.require(stopped_as == image, || {
                    format!("{side:?} resumes as {image:?}, not {stopped_as:?}")
                });
            }
            world.running.insert(side);
            world.ever_ran.insert(side);
        }
        self.paused = false;
        self.vcpu.set_open(true);
        Ok(())
    }

    fn restore(&mut self, states: &[Envelope]) -> Result<(), GuestError> {
        self.fail(Fault::Restore)?;
        let Some((first, ballast)) = states.split_first() else {
            return Err(GuestError::new("no registers were sent"));
        };
        let registers =
            Registers::from_envelope(first).map_err(|e| GuestError::because("restore registers", e))?;
        if ballast != self.ballast {
            return Err(GuestError::new("the ballast differs"));
        }
        let mut state = self.vcpu.state.lock().unwrap();
        state.registers = registers.0;
        for page in 0..state.model.len() {
            state.model[page] = self.first_word(page as u64);
        }
        Ok(())
    }

    fn retire(&mut self) {
        self.over = true;
        let (paused, side) = (self.paused, self.side);
        self.world.lock().require(paused, || format!("{side:?} is retired while it runs"));
    }

    fn discard(&mut self) {
        self.over = true;
        self.world.kill(self.side);
    }
}

/// A kind for states that mean nothing.
pub(crate) fn registers_kind() -> Kind {
    Kind::of::<Registers>()
}
