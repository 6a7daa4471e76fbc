//! The VM's virtio devices beside its disks: from its configuration to what the machine is given, and what is kept of them.

use std::{
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, OnceLock},
};

use drover_guest_memory::RamLayout;
use drover_machine::{
    ConsoleSink, DeviceBus, NewDevice,
    devices::{
        Balloon, BalloonConfig, ConsoleConfig, ConsolePort, ConsoleSize, NetConfig, NetMetrics, NetPort,
        RngConfig, Throttle, VirtioBalloon, VirtioConsole, VirtioKind, VirtioNet, VirtioRng, VirtioVsock,
        VsockConfig,
    },
};

use crate::{
    console::GuestOutput,
    files::Files,
    hosted::NicInstrument,
    order::{NicConfig, VmConfig},
    refused::{Refused, chain},
};

/// The host's sides of devices, there once the machine has been assembled. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handles {
    balloon: Arc<OnceLock<Balloon>>,
    console: Arc<OnceLock<ConsolePort>>,
}

impl Handles {
    /// The balloon, where the VM has one.
    pub(crate) fn balloon(&self) -> Option<Balloon> {
        self.balloon.get().cloned()
    }

    /// The console beside the serial port, where the VM has one.
    pub(crate) fn console(&self) -> Option<&ConsolePort> {
        self.console.get()
    }
}

/// Every device that the configuration asks for, in an order that depends on nothing else: the slots of those without a
/// wish follow from it. One line per kind; what a kind needs from the host is opened where its line points.
pub(crate) fn from_config(
    config: &VmConfig,
    handles: &Handles,
    (output, files): (GuestOutput, &Files),
) -> Result<(Vec<NewDevice>, Vec<NicInstrument>), Refused> {
    let devices = &config.devices;
    let mut wanted = Vec::new();
    let mut instruments = Vec::new();
    for (n, nic) in config.nics.iter().enumerate() {
        let (device, instrument) = interface(&format!("config.nics[{n}]"), nic, files)?;
        let is_pci = config.platform.bus == DeviceBus::VirtioPci;
        wanted.push(if is_pci { device.in_slot(nic.pci_slot()) } else { device });
        instruments.push(instrument);
    }
    if devices.rng {
        wanted.push(rng());
    }
    if devices.console {
        wanted.push(console(Arc::clone(&handles.console), output));
    }
    if let Some(balloon) = devices.balloon {
        let ram = RamLayout::for_size(config.memory).map_err(|error| Refused::Failed(error.to_string()))?;
        wanted.push(self::balloon(Arc::clone(&handles.balloon), ram, balloon.deflate_on_oom));
    }
    if let Some(vsock) = &devices.vsock {
        let listener = files.local_listener(&vsock.path).map_err(|error| {
            let path = vsock.path.display();
            Refused::Precondition(format!(
                "config.devices.vsock.socket_path: cannot listen on {path}: {error}"
            ))
        })?;
        wanted.push(self::vsock(vsock.cid, listener, &vsock.path));
    }
    Ok((wanted, instruments))
}

/// Opens the interface's tap. The MAC address is what the guest knows it by, wherever it moves.
pub(crate) fn interface(
    field: &str,
    nic: &NicConfig,
    files: &Files,
) -> Result<(NewDevice, NicInstrument), Refused> {
    let refused =
        |error: &dyn std::error::Error| Refused::Precondition(format!("{field}.tap: {}", chain(error)));
    let taps = files.tap(&nic.tap, nic.pairs).map_err(|error| refused(&error))?;
    let offloads = match taps.first() {
        Some(tap) => tap.probe_offloads().map_err(|error| refused(&error))?,
        None => return Err(Refused::Failed("an interface has at least one pair of queues".to_owned())),
    };
    let metrics = Arc::<NetMetrics>::default();
    let throttle = Arc::<Throttle>::default();
    throttle.set_limits(nic.limits);
    let instrument = NicInstrument {
        mac: nic.mac,
        slot: nic.pci_slot(),
        metrics: Arc::clone(&metrics),
        throttle: Arc::clone(&throttle),
    };
    let (mac, mtu) = (nic.mac, nic.mtu);
    let device = NewDevice::new(VirtioKind::Net, move |context| {
        let ports = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn NetPort>).collect();
        let (name, events) = (context.name, context.events);
        let config = NetConfig { name, mac, mtu, ports, offloads, metrics, throttle, events };
        VirtioNet::new(config).map_err(Into::into)
    });
    Ok((device.with_identity(mac.to_string()), instrument))
}

fn rng() -> NewDevice {
    NewDevice::new(VirtioKind::Rng, |context| {
        Ok(VirtioRng::new(RngConfig { name: context.name, events: context.events }))
    })
}

fn console(handle: Arc<OnceLock<ConsolePort>>, output: GuestOutput) -> NewDevice {
    NewDevice::new(VirtioKind::Console, move |context| {
        let sink: Box<dyn ConsoleSink> = Box::new(output);
        let size = ConsoleSize::default();
        let config = ConsoleConfig { name: context.name, sink, size, events: context.events };
        let console = VirtioConsole::new(config)?;
        let _ = handle.set(console.port());
        Ok(console)
    })
}

fn balloon(handle: Arc<OnceLock<Balloon>>, ram: RamLayout, deflate_on_oom: bool) -> NewDevice {
    NewDevice::new(VirtioKind::Balloon, move |context| {
        let config = BalloonConfig { name: context.name, ram, deflate_on_oom, events: context.events };
        let balloon = VirtioBalloon::new(config)?;
        let _ = handle.set(balloon.balloon());
        Ok(balloon)
    })
}

fn vsock(cid: u64, listener: UnixListener, path: &Path) -> NewDevice {
    let path = path.to_owned();
    NewDevice::new(VirtioKind::Vsock, move |context| {
        let config = VsockConfig { name: context.name, cid, listener, path, events: context.events };
        Ok(VirtioVsock::new(config)?)
    })
    .with_identity(format!("cid {cid}"))
}
