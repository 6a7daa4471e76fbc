//! Disks and interfaces come to a running Linux and go from it, by the kernel's own hot-plug driver.

use std::{fs, path::Path, sync::Arc, time::Duration};

use drover_test_emulated_host::{
    EmulatedHost,
    debian::{Kernel, Series},
    ext4,
    guest::{self, DONE, Nonce},
};
use drover_test_prerequisites::{emulated_host, skipped};
use drover_wire::vm::v1 as wire;

use crate::{
    hosts::{self, Given, Progress},
    long,
    vmmd::{Guest, Vmmd},
};

/// For the guest to say its next line; emulated, and on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
/// For it to let go of a device.
const LET_GO: Duration = Duration::from_secs(120);
const MAC: &str = "52:54:00:00:07:09";
/// Behind the root disk's.
const PLACE: u32 = 2;
const DISK_BYTES: u64 = 8 << 20;
/// Two kernels, their initramfs, and two disks each.
const HOST_DISK_BYTES: u64 = 512 << 20;

/// What the guest does: it looks at what its kernel shows, and is told nothing else. Twice: a place is used again.
const WATCH_DEVICES: &str = r#"
until_true() { until eval "$1"; do sleep 0.2; done; }
disk=/sys/block/vdb; card=/sys/class/net/eth0
for round in 1 2; do
    echo "WAITING $round"
    until_true "[ -e $disk/size ] && [ -b /dev/vdb ]"
    word=$(dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 32)
    echo "DISK $round bytes=$(($(cat $disk/size) * 512)) word=$word"
    echo "$word" | tr a-z0-9 n-za-m5-90-4 | dd of=/dev/vdb bs=512 seek=$round conv=sync,notrunc,fsync 2>/dev/null
    dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
    dd if=/tmp/data of=/dev/vdb bs=64k seek=64 conv=notrunc,fsync 2>/dev/null
    dd if=/dev/vdb bs=64k skip=64 count=16 iflag=direct 2>/dev/null | cmp - /tmp/data && echo "DISK-WHOLE $round"
    until_true "[ -e $card/address ]"
    ip link set eth0 up; ip address add 192.168.7.2/24 dev eth0
    until_true "ping -c 1 -W 5 192.168.7.1 >/dev/null"
    echo "CARD $round $(cat $card/address)"
    until_true "[ ! -e $disk ]"; echo "DISK-GONE $round"
    until_true "[ ! -e $card ]"; echo "CARD-GONE $round"
done
"#;

/// One guest and what is attached to it.
struct Case {
    kernel: Kernel,
    root: Nonce,
    /// On the disk that comes.
    word: Nonce,
}

impl Case {
    fn prepare(folder: &Path, series: Series) -> anyhow::Result<Option<Self>> {
        let kernel = match Kernel::newest(series) {
            Ok(kernel) => kernel,
            Err(error) => {
                skipped(&format!("no kernel of the series {series:?} can be had: {error:#}"));
                return Ok(None);
            }
        };
        let (root, word) = (Nonce::random(), Nonce::random());
        let of = |what: &str| folder.join(format!("{}.{what}", kernel.version));
        fs::copy(&kernel.vmlinux, of("vmlinux"))?;
        fs::write(of("initramfs"), guest::initramfs(&kernel)?)?;
        guest::make_root(&of("root"), &root, Some(WATCH_DEVICES))?;
        let mut disk = word.as_str().as_bytes().to_vec();
        disk.resize(usize::try_from(DISK_BYTES)?, 0);
        fs::write(of("disk"), disk)?;
        Ok(Some(Self { kernel, root, word }))
    }

    fn path(&self, what: &str) -> String {
        format!("/disk/{}.{what}", self.kernel.version)
    }

    async fn run(&self, host: &Arc<EmulatedHost>, progress: &Progress) -> anyhow::Result<()> {
        let guest = Guest {
            vcpus: 2,
            memory_mib: 192,
            kernel: self.path("vmlinux"),
            initrd: self.path("initramfs"),
            cmdline: "console=ttyS0 quiet panic=-1 end=poweroff".to_owned(),
            disks: vec![(self.path("root"), false)],
            reset_ends: true,
            ..Guest::default()
        };
        let mut vmmd = Vmmd::spawn(host, &self.kernel.version).await?;
        vmmd.boot(&guest).await?;
        let mut said = String::new();
        for round in 1..=2 {
            said += &vmmd.wait_for(&format!("WAITING {round}\n"), DEADLINE).await?;
            vmmd.attach_disk(&self.path("disk"), PLACE).await?;
            let expect = format!("DISK {round} bytes={DISK_BYTES} word={}\n", self.word.as_str());
            vmmd.wait_for(&expect, DEADLINE).await?;
            vmmd.wait_for(&format!("DISK-WHOLE {round}\n"), DEADLINE).await?;
            progress.say("the disk that came is the right one, and keeps what is written to it");

            let tap = format!("t{round}");
            let nic = wire::Nic { mac: MAC.into(), tap: tap.clone(), place: 1, ..wire::Nic::default() };
            vmmd.attach_nic(nic).await?;
            let line = format!("ip link set {tap} up && ip address add 192.168.7.1/24 dev {tap}");
            host.shell(&line, DEADLINE)?;
            vmmd.wait_for(&format!("CARD {round} {MAC}\n"), DEADLINE).await?;
            progress.say("the interface that came reaches the host");

            // Each returns when the guest has ejected its device.
            vmmd.detach_disk(PLACE, LET_GO).await?;
            vmmd.wait_for(&format!("DISK-GONE {round}\n"), DEADLINE).await?;
            vmmd.detach_nic(MAC, LET_GO).await?;
            vmmd.wait_for(&format!("CARD-GONE {round}\n"), DEADLINE).await?;
            progress.say("the guest has let go of both");
        }
        said += &vmmd.wait_for(DONE, DEADLINE).await?;
        self.root.check_said(&said, &self.kernel, 2)?;
        let info = vmmd.ends(DEADLINE).await?;
        anyhow::ensure!(info.stop_reason() == wire::StopReason::GuestShutdown, "{info:?}");
        Ok(())
    }

    /// The guest's answer is on the disk, once for each time that it came.
    fn check_disk(&self, image: &Path) -> anyhow::Result<()> {
        let disk = ext4::read(image, &format!("/{}.disk", self.kernel.version))?;
        for sector in disk[512..].chunks(512).take(2) {
            let answer = String::from_utf8_lossy(&sector[..32]);
            anyhow::ensure!(answer == self.word.transformed(), "on the disk is '{answer}'");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_and_interfaces_come_to_a_running_linux_and_go_from_it() -> anyhow::Result<()> {
    if !long() || !emulated_host() {
        return Ok(());
    }
    let progress = Progress::begin();
    let folder = tempfile::tempdir()?;
    let cases = [Series::Bookworm, Series::V6_12].map(|series| Case::prepare(folder.path(), series));
    let cases: Vec<_> =
        cases.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect();
    let disk = Given::folder(folder.path(), HOST_DISK_BYTES);
    let host = Arc::new(hosts::start(Given { disk, memory_mib: 768, ..Given::default() })?);
    progress.say("the host is up");
    for case in &cases {
        case.run(&host, &progress).await?;
        progress.say(&format!("{} has seen them come and go", case.kernel.version));
    }
    let image = host.power_off()?;
    cases.iter().try_for_each(|case| case.check_disk(&image))?;
    progress.say("what it wrote is on the disks");
    Ok(())
}
