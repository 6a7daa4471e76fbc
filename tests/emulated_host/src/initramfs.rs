//! The emulated host's first and only root file system.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{
    archive::Archive, command::output_of, debian, debian::Kernel, door::TOKEN_PATH,
    shared_libraries::shared_libraries,
};

/// What a host needs, in the order of their dependencies; a kernel that has one built in has no module of that name.
const MODULES: [&str; 8] = ["irqbypass", "ccp", "kvm", "kvm-amd", "tun", "llc", "stp", "bridge"];
/// Virtio over PCI, disk and network, likewise.
pub(crate) const VIRTIO_MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Leaves the first root, which nobody can pivot away from (pivot_root(2)), for the same files under another mount.
const FIRST_INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
$B mount --bind / /root; cd /root; $B mount --move . /
exec $B chroot . /host.init
"#;

/// Loads modules, opens the disk and the door, and ends with it. The disk is where programs put what they write. Guests'
/// memory is shared memory: in huge pages a guest runs much faster, for each of its pages is translated twice.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin:/programs
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
echo always > /sys/kernel/mm/transparent_hugepage/shmem_enabled
mount -t tmpfs tmpfs /dev/shm; mount -t cgroup2 cgroup /sys/fs/cgroup
for module in $(cat /modules/order); do insmod /modules/$module.ko 2>/dev/null; done
mount -t ext4 /dev/vda /disk
ip link set lo up
ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0
[ -e /sys/class/net/eth1 ] && ip link set eth1 up && ip address add $(cat /link.address)/24 dev eth1
echo "HOST-READY $(uname -r) $(ls /dev/kvm)"
/programs/drover-emulated-host-door
sync; umount /disk; poweroff -f
"#;

/// Builds it: busybox, modules, the door, `programs` under `/programs`, and the shared libraries of all of these and of
/// `libraries`.
pub(crate) fn build(
    kernel: &Kernel,
    (programs, libraries): (&[(&str, &Path)], &[PathBuf]),
    token: &str,
    link_address: Option<&str>,
) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "disk", "lib", "lib64", "modules", "proc", "programs", "root", "sys", "etc"]
    {
        archive.folder(folder);
    }
    archive.copy("bin/busybox", &debian::busybox()?)?.link("bin/sh", "busybox");
    archive.file("init", 0o755, FIRST_INIT.as_bytes()).file("host.init", 0o755, INIT.as_bytes());
    archive.file(&TOKEN_PATH[1..], 0o600, token.as_bytes());
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    archive.file("link.address", 0o644, link_address.unwrap_or_default().as_bytes());
    let mut order = String::new();
    for (name, module) in kernel.modules(&[&MODULES[..], &VIRTIO_MODULES].concat())? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &module);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    let mut found = BTreeMap::new();
    let mut find = |path: &Path| -> anyhow::Result<()> {
        let name = path.file_name().context("a library has a name")?.to_string_lossy().into_owned();
        found.insert(name, path.to_owned());
        Ok(())
    };
    for library in libraries {
        find(library)?;
        shared_libraries(library)?.iter().try_for_each(|path| find(path))?;
    }
    for (name, program) in programs {
        archive.file(&format!("programs/{name}"), 0o755, &stripped(program)?);
        shared_libraries(program)?.iter().try_for_each(|path| find(path))?;
    }
    for (name, library) in &found {
        // The loader is named by its full path in each program; it finds the others in /lib.
        let folder = if name.starts_with("ld-linux") { "lib64" } else { "lib" };
        archive.copy(&format!("{folder}/{name}"), library)?;
    }
    Ok(archive.finish())
}

/// A program without its debug information, of which there is ten times as much. Whole where nothing can strip it.
fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let without = tempfile::NamedTempFile::new()?;
    let mut strip = Command::new("strip");
    match output_of(strip.arg("-o").args([without.path(), program])) {
        Ok(_) => Ok(fs::read(without.path())?),
        Err(_) => fs::read(program).with_context(|| format!("cannot read {}", program.display())),
    }
}
