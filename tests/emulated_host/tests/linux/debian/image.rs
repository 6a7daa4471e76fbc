//! The whole Debian of the tests, built once from the recipe in `guest-images/linux`, and the disk of the host that runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::AtomicBool},
};

use drover_image_build::{Built, Order, Recipe, build};
use drover_test_emulated_host::ext4;
use drover_test_prerequisites::{emulated_host, is_installed, skipped, workspace_root};

use crate::long;

/// What the recipe does not have and the tests run in it.
const PACKAGES: [&str; 2] = ["fio", "iperf3"];
/// Size of the guest's root disk: half of it is free.
const ROOT_BYTES: u64 = 1 << 30;
/// Room for it, a copy in a pool, and other disks of tests.
const HOST_DISK_BYTES: u64 = 4 << 30;

/// A root shell on the console, for tests that do not come to log in. It does nothing unless the kernel's command line
/// asks for it ([`SHELL`]). A shell that somebody sits at heeds no SIGTERM, and would hold a shutdown up.
const SHELL_UNIT: &str = "[Unit]\nDescription=A root shell on the console\nAfter=basic.target systemd-networkd.service\n\
[Service]\nExecStart=/bin/sh -c 'echo SHELL-OF-BOOT $$(cat /proc/sys/kernel/random/boot_id); exec sh -s'\n\
Environment=HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin\nWorkingDirectory=/root\n\
StandardInput=tty-force\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\nTTYReset=yes\nSendSIGHUP=yes\n\
UtmpIdentifier=ttyS0\n";
/// What systemd waits for as long as it takes: 90 s are over on a busy machine before a guest has seen its console, and then
/// it never asks anybody to log in.
const PATIENCE: &str = "[Manager]\nDefaultDeviceTimeoutSec=30min\nDefaultTimeoutStartSec=30min\n";
/// Starts it in place of the login prompt and of most services, cloud-init before all. What stays besides systemd itself is
/// what these tests ask for: the network, and who hears the power button.
pub(super) const SHELL: &str = "systemd.unit=basic.target systemd.wants=test-shell.service \
    systemd.wants=systemd-logind.service systemd.wants=systemd-networkd.service cloud-init=disabled";

/// Whether tests with the whole Debian are to run here. Where not, the running one is recorded as skipped.
pub(super) fn wanted() -> bool {
    if !long() || !emulated_host() {
        return false;
    }
    let installed = is_installed("mmdebstrap");
    if !installed {
        skipped("mmdebstrap is not installed: `cargo xtask test --linux`, or the package mmdebstrap");
    }
    installed
}

/// The file system of a host that has the guest's `root.raw`, `vmlinuz` and `initrd` in it. Made once and kept: another
/// recipe is another file.
pub(super) fn host_disk() -> anyhow::Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let recipe = workspace_root().join("guest-images/linux");
    let sizes = format!("{ROOT_BYTES} {HOST_DISK_BYTES}");
    let mut text = [&PACKAGES[..], &[SHELL_UNIT, PATIENCE, &sizes]].concat().concat();
    for name in ["packages", "before-packages.sh", "after-packages.sh", "pack.sh"] {
        text += &fs::read_to_string(recipe.join(name))?;
    }
    // FNV-1a: it only has to tell one recipe from the next.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let cache = workspace_root().join("target/debian");
    let disk = cache.join(format!("guest-{hash:016x}.img"));
    if disk.exists() {
        return Ok(disk);
    }
    fs::create_dir_all(&cache)?;
    let work = tempfile::tempdir_in(&cache)?;
    let output = work.path().join("guest");
    let packages = PACKAGES.map(str::to_owned).to_vec();
    let recipe = Recipe { packages, disk_bytes: ROOT_BYTES, ..Recipe::default() };
    let progress = |step: &str| eprintln!("        {step}");
    let built = build(&Order { recipe, output, progress: &progress, cancelled: &AtomicBool::new(false) })?;
    add_files(&built, work.path())?;
    let made = work.path().join("disk.img");
    ext4::make(&made, &work.path().join("guest"), HOST_DISK_BYTES)?;
    fs::rename(made, &disk)?;
    Ok(disk)
}

fn add_files(built: &Built, folder: &Path) -> anyhow::Result<()> {
    ext4::make_folder(&built.root, "/etc/systemd/system.conf.d")?;
    for (path, content) in [
        ("/etc/systemd/system/test-shell.service", SHELL_UNIT),
        ("/etc/systemd/system.conf.d/patience.conf", PATIENCE),
    ] {
        let file = folder.join("added");
        fs::write(&file, content)?;
        ext4::add(&built.root, &file, path)?;
    }
    Ok(())
}
