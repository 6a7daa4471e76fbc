//! Boots a guest in this process: `boot KERNEL CMDLINE [INITRD [DISK...]]`. Its console is our input and output.

use std::{env, error::Error, io, io::Read as _, path::PathBuf, thread, time::Duration};

use drover_machine::{
    Bytes, ConsoleWriter, DeviceBus, Disk, EventSink, Hypervisor, Initrd, KernelImage, MachineConfig,
    Ownership, Planned, VcpuCount,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(kernel), Some(cmdline)) = (arguments.next(), arguments.next()) else {
        return Err("usage: boot KERNEL CMDLINE [INITRD [DISK...]]".into());
    };
    let mut files = arguments.map(PathBuf::from);
    let kernel = KernelImage::open(kernel.as_ref())?;
    let initrd = files.next().map(|path| Initrd::open(&path)).transpose()?;
    let disks = files.map(|path| Disk::open(&path)).collect::<Result<Vec<_>, _>>()?;
    // What it is to be, with its devices where stock kernels look for them.
    let mut config = MachineConfig::new(VcpuCount::new(2), Bytes::mib(256));
    (config.cmdline, config.bus) = (cmdline, DeviceBus::VirtioPci);
    // Step by step to a machine that is held back by `paused`, until it is resumed.
    let (events, ended) = EventSink::pair();
    let (machine, paused) = Planned::new(config)?
        .allocate_memory()?
        .open_volumes(disks, Ownership::standalone())?
        .attach_devices(&Hypervisor::open()?, Box::new(ConsoleWriter(io::stdout())), events)?
        .boot_with(&kernel, initrd.as_ref())?;
    let panel = machine.panel();
    thread::spawn(move || {
        io::stdin().lock().bytes().map_while(Result::ok).for_each(|byte| _ = panel.console_input(&[byte]));
    });
    paused.resume()?;
    eprintln!("ended: {}", ended.recv()?);
    Ok(machine.stop(Duration::from_secs(5))?)
}
