//! The other VMMs, each with the smallest machine that it makes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use drover_bench_report::Report;
use drover_test_prerequisites::{is_installed, probe_image};
use serde_json::json;
use tempfile::TempDir;

use crate::{Console, DiskLimit, Ended, Guest};

const QEMU: &str = "qemu-system-x86_64";
/// The names of files in the folder of a run.
const CONSOLE: &str = "console";
const ERRORS: &str = "errors";

/// Where the other VMMs are.
#[derive(Clone, Debug, Args)]
pub struct Peers {
    /// A Cloud Hypervisor to measure too
    #[arg(long, value_name = "PATH")]
    cloud_hypervisor: Option<PathBuf>,
    /// A Firecracker (1.12 or newer: the guest is entered by PVH) to measure too
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
    /// Leave this contender out
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// One of the other VMMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// QEMU's smallest machine.
    QemuMicrovm,
    /// QEMU's default machine.
    QemuPc,
    /// At this path.
    CloudHypervisor(PathBuf),
    /// At this path.
    Firecracker(PathBuf),
}

/// A VMM with its guest.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Ended,
    /// Its guest's serial port.
    pub console: Console,
    folder: TempDir,
}

impl Peers {
    /// Those that are here. The others are named in the report and on standard error.
    #[must_use]
    pub fn find(&self, report: &mut Report) -> Vec<Peer> {
        let qemu = || {
            ensure!(is_installed(QEMU), "{QEMU} is not installed (package qemu-system-x86)");
            Ok(())
        };
        let given = |path: &Option<PathBuf>, option: &str| {
            let path = path.clone().with_context(|| format!("its path is not given ({option} PATH)"))?;
            ensure!(path.is_file(), "there is no {}", path.display());
            // The process is started in a folder of its own.
            Ok(path.canonicalize()?)
        };
        let all = [
            ("qemu-microvm", qemu().map(|()| Peer::QemuMicrovm)),
            ("qemu-pc", qemu().map(|()| Peer::QemuPc)),
            (
                "cloud-hypervisor",
                given(&self.cloud_hypervisor, "--cloud-hypervisor").map(Peer::CloudHypervisor),
            ),
            ("firecracker", given(&self.firecracker, "--firecracker").map(Peer::Firecracker)),
        ];
        let mut found = Vec::new();
        for (name, peer) in all {
            match peer {
                Ok(peer) if self.wants(name) => found.push(peer),
                Ok(_) => report.leave_out(name, "not asked for"),
                Err(why) => {
                    eprintln!("{name} is left out: {why}");
                    report.leave_out(name, &why.to_string());
                }
            }
        }
        found
    }

    /// Whether a contender was not left out by its name.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        !self.without.iter().any(|other| other == name)
    }
}

impl Peer {
    /// As tables name it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::QemuMicrovm => "qemu-microvm",
            Self::QemuPc => "qemu-pc",
            Self::CloudHypervisor(_) => "cloud-hypervisor",
            Self::Firecracker(_) => "firecracker",
        }
    }

    /// Whether the probe, whose disks are on MMIO, finds one here.
    #[must_use]
    pub fn has_mmio_disks(&self) -> bool {
        matches!(self, Self::QemuMicrovm | Self::Firecracker(_))
    }

    /// Makes a folder and the command, so that what is measured begins with [`Prepared::spawn`].
    ///
    /// # Errors
    /// If a file cannot be made.
    pub fn prepare(&self, guest: &Guest) -> anyhow::Result<Prepared> {
        let folder = tempfile::Builder::new().prefix("drover-bench-").tempdir()?;
        let log = folder.path().join(CONSOLE);
        let mut command = match self {
            Self::QemuMicrovm => qemu(guest, &log, "microvm,acpi=off,ioapic2=off,rtc=off"),
            Self::QemuPc => qemu(guest, &log, "pc"),
            Self::CloudHypervisor(path) => cloud_hypervisor(path, guest, &log),
            Self::Firecracker(path) => firecracker(path, guest, folder.path())?,
        };
        command.stdin(Stdio::null()).stderr(File::create(folder.path().join(ERRORS))?);
        match self {
            // Its serial port is its standard output; what it logs goes to a file.
            Self::Firecracker(_) => command.stdout(File::create(&log)?),
            _ => command.stdout(Stdio::null()),
        };
        Ok(Prepared { console: Console::watch(&log)?, command, folder })
    }
}

/// A VMM that is about to be started.
#[derive(Debug)]
pub struct Prepared {
    command: Command,
    console: Console,
    folder: TempDir,
}

impl Prepared {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut self) -> anyhow::Result<Running> {
        let child = self.command.spawn().with_context(|| format!("cannot start {:?}", self.command))?;
        Ok(Running { child: Ended(child), console: self.console, folder: self.folder })
    }
}

