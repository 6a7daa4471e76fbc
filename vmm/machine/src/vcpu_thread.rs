//! The threads that run the guest.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use drover_bus::{MmioBus, Port, PortBus};
use drover_devices::{DeviceEvent, DeviceEvents};
use drover_hypervisor::{Exit, HypervisorError, SystemEvent, Vcpu};
use drover_thread_role::{Role, spawn};

use crate::{EventSink, MachineEvent, gate::Gate, restart::Restart};

/// Both address spaces of the guest.
#[derive(Debug, Default)]
pub(crate) struct Buses {
    pub(crate) ports: PortBus,
    pub(crate) mmio: MmioBus,
}

/// Ends a machine: whoever is first decides why.
#[derive(Debug)]
pub(crate) struct Ender {
    pub(crate) gate: Arc<Gate>,
    pub(crate) events: EventSink,
    pub(crate) restart: Arc<Restart>,
}

impl Ender {
    pub(crate) fn end(&self, event: MachineEvent) {
        if self.gate.end(event.clone()) {
            tracing::info!(%event, "the machine has ended");
            self.events.send(event);
        }
    }

    /// The guest has asked for a reset: it does not run on, and the machine starts anew or ends.
    fn reset(&self) {
        self.gate.shut();
        if !self.restart.want() {
            self.end(MachineEvent::GuestReset);
        }
    }
}

impl DeviceEvents for Ender {
    fn notify(&self, event: DeviceEvent) {
        self.end(match event {
            DeviceEvent::ResetRequested => return self.reset(),
            DeviceEvent::ShutdownRequested => MachineEvent::GuestShutdown,
            DeviceEvent::Fenced { .. } => MachineEvent::Fenced,
            DeviceEvent::Failed { device, reason } => MachineEvent::Failure(format!("{device}: {reason}")),
            other => MachineEvent::Failure(format!("a device says {other:?}")),
        });
    }
}

/// What a vCPU thread needs.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    pub(crate) number: u32,
    /// Locked while the guest runs; free for whoever saves the vCPU while it does not.
    pub(crate) vcpu: Arc<Mutex<Vcpu>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) buses: Arc<Buses>,
    pub(crate) ender: Arc<Ender>,
}

impl VcpuThread {
    /// Starts the thread; it waits at the gate.
    pub(crate) fn spawn(self) -> io::Result<thread::JoinHandle<()>> {
        let builder = thread::Builder::new().name(format!("vcpu{}", self.number));
        spawn(Role::Vcpu, builder, move || self.main())
    }

    fn main(self) {
        while let Some(pass) = self.gate.enter() {
            // A panic is a bug of ours; the guest stands still then, and the owner must hear of it.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.run_guest()));
            let end = match outcome {
                Ok(Ok(Stop::WantedOut)) => None,
                Ok(Ok(Stop::Ended(event))) => Some(event),
                Ok(Err(error)) => Some(MachineEvent::Failure(self.describe(&with_causes(&error)))),
                Err(panic) => Some(MachineEvent::Failure(self.describe(&panic_message(panic.as_ref())))),
            };
            // Before the pass is given up: whoever waits for this thread to be out then knows why it is.
            if let Some(event) = end {
                self.ender.end(event);
            }
            drop(pass);
        }
    }

    fn describe(&self, what: &str) -> String {
        format!("vCPU {}: {what}", self.number)
    }

    fn run_guest(&self) -> Result<Stop, HypervisorError> {
        // A panic while the lock was held has ended the machine; the vCPU itself is a handle and still one.
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vcpu = vcpu.bind()?;
        loop {
            match vcpu.run()? {
                Exit::PortRead { port, width, data } => {
                    data.chunks_exact_mut(width).for_each(|value| self.buses.ports.read(Port(port), value));
                }
                Exit::PortWrite { port, width, data } => {
                    data.chunks_exact(width).for_each(|value| self.buses.ports.write(Port(port), value));
                }
                Exit::MmioRead { address, data } => self.buses.mmio.read(address, data),
                Exit::MmioWrite { address, data } => self.buses.mmio.write(address, data),
                // Only here: every access reported before is complete, so the vCPU can be saved.
                Exit::Interrupted if self.gate.wants_out() => return Ok(Stop::WantedOut),
                Exit::Interrupted => {}
                Exit::TripleFault => return Ok(self.fault("triple fault")),
                Exit::SystemEvent(SystemEvent::Shutdown) => {
                    return Ok(Stop::Ended(MachineEvent::GuestShutdown));
                }
                Exit::SystemEvent(SystemEvent::Reset) => {
                    self.ender.reset();
                    return Ok(Stop::WantedOut);
                }
                Exit::SystemEvent(SystemEvent::Crash) => {
                    return Ok(self.fault("the guest says it has crashed"));
                }
                Exit::Fault(fault) => return Ok(self.fault(&fault.to_string())),
                other => return Ok(self.fault(&format!("unexpected exit: {other:?}"))),
            }
        }
    }

    fn fault(&self, what: &str) -> Stop {
        Stop::Ended(MachineEvent::Fault(self.describe(what)))
    }
}

/// Why a thread came out of the guest.
enum Stop {
    WantedOut,
    Ended(MachineEvent),
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}

pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
