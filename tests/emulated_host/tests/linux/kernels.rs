//! Debian's kernels boot from a virtio disk over PCI, and the disk proves it.

use std::{fs, path::Path, time::Duration};

use drover_test_emulated_host::{
    EmulatedHost,
    debian::{Kernel, Series},
    ext4,
    guest::{self, NO_ROOT, Nonce},
};
use drover_test_prerequisites::{emulated_host, skipped};

use crate::hosts::{self, Given, Progress};

/// For a guest to boot and end: 5 s here when nothing else runs.
const GUEST_DEADLINE: Duration = Duration::from_secs(240);
/// The forms in which a kernel is handed to the VMM, the processors, and how the guest ends.
const CASES: [(&str, u32, &str); 2] = [("vmlinux", 1, "poweroff"), ("vmlinux", 2, "poweroff")];
/// Two kernels in two forms, their initramfs, and a root disk per case.
const HOST_DISK_BYTES: u64 = 1 << 30;

/// A guest that is to run, and the nonce that it alone can know.
struct Case {
    kernel: Kernel,
    form: &'static str,
    cpus: u32,
    end: &'static str,
    /// Name of its root disk.
    root: String,
    nonce: Nonce,
}

impl Case {
    /// Runs it to its end; what it said, and what the VMM said of its end.
    fn run(&self, host: &EmulatedHost, with_disk: bool) -> anyhow::Result<String> {
        let Self { kernel, form, cpus, end, root, .. } = self;
        let version = &kernel.version;
        let root = if with_disk { root.as_str() } else { "" };
        let line = format!(
            "cd /disk; VCPUS={cpus} /programs/boot {version}.{form} 'console=ttyS0 quiet panic=-1 end={end}' \
             {version}.initramfs {root} 2>&1"
        );
        host.shell(&line, GUEST_DEADLINE)
    }
}

/// Puts a kernel into the folder that becomes the host's disk, and a root disk for each case.
fn prepare(disk: &Path, series: Series) -> anyhow::Result<Vec<Case>> {
    let kernel = match Kernel::newest(series) {
        Ok(kernel) => kernel,
        Err(error) => {
            skipped(&format!("no kernel of the series {series:?} can be had: {error:#}"));
            return Ok(Vec::new());
        }
    };
    let version = &kernel.version;
    fs::copy(&kernel.vmlinux, disk.join(format!("{version}.vmlinux")))?;
    fs::copy(&kernel.bzimage, disk.join(format!("{version}.bzimage")))?;
    fs::write(disk.join(format!("{version}.initramfs")), guest::initramfs(&kernel)?)?;
    CASES
        .into_iter()
        .map(|(form, cpus, end)| {
            let (root, nonce) = (format!("{version}-{form}-{cpus}.img"), Nonce::random());
            guest::make_root(&disk.join(&root), &nonce, None)?;
            Ok(Case { kernel: kernel.clone(), form, cpus, end, root, nonce })
        })
        .collect()
}

#[test]
fn debian_kernels_boot_from_a_virtio_disk_and_end_as_asked() -> anyhow::Result<()> {
    if !emulated_host() {
        return Ok(());
    }
    let progress = Progress::begin();
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::create_dir(&disk)?;
    let mut cases = prepare(&disk, Series::Bookworm)?;
    cases.extend(prepare(&disk, Series::V6_12)?);
    if cases.is_empty() {
        return Ok(());
    }
    progress.say("kernels and disks made");
    let mut host =
        hosts::start(Given { disk: &disk, disk_bytes: HOST_DISK_BYTES, memory_mib: 1024, link: None })?;
    progress.say("the host is up");
    for case in &cases {
        let said = case.run(&host, true)?;
        progress.say(said.trim());
        case.nonce.check_said(&said, &case.kernel, case.cpus)?;
        anyhow::ensure!(said.contains("ended: the guest"), "the guest did not end itself:\n{said}");
    }
    // The proof must be able to fail: without its disk, and with a nonce that is another's.
    let first = &cases[0];
    let said = first.run(&host, false)?;
    progress.say(said.trim());
    anyhow::ensure!(said.contains(NO_ROOT), "a guest without a disk found one:\n{said}");
    assert!(first.nonce.check_said(&said, &first.kernel, first.cpus).is_err(), "proven without a disk");

    let image = host.power_off()?;
    for case in &cases {
        let root = folder.path().join("root.img");
        fs::write(&root, ext4::read(&image, &format!("/{}", case.root))?)?;
        case.nonce.check_written(&root)?;
        assert!(Nonce::random().check_written(&root).is_err(), "any nonce would do");
    }
    progress.say("all is on the disks");
    Ok(())
}