impl Running {
    /// What the process has to say about itself.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join(ERRORS)).unwrap_or_default()
    }
}

/// QEMU, without anything that it makes by default.
fn qemu(guest: &Guest, log: &Path, machine: &str) -> Command {
    let mut command = Command::new(QEMU);
    command
        .args(["-name", "bench,debug-threads=on", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-M", machine, "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-display", "none"])
        .args(["-smp", &guest.vcpus.to_string(), "-m", &guest.memory_mib.to_string()])
        .args(["-serial", &format!("file:{}", log.display())])
        .arg("-kernel")
        .arg(probe_image())
        .args(["-append", &guest.cmdline]);
    if let Some(disk) = &guest.disk {
        let drive = format!(
            "driver=raw,file.driver=file,file.filename={},file.aio=io_uring,if=none,id=disk{}",
            disk.display(),
            match guest.limit {
                Some(DiskLimit::Requests(per_second)) => format!(",throttling.iops-total={per_second}"),
                Some(DiskLimit::Bytes(per_second)) => format!(",throttling.bps-total={per_second}"),
                None => String::new(),
            }
        );
        command.args(["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io"]).args([
            "-drive",
            &drive,
            "-device",
            "virtio-blk-device,drive=disk,iothread=io",
        ]);
    }
    command
}

/// Cloud Hypervisor, its API left out.
fn cloud_hypervisor(path: &Path, guest: &Guest, log: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .args([
            "--cpus",
            &format!("boot={}", guest.vcpus),
            "--memory",
            &format!("size={}M", guest.memory_mib),
        ])
        .args(["--serial", &format!("file={}", log.display()), "--console", "off"])
        .arg("--kernel")
        .arg(probe_image())
        .args(["--cmdline", &guest.cmdline]);
    if let Some(disk) = &guest.disk {
        command.args(["--disk", &format!("path={}", disk.display())]);
    }
    command
}

/// Firecracker, its API left out: everything is in a file.
fn firecracker(path: &Path, guest: &Guest, folder: &Path) -> anyhow::Result<Command> {
    let config = folder.join("config.json");
    let text = serde_json::to_string(&firecracker_config(guest))?;
    fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
    let log = folder.join("log");
    // It opens a log that is there.
    File::create(&log)?;
    let mut command = Command::new(path);
    command.arg("--no-api").arg("--config-file").arg(config).arg("--log-path").arg(log);
    command.args(["--level", "Error"]);
    Ok(command)
}

fn firecracker_config(guest: &Guest) -> serde_json::Value {
    // A bucket of what a second may have, filled in a second.
    let bucket = |size: u64| json!({"size": size, "refill_time": 1000});
    let limiter = match guest.limit {
        Some(DiskLimit::Requests(per_second)) => json!({"ops": bucket(per_second)}),
        Some(DiskLimit::Bytes(per_second)) => json!({"bandwidth": bucket(per_second)}),
        None => json!({}),
    };
    let drive = |path: &PathBuf| {
        json!({
            "drive_id": "disk",
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": false,
            "io_engine": "Async",
            "rate_limiter": limiter,
        })
    };
    json!({
        "boot-source": {"kernel_image_path": probe_image(), "boot_args": guest.cmdline},
        "machine-config": {"vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib},
        "drives": guest.disk.iter().map(drive).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        peers: Peers,
    }

    #[test]
    fn who_has_no_path_is_left_out_and_named() {
        let arguments =
            Arguments::parse_from(["bench", "--without", "qemu-pc", "--firecracker", "/dev/null/none"]);
        let mut report = Report::of_this_machine("test");
        let found = arguments.peers.find(&mut report);
        assert!(found.iter().all(|peer| *peer == Peer::QemuMicrovm), "{found:?}");
        let table = report.table();
        for line in
            ["left out: cloud-hypervisor: its path is not given", "left out: firecracker: there is no"]
        {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn firecracker_is_told_of_kernel_machine_and_disk() {
        let guest = Guest {
            vcpus: 2,
            memory_mib: 64,
            cmdline: "probe.seed=1".into(),
            disk: Some("/d.raw".into()),
            limit: Some(DiskLimit::Requests(7)),
        };
        let config = firecracker_config(&guest);
        assert_eq!(config["machine-config"], json!({"vcpu_count": 2, "mem_size_mib": 64}));
        assert_eq!(config["drives"][0]["path_on_host"], "/d.raw");
        assert_eq!(config["drives"][0]["rate_limiter"]["ops"]["size"], 7);
        assert_eq!(config["boot-source"]["boot_args"], "probe.seed=1");
    }
}
