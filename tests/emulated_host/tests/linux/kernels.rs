//! Debian's kernels boot from a virtio disk over PCI, and the disk proves it.

use std::{fs, path::Path, sync::Arc, time::Duration};

use drover_test_emulated_host::{
    EmulatedHost,
    debian::{Kernel, Series},
    ext4,
    guest::{self, DONE, NO_ROOT, Nonce},
};
use drover_test_prerequisites::{emulated_host, skipped};
use drover_wire::vm::v1 as wire;

use crate::{
    hosts::{self, Given, Progress},
    vmmd::{Guest, Vmmd},
};

/// For a guest to boot and end: 5 s here when nothing else runs.
const GUEST_DEADLINE: Duration = Duration::from_secs(240);
/// The form in which a kernel is handed to the VMM, the processors, and how the guest ends.
type Way = (&'static str, u32, &'static str);
/// The ways in which each kernel is booted. The short form takes of each kernel the half that the other does not: every
/// form, number of processors and end has its turn with either kernel.
const WAYS: [[Way; 2]; 2] = [
    [("vmlinux", 1, "poweroff"), ("bzimage", 2, "reboot")],
    [("vmlinux", 2, "reboot"), ("bzimage", 1, "poweroff")],
];
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
    /// Runs it to its end, which it has to reach by itself; what it said.
    async fn run(&self, host: &Arc<EmulatedHost>, with_disk: bool) -> anyhow::Result<String> {
        let Self { kernel, form, cpus, end, root, .. } = self;
        let version = &kernel.version;
        let disk = with_disk.then(|| (format!("/disk/{root}"), false));
        let guest = Guest {
            vcpus: *cpus,
            memory_mib: 192,
            kernel: format!("/disk/{version}.{form}"),
            initrd: format!("/disk/{version}.initramfs"),
            cmdline: format!("console=ttyS0 quiet panic=-1 end={end}"),
            disks: disk.into_iter().collect(),
            reset_ends: true,
            ..Guest::default()
        };
        let mut vmmd = Vmmd::spawn(host, &format!("{root}.{with_disk}")).await?;
        vmmd.boot(&guest).await?;
        let last = if with_disk { DONE } else { NO_ROOT };
        let said = vmmd.wait_for(last, GUEST_DEADLINE).await?;
        let info = vmmd.ends(GUEST_DEADLINE).await?;
        anyhow::ensure!(info.stop_reason() == wire::StopReason::GuestShutdown, "{info:?}");
        Ok(said)
    }
}

/// Puts a kernel into the folder that becomes the host's disk, and a root disk for each case.
fn prepare(disk: &Path, series: Series, ways: &[Way]) -> anyhow::Result<Vec<Case>> {
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
    ways.iter()
        .map(|&(form, cpus, end)| {
            let (root, nonce) = (format!("{version}-{form}-{cpus}.img"), Nonce::random());
            guest::make_root(&disk.join(&root), &nonce, None)?;
            Ok(Case { kernel: kernel.clone(), form, cpus, end, root, nonce })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_kernels_boot_from_a_virtio_disk_and_end_as_asked() -> anyhow::Result<()> {
    if !emulated_host() {
        return Ok(());
    }
    let progress = Progress::begin();
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::create_dir(&disk)?;
    let [first, second] =
        if crate::wants_long() { [WAYS.as_flattened(); 2] } else { WAYS.each_ref().map(|half| &half[..]) };
    let mut cases = prepare(&disk, Series::Bookworm, first)?;
    cases.extend(prepare(&disk, Series::V6_12, second)?);
    if cases.is_empty() {
        return Ok(());
    }
    progress.say("kernels and disks made");
    let host = Arc::new(hosts::start(Given {
        disk: Given::folder(&disk, HOST_DISK_BYTES),
        memory_mib: 1024,
        ..Given::default()
    })?);
    progress.say("the host is up");
    for case in &cases {
        let said = case.run(&host, true).await?;
        progress.say(&format!("{} {} {}: {}", case.form, case.cpus, case.end, said.trim()));
        case.nonce.check_said(&said, &case.kernel, case.cpus)?;
    }
    // The proof must be able to fail: without its disk, and with a nonce that is another's.
    let first = &cases[0];
    let said = first.run(&host, false).await?;
    progress.say(&format!("without a disk: {}", said.trim()));
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
