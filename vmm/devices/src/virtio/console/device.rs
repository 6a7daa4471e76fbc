//! Life cycle of a console, and its thread.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use drover_saved_state::{Envelope, SavedState};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ids::VIRTIO_ID_CONSOLE,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::{
    epoll::EventSet,
    eventfd::{EFD_NONBLOCK, EventFd},
};

use super::{
    ConsoleSize,
    config::{self, F_EMERGENCY_WRITE, F_SIZE},
    request::output_len,
    state::ConsoleState,
};
use crate::{
    ActivateError, Activation, ConsoleSink, DeviceError, DeviceEvents, VirtioDevice, VirtioInterrupt,
    virtio::{
        ring::{Ring, RingError},
        service::{Context, Service, ServiceThread, Sources},
    },
};

const QUEUE_SIZE: u16 = 64;
/// Of the two queues of port 0 (5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const TYPED: u64 = 0;
/// Output is copied in pieces of this size.
const PIECE: usize = 4096;

/// What a console is made from.
#[derive(Debug)]
pub struct ConsoleConfig {
    /// For people.
    pub name: String,
    /// Where the guest's output goes.
    pub sink: Box<dyn ConsoleSink>,
    /// The terminal's size; zeros where it is not known.
    pub size: ConsoleSize,
    /// Where it tells that it has failed.
    pub events: Arc<dyn DeviceEvents>,
}

/// A virtio console.
#[derive(Debug)]
pub struct VirtioConsole {
    thread: ServiceThread,
    port: ConsolePort,
}

/// The host's side of a console. Clones are the same; works at any time from any thread and never waits for the guest.
#[derive(Clone, Debug)]
pub struct ConsolePort(Arc<Shared>);

struct Shared {
    sink: Mutex<Box<dyn ConsoleSink>>,
    terminal: Mutex<Terminal>,
    /// Rings when something has been typed.
    typed: EventFd,
    spoke: AtomicBool,
}

#[derive(Debug, Default)]
struct Terminal {
    size: ConsoleSize,
    waiting: VecDeque<u8>,
    /// Grows with the size's changes.
    generation: u32,
    /// How to tell the driver of a new size, while there is one.
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terminal = self.terminal();
        f.debug_struct("Console")
            .field("size", &terminal.size)
            .field("waiting", &terminal.waiting.len())
            .finish()
    }
}

impl Shared {
    fn terminal(&self) -> MutexGuard<'_, Terminal> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, bytes: &[u8]) {
        self.spoke.store(true, Ordering::Relaxed);
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
    }

    fn ring(&self) {
        // Fails only where the counter is full, and then it rings already.
        let _ = self.typed.write(1);
    }
}

impl ConsolePort {
    /// Most input that waits for the guest, bytes: as much as a serial port keeps.
    pub const INPUT_BYTES_MAX: usize = crate::Serial::INPUT_BYTES_MAX;

    /// Types on the console. Returns how many bytes were taken.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut terminal = self.0.terminal();
        let room = Self::INPUT_BYTES_MAX.saturating_sub(terminal.waiting.len());
        let taken = &bytes[..bytes.len().min(room)];
        terminal.waiting.extend(taken);
        drop(terminal);
        self.0.ring();
        taken.len()
    }

    /// Whether the guest has written by this console since this was last [taken back](Self::listen_elsewhere).
    pub fn has_spoken(&self) -> bool {
        self.0.spoke.load(Ordering::Relaxed)
    }

    /// The guest has written by another console since.
    pub fn listen_elsewhere(&self) {
        self.0.spoke.store(false, Ordering::Relaxed);
    }

    /// The terminal has this size now.
    pub fn resize(&self, size: ConsoleSize) {
        let mut terminal = self.0.terminal();
        if terminal.size != size {
            terminal.size = size;
            terminal.generation = terminal.generation.wrapping_add(1);
            if let Some(interrupt) = &terminal.interrupt {
                interrupt.config_changed();
            }
        }
    }
}

