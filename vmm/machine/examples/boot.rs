//! Boots a guest inside this process: `boot KERNEL CMDLINE [INITRD [DISK...]]`.
//!
//! Its console is our output, our input its keyboard; it ends when the guest switches itself off. `VCPUS`, `MEMORY_MIB` and
//! `CPU` (a baseline, `x86-64-v2`) say what it has; a reset starts it anew.
#![allow(clippy::print_stderr, reason = "an example talks to its user")]

use std::{env, error::Error, io::Read as _, io::Write as _, sync::Arc, sync::mpsc, thread, time::Duration};

use drover_block::{Access, FileBackend, Owner};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_machine::{
    ConsoleSink, DeviceBus, Disk, EventSink, Hypervisor, Initrd, KernelImage, MachineConfig, Ownership,
    Planned,
};
use drover_units::{Bytes, VcpuCount};

/// The guest's serial port writes to our output.
#[derive(Debug)]
struct Output;

impl ConsoleSink for Output {
    fn write(&mut self, bytes: &[u8]) {
        let mut output = std::io::stdout();
        // Nobody reads it: then it is lost, as on a line that is not plugged in.
        let _ = output.write_all(bytes).and_then(|()| output.flush());
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T, T::Err> {
    env::var(name).map_or(Ok(default), |text| text.parse())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, cmdline, files @ ..] = &arguments[..] else {
        return Err("usage: boot KERNEL CMDLINE [INITRD [DISK...]]".into());
    };
    // What it is to be.
    let mut config =
        MachineConfig::new(VcpuCount::new(setting("VCPUS", 1)?), Bytes::mib(setting("MEMORY_MIB", 256)?));
    (config.cmdline, config.bus) = (cmdline.clone(), DeviceBus::VirtioPci);
    config.cpu = setting("CPU", config.cpu)?;
    let kernel = KernelImage::open(kernel.as_ref())?;
    let initrd = files.first().map(|path| Initrd::open(path.as_ref())).transpose()?;
    // Its disks, which are ours for as long as it runs.
    let mut disks = Vec::new();
    for path in files.iter().skip(1) {
        let backend = Arc::new(FileBackend::open(path, Access::ReadWrite)?);
        disks.push(Disk { id: format!("disk{}", disks.len()), backend, queues: 1 });
    }
    let (vm, node) = (VmId::from_u128(1), NodeId::from_u128(1));
    let owner = Owner { vm, node, epoch: OwnerEpoch::new(1), pid: std::process::id() };
    // Step by step to a machine that is held back by `paused`, until it is resumed.
    let (sender, events) = mpsc::channel();
    let (machine, paused) = Planned::new(config)?
        .allocate_memory()?
        .open_volumes(disks, Ownership::Take(owner))?
        .attach_devices(&Hypervisor::open()?, Box::new(Output), EventSink::channel(sender))?
        .boot_with(&kernel, initrd.as_ref())?;
    let panel = machine.panel();
    thread::spawn(move || {
        std::io::stdin().lock().bytes().map_while(Result::ok).for_each(|b| _ = panel.console_input(&[b]))
    });
    paused.resume()?;
    eprintln!("ended: {}", events.recv()?);
    Ok(machine.stop(Duration::from_secs(5))?)
}
