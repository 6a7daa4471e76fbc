//! A small Linux guest: an unmodified Debian kernel, an initramfs that only finds the root disk, and a root disk with
//! busybox and a nonce.
//!
//! The guest prints the nonce that it finds on its disk, and writes its transform back. A test that sees both has seen the
//! kernel run, its virtio-blk driver read this very disk, and its writes reach the image: nothing else knows the nonce.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, ensure};

use crate::{archive::Archive, debian, debian::Kernel, ext4, initramfs::VIRTIO_MODULES};

/// Size of a root disk.
pub const ROOT_BYTES: u64 = 32 << 20;
/// Said by the initramfs when there is no root disk.
pub const NO_ROOT: &str = "GUEST-NO-ROOT";
/// Said when the guest has done everything but end.
pub const DONE: &str = "GUEST-DONE";

/// Loads the modules, waits for the disk, and goes over to it. Without a disk it says so and powers off.
const INITRAMFS_INIT: &str = r#"#!/bin/sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev
for module in $($B cat /modules/order); do $B insmod /modules/$module.ko; done
i=0; while [ ! -b /dev/vda ] && [ $i -lt 50 ]; do $B sleep 0.1; i=$((i+1)); done
$B mount -o ro -t ext4 /dev/vda /root && $B mount --move /dev /root/dev && exec $B switch_root /root /sbin/init
echo GUEST-NO-ROOT
$B poweroff -f
"#;

/// Says what the test wants to know, writes to the disk unless that is read-only, and ends the way that the kernel's command line asks for.
const ROOT_INIT: &str = r#"#!/bin/sh
B=/bin/busybox; $B mount -t tmpfs tmpfs /tmp; $B mkdir /tmp/bin; $B --install -s /tmp/bin; export PATH=/tmp/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys
grep -qw ro /proc/cmdline || mount -o remount,rw /
root=$(awk '$2 == "/" && $1 != "rootfs" { print $1, $3 }' /proc/mounts)
echo "GUEST-UP kernel=$(uname -r) cpus=$(grep -c ^processor /proc/cpuinfo) nonce=$(cat /nonce) root=$root uptime=$(cut -d' ' -f1 /proc/uptime)"
grep -qw ro /proc/cmdline || tr a-z0-9 n-za-m5-90-4 < /nonce > /written
[ -e /exercise ] && sh /exercise
sync; mount -o remount,ro /; echo GUEST-DONE
grep -q end=reboot /proc/cmdline && reboot -f
poweroff -f
"#;

/// The initramfs that goes with `kernel`.
///
/// # Errors
/// If its parts cannot be had.
pub fn initramfs(kernel: &Kernel) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "root"] {
        archive.folder(folder);
    }
    archive.copy("bin/busybox", &debian::busybox()?)?.link("bin/sh", "busybox");
    archive.file("init", 0o755, INITRAMFS_INIT.as_bytes());
    let mut order = String::new();
    for (name, module) in kernel.modules(&VIRTIO_MODULES)? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &module);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// A nonce on a root disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(String);

impl Nonce {
    /// It, as it lies on a disk.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One that nobody has seen before.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// What the guest writes back: other letters and other digits.
    pub fn transformed(&self) -> String {
        let transform = |c: char| match c {
            'a'..='m' => char::from(c as u8 + 13),
            'n'..='z' => char::from(c as u8 - 13),
            '0'..='4' => char::from(c as u8 + 5),
            '5'..='9' => char::from(c as u8 - 5),
            other => other,
        };
        self.0.chars().map(transform).collect()
    }

    /// Checks that a guest printed this nonce, read by `kernel` from a virtio disk with `cpus` processors, and got to its
    /// end.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_said(&self, said: &str, kernel: &Kernel, cpus: u32) -> anyhow::Result<()> {
        let line = said.lines().find(|line| line.contains("GUEST-UP ")).context("the guest never came up")?;
        let expect =
            format!("GUEST-UP kernel={} cpus={cpus} nonce={} root=/dev/vda ext4 ", kernel.version, self.0);
        ensure!(line.contains(&expect), "the guest said\n{line}\nand should have said\n{expect}");
        ensure!(said.contains(DONE), "the guest did not get to its end");
        Ok(())
    }

    /// Checks that the guest's answer is on the disk, and the disk's file system is whole.
    ///
    /// # Errors
    /// What is on it instead.
    pub fn check_written(&self, image: &Path) -> anyhow::Result<()> {
        let written = ext4::read(image, "/written").context("the guest has written nothing")?;
        let written = String::from_utf8_lossy(&written);
        ensure!(written.trim() == self.transformed(), "the guest wrote '{}'", written.trim());
        ext4::check(image)
    }
}

/// Makes a root disk with a nonce in a new file, and a script that the guest runs, if there is one to run.
///
/// # Errors
/// If it cannot be made.
pub fn make_root(image: &Path, nonce: &Nonce, exercise: Option<&str>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    for name in ["bin", "sbin", "dev", "proc", "sys", "tmp", "root"] {
        fs::create_dir(root.join(name))?;
    }
    fs::copy(debian::busybox()?, root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh"))?;
    fs::write(root.join("sbin/init"), ROOT_INIT)?;
    fs::set_permissions(root.join("sbin/init"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(root.join("nonce"), format!("{}\n", nonce.0))?;
    if let Some(script) = exercise {
        fs::write(root.join("exercise"), script)?;
    }
    ext4::make(image, root, ROOT_BYTES)
}
