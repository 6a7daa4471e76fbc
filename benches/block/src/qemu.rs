//! QEMU's microvm: an iothread of its own for the disk, the same storage in the same way, virtio-mmio as ours.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use drover_bench_vmms::Ended;
use drover_probe_record::bench::Wait;
use drover_test_prerequisites::{is_installed, probe_image};

use crate::{
    Contender,
    case::Case,
    figures::Figures,
    guest::{self, MEMORY_MIB, VCPUS},
    target::Target,
};

const PROGRAM: &str = "qemu-system-x86_64";

pub(crate) struct Qemu<'a> {
    target: &'a Target,
    wait: Option<Wait>,
}

impl<'a> Qemu<'a> {
    /// QEMU, where it is here with the driver that the target takes.
    pub(crate) fn find(target: &'a Target, wait: Option<Wait>) -> anyhow::Result<Self> {
        ensure!(is_installed(PROGRAM), "{PROGRAM} is not installed (package qemu-system-x86)");
        if let Target::File(_) = target {
            return Ok(Self { target, wait });
        }
        // The driver is a module that QEMU loads when it is named; qemu-img would name it, but need not be here.
        let modules = ["/usr/lib/x86_64-linux-gnu/qemu/block-rbd.so", "/usr/lib64/qemu/block-rbd.so"];
        let module = modules.iter().any(|path| std::path::Path::new(path).exists());
        ensure!(module, "its rbd driver is not installed (package qemu-block-extra)");
        Ok(Self { target, wait })
    }
}

impl Contender for Qemu<'_> {
    fn name(&self) -> &str {
        "qemu"
    }

    fn run(&self, case: &Case, length: Duration) -> anyhow::Result<Figures> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("console");
        let device = format!("virtio-blk-device,drive=disk,iothread=io,num-queues={}", case.queues);
        let errors = std::fs::File::create(folder.path().join("errors"))?;
        let child = Command::new(PROGRAM)
            .args(["-name", "bench,debug-threads=on", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args([
                "-M",
                "microvm,acpi=off,ioapic2=off,rtc=off",
                "-accel",
                "kvm",
                "-cpu",
                "host,-arch-capabilities",
            ])
            .args(["-smp", &VCPUS.to_string(), "-m", &MEMORY_MIB.to_string(), "-display", "none"])
            .args(["-serial", &format!("file:{}", log.display())])
            .args(["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io"])
            .args(["-drive", &self.target.qemu_drive(), "-device", &device])
            .arg("-kernel")
            .arg(probe_image())
            .args(["-append", &guest::command_line(case, length, self.wait)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}"))?;
        let mut child = Ended(child);
        let pid = child.pid();
        let figures = guest::measure(&log, pid, length, || child.is_alive())
            .with_context(|| std::fs::read_to_string(folder.path().join("errors")).unwrap_or_default())?;
        child.wait("QEMU")?;
        Ok(figures)
    }
}