impl VirtioConsole {
    /// A console without a driver.
    ///
    /// # Errors
    /// Where the host has no more descriptors.
    pub fn new(config: ConsoleConfig) -> io::Result<Self> {
        let shared = Shared {
            sink: Mutex::new(config.sink),
            terminal: Mutex::new(Terminal { size: config.size, ..Terminal::default() }),
            typed: EventFd::new(EFD_NONBLOCK)?,
            spoke: AtomicBool::new(false),
        };
        let thread = ServiceThread::new(config.name, config.events);
        Ok(Self { thread, port: ConsolePort(Arc::new(shared)) })
    }

    /// The host's side.
    pub fn port(&self) -> ConsolePort {
        self.port.clone()
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        [VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, F_SIZE, F_EMERGENCY_WRITE]
            .into_iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(self.port.0.terminal().size, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Some(character) = config::emergency_write(offset, data) {
            self.port.0.show(&[character]);
        }
    }

    fn config_generation(&self) -> u32 {
        self.port.0.terminal().generation
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueNotReady(RECEIVE));
        }
        let shared = Arc::clone(&self.port.0);
        shared.terminal().interrupt = Some(Arc::clone(&activation.interrupt));
        self.thread.start(activation, Typist { shared })
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.thread.reset()?;
        self.port.0.terminal().interrupt = None;
        Ok(())
    }

    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        self.thread.pause(limit)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.thread.resume()
    }

    fn save(&self) -> Envelope {
        let spoke = self.port.has_spoken();
        let terminal = self.port.0.terminal();
        let waiting = terminal.waiting.iter().copied().collect();
        ConsoleState { size: terminal.size, spoke, waiting }.to_envelope(0)
    }

    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = self.thread.name().to_owned();
        let state =
            ConsoleState::from_envelope(envelope).map_err(|source| DeviceError::State { device, source })?;
        self.port.0.spoke.store(state.spoke, Ordering::Relaxed);
        let mut terminal = self.port.0.terminal();
        terminal.size = state.size;
        terminal.waiting = state.waiting.into();
        drop(terminal);
        self.thread.start_paused();
        Ok(())
    }
}

/// The thread's work.
struct Typist {
    shared: Arc<Shared>,
}

impl Typist {
    /// Hands the guest what has been typed, as far as it has room.
    fn hand_in(&self, ring: &mut Ring, memory: &drover_guest_memory::GuestMemory) -> Result<(), RingError> {
        let mut terminal = self.shared.terminal();
        for _ in 0..ring.budget() {
            if terminal.waiting.is_empty() {
                return Ok(());
            }
            let Some(chain) = ring.take()? else { return Ok(()) };
            let (front, _) = terminal.waiting.as_slices();
            let written = chain.write(memory, 0, front)?;
            let head = chain.head();
            terminal.waiting.drain(..written);
            ring.answer(head, u32::try_from(written).expect("less than INPUT_BYTES_MAX"))?;
        }
        ring.ring();
        Ok(())
    }

    /// Shows what the guest has written.
    fn show(&self, ring: &mut Ring, memory: &drover_guest_memory::GuestMemory) -> Result<(), RingError> {
        let mut piece = [0; PIECE];
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let len = output_len(chain.readable_len())?;
            for offset in (0..len).step_by(PIECE) {
                let count = chain.read(memory, offset, &mut piece)?;
                self.shared.show(&piece[..count]);
            }
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }
}

impl Service for Typist {
    fn prepare(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(TYPED, self.shared.typed.as_raw_fd(), EventSet::IN)
    }

    fn serve(&mut self, at: usize, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let ring = &mut rings[at];
        match ring.index() {
            RECEIVE => self.hand_in(ring, memory),
            TRANSMIT => self.show(ring, memory),
            _ => Ok(()),
        }
    }

    fn on_source(&mut self, _typed: u64, _ready: EventSet, context: &mut Context) -> Result<(), RingError> {
        let _ = self.shared.typed.read();
        match context.rings.iter().position(|ring| ring.index() == RECEIVE) {
            Some(at) => self.serve(at, context),
            None => Ok(()),
        }
    }
}
