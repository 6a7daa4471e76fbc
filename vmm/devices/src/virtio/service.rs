//! The thread of a device that needs no more than one: it serves all queues, and whatever else the device waits for.
//!
//! ```text
//! start --> running <--pause, resume--> quiet        stop ends it from both
//!              +--the driver breaks the rules--> halted, until the driver resets the device
//! ```
//!
//! Work happens between two waits and is bounded, so that a driver which never stops asking cannot keep the thread
//! from its orders.

use std::{
    fmt, io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    thread,
    time::Duration,
};

use drover_guest_memory::GuestMemory;
use drover_thread_role::{Role, spawn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    control::{Control, Doing, Order},
    ring::{Ring, RingError},
};
use crate::{ActivateError, Activation, DeviceError, DeviceEvent, DeviceEvents, VirtioInterrupt};

/// What a device does in its thread.
pub(in crate::virtio) trait Service: Send + 'static {
    /// Says what else than the queues to wait for. Called once, in the thread, before anything else.
    ///
    /// # Errors
    /// Where the host refuses; the device fails.
    fn prepare(&mut self, _sources: &Sources) -> io::Result<()> {
        Ok(())
    }

    /// Looks at a queue, by its position among those that are active: the driver has rung, or the device runs again
    /// after a pause. Takes no more than [`Ring::budget`] chains, and [rings](Ring::ring) for the rest.
    fn serve(&mut self, at: usize, context: &mut Context) -> Result<(), RingError>;

    /// One of the sources has something. Its number is the one it was added with.
    fn on_source(&mut self, _source: u64, _ready: EventSet, _context: &mut Context) -> Result<(), RingError> {
        Ok(())
    }

    /// Brings what is under way to an end, before the thread becomes quiet.
    fn quiesce(&mut self, _context: &mut Context) -> Result<(), RingError> {
        Ok(())
    }
}

/// What a service works with.
#[derive(Debug)]
pub(in crate::virtio) struct Context {
    pub(in crate::virtio) memory: GuestMemory,
    /// The active queues, in ascending order.
    pub(in crate::virtio) rings: Vec<Ring>,
    pub(in crate::virtio) interrupt: Arc<dyn VirtioInterrupt>,
    pub(in crate::virtio) sources: Sources,
}

/// What a thread waits for beside its queues and orders. Clones are the same.
#[derive(Clone, Debug)]
pub(in crate::virtio) struct Sources(Arc<Epoll>);

/// Sources of services are numbered below this.
const QUEUES: u64 = 1 << 32;
const ORDERS: u64 = u64::MAX;

impl Sources {
    pub(in crate::virtio) fn new() -> io::Result<Self> {
        Epoll::new().map(|epoll| Self(Arc::new(epoll)))
    }

    /// Waits for a descriptor too, under a number below 2^32. The caller removes it before it is closed.
    pub(in crate::virtio) fn add(&self, source: u64, fd: RawFd, events: EventSet) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source))
    }
}

/// A device's thread, seen from its device.
pub(in crate::virtio) struct ServiceThread {
    name: String,
    events: Arc<dyn DeviceEvents>,
    paused: bool,
    running: Option<Running>,
}

struct Running {
    control: Arc<Control>,
    thread: thread::JoinHandle<()>,
}

/// These threads answer from memory or from non-blocking sockets.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Buffers are on the heap; the rest is for the panic machinery and logging.
const STACK_BYTES: usize = 256 << 10;
/// Events looked at in one go.
const EVENTS_MAX: usize = 32;

impl fmt::Debug for ServiceThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceThread")
            .field("name", &self.name)
            .field("paused", &self.paused)
            .field("running", &self.running.is_some())
            .finish_non_exhaustive()
    }
}

impl ServiceThread {
    /// None runs yet.
    pub(in crate::virtio) fn new(name: String, events: Arc<dyn DeviceEvents>) -> Self {
        Self { name, events, paused: false, running: None }
    }

    pub(in crate::virtio) fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, paused where the device is.
    pub(in crate::virtio) fn start(
        &mut self,
        activation: Activation,
        service: impl Service,
    ) -> Result<(), ActivateError> {
        debug_assert!(self.running.is_none(), "a device is reset before it is activated again");
        let refused = |attempt| move |source| ActivateError::Host { attempt, source };
        let order = if self.paused { Order::Pause } else { Order::Run };
        let control = Arc::new(Control::new(order).map_err(refused("make an event"))?);
        let (sources, orders) =
            Sources::new().and_then(|all| Ok((all, Sources::new()?))).map_err(refused("make an epoll"))?;
        let Activation { queues, memory, interrupt, .. } = activation;
        let ring = |queue| Ring::new(queue, memory.clone(), Arc::clone(&interrupt));
        let rings: Vec<Ring> = queues.into_iter().map(ring).collect();
        let connect = || -> io::Result<()> {
            for (at, ring) in (QUEUES..).zip(&rings) {
                sources.add(at, ring.doorbell().as_raw_fd(), EventSet::IN)?;
            }
            sources.add(ORDERS, control.wake().as_raw_fd(), EventSet::IN)?;
            orders.add(ORDERS, control.wake().as_raw_fd(), EventSet::IN)
        };
        connect().map_err(refused("wait for events"))?;
        let worker = Worker {
            name: self.name.clone(),
            context: Context { memory, rings, interrupt, sources },
            service,
            control: Arc::clone(&control),
            events: Arc::clone(&self.events),
            orders,
            order: Order::Pause,
            halted: false,
        };
        control.give(order);
        let builder = thread::Builder::new().name(self.name.clone()).stack_size(STACK_BYTES);
        let thread = spawn(Role::Device, builder, move || worker.run()).map_err(refused("start a thread"))?;
        self.running = Some(Running { control, thread });
        Ok(())
    }

