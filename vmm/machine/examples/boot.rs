//! Boots a guest in this process: `boot KERNEL CMDLINE [INITRD [DISK...]]`. Its console is our output, its end is ours.
#![allow(clippy::print_stderr, reason = "an example talks to its user")]

use std::{env, error::Error, io::Write as _, path::Path, sync::Arc, sync::mpsc, time::Duration};

use drover_block::{Access, FileBackend, Owner};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_machine::{
    ConsoleSink, DeviceBus, Disk, EventSink, Hypervisor, Initrd, KernelImage, MachineConfig, Ownership,
    Planned,
};
use drover_units::{Bytes, VcpuCount};

#[derive(Debug)]
struct Output;

impl ConsoleSink for Output {
    fn write(&mut self, bytes: &[u8]) {
        let mut output = std::io::stdout();
        output.write_all(bytes).and_then(|()| output.flush()).expect("somebody reads our output");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, cmdline, files @ ..] = &arguments[..] else {
        return Err("usage: boot KERNEL CMDLINE [INITRD [DISK...]]".into());
    };
    let vcpus = VcpuCount::new(env::var("VCPUS").map_or(Ok(1), |count| count.parse())?);
    let config =
        MachineConfig { vcpus, memory: Bytes::mib(256), cmdline: cmdline.clone(), bus: DeviceBus::VirtioPci };
    let open = |path: &String| {
        let backend = FileBackend::open(Path::new(path), Access::ReadWrite)?;
        Ok(Disk { id: "example".to_owned(), backend: Arc::new(backend), queues: 1 })
    };
    let disks = files.iter().skip(1).map(open).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let (vm, node) = (VmId::from_u128(1), NodeId::from_u128(1));
    let owner = Owner { vm, node, epoch: OwnerEpoch::new(1), pid: std::process::id() };
    let (sender, events) = mpsc::channel();
    let mut initrd = files.first().map(|path| Initrd::open(path.as_ref())).transpose()?;
    let (machine, paused) = Planned::new(config)?
        .allocate_memory()?
        .open_volumes(disks, Ownership::Take(owner))?
        .attach_devices(&Hypervisor::open()?, Box::new(Output), EventSink::channel(sender))?
        .boot_with(&mut KernelImage::open(kernel.as_ref())?, initrd.as_mut())?;
    paused.resume()?;
    let event = events.recv()?;
    eprintln!("ended: {event}");
    Ok(machine.stop(Duration::from_secs(5))?)
}