    /// As [`VirtioDevice::reset`](crate::VirtioDevice::reset).
    pub(in crate::virtio) fn reset(&mut self) -> Result<(), DeviceError> {
        let Some(running) = &self.running else { return Ok(()) };
        running.control.give(Order::Stop);
        if let Err(error @ DeviceError::DrainTimeout { .. }) = self.wait(DRAIN_LIMIT) {
            return Err(error);
        }
        if let Some(running) = self.running.take() {
            // A panic has been reported where it happened.
            let _ = running.thread.join();
        }
        Ok(())
    }

    /// As [`Device::pause`](crate::Device::pause).
    pub(in crate::virtio) fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        if self.paused {
            return Ok(());
        }
        if let Some(running) = &self.running {
            running.control.give(Order::Pause);
            if let Err(error) = self.wait(limit) {
                self.give(Order::Run);
                return Err(error);
            }
        }
        self.paused = true;
        Ok(())
    }

    /// As [`Device::resume`](crate::Device::resume).
    pub(in crate::virtio) fn resume(&mut self) -> Result<(), DeviceError> {
        if let Some(running) = &self.running
            && running.control.doing() == Doing::Died
        {
            return Err(self.died());
        }
        self.paused = false;
        self.give(Order::Run);
        Ok(())
    }

    /// The device is restored: what is started next starts paused.
    pub(in crate::virtio) fn start_paused(&mut self) {
        self.paused = true;
    }

    fn give(&self, order: Order) {
        if let Some(running) = &self.running {
            running.control.give(order);
        }
    }

    fn wait(&self, limit: Duration) -> Result<(), DeviceError> {
        match self.running.as_ref().map_or(Doing::Paused, |running| running.control.wait(limit)) {
            Doing::Paused | Doing::Stopped | Doing::Fenced => Ok(()),
            Doing::Running => Err(DeviceError::DrainTimeout { device: self.name.clone(), waited: limit }),
            Doing::Died => Err(self.died()),
        }
    }

    fn died(&self) -> DeviceError {
        DeviceError::Failed { device: self.name.clone(), reason: "its thread has died".to_owned() }
    }
}

impl Drop for ServiceThread {
    fn drop(&mut self) {
        if let Err(error) = self.reset() {
            tracing::error!(device = self.name, %error, "a device was dropped and its thread does not end");
        }
    }
}

/// The thread's side.
struct Worker<S> {
    name: String,
    context: Context,
    service: S,
    control: Arc<Control>,
    events: Arc<dyn DeviceEvents>,
    /// Only the orders: what a quiet thread waits for.
    orders: Sources,
    order: Order,
    halted: bool,
}

impl<S: Service> Worker<S> {
    fn run(mut self) {
        let _died = ReportDeath {
            control: Arc::clone(&self.control),
            name: self.name.clone(),
            events: Arc::clone(&self.events),
        };
        if let Err(error) = self.service.prepare(&self.context.sources) {
            let reason = format!("the host does not give it what it needs: {error}");
            self.control.report(Order::Stop, Doing::Died);
            return self.events.notify(DeviceEvent::Failed { device: self.name.clone(), reason });
        }
        let mut ready = [EpollEvent::default(); EVENTS_MAX];
        while self.order != Order::Stop {
            let quiet = self.halted || self.order == Order::Pause;
            let sources = if quiet { &self.orders } else { &self.context.sources };
            let count = match sources.0.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("waiting on an epoll of our own fails only by a signal: {error}"),
            };
            if ready[..count].iter().any(|event| event.data() == ORDERS) {
                self.on_order();
                // Whatever else is ready still is when the thread waits again.
                continue;
            }
            for event in &ready[..count] {
                self.on_event(*event);
            }
        }
    }

    fn on_event(&mut self, event: EpollEvent) {
        if self.halted {
            return;
        }
        let context = &mut self.context;
        let outcome = match event.data().checked_sub(QUEUES) {
            Some(at) => {
                let at = usize::try_from(at).expect("queues are few");
                // Fails only where there is nothing to read.
                let _ = context.rings[at].doorbell().read();
                self.service.serve(at, context)
            }
            None => self.service.on_source(event.data(), event.event_set(), context),
        };
        self.conclude(outcome);
    }

    fn on_order(&mut self) {
        self.order = self.control.order();
        if self.order == Order::Run {
            // Notifications may have come while nobody looked, or to another process before a restore.
            for at in 0..self.context.rings.len() {
                if !self.halted {
                    let outcome = self.service.serve(at, &mut self.context);
                    self.conclude(outcome);
                }
            }
            return;
        }
        if !self.halted {
            let outcome = self.service.quiesce(&mut self.context);
            self.conclude(outcome);
        }
        let doing = if self.order == Order::Stop { Doing::Stopped } else { Doing::Paused };
        self.control.report(self.order, doing);
    }

    /// Tells the driver what has been answered, or that it has broken the rules.
    fn conclude(&mut self, outcome: Result<(), RingError>) {
        let outcome = outcome.and_then(|()| self.context.rings.iter_mut().try_for_each(Ring::publish));
        if let Err(error) = outcome {
            tracing::warn!(device = self.name, %error, "the driver broke the rules: the device needs a reset");
            self.halted = true;
            self.context.interrupt.needs_reset();
        }
    }
}

/// Tells the machine when the thread ends by a panic.
struct ReportDeath {
    control: Arc<Control>,
    name: String,
    events: Arc<dyn DeviceEvents>,
}

impl Drop for ReportDeath {
    fn drop(&mut self) {
        if thread::panicking() {
            self.control.report(Order::Run, Doing::Died);
            let reason = "its thread has died".to_owned();
            self.events.notify(DeviceEvent::Failed { device: self.name.clone(), reason });
        }
    }
}
