//! A Linux guest moves from one emulated host to another while it runs.

use std::{fs, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use drover_test_emulated_host::{
    EmulatedHost, Link,
    debian::{Kernel, Series},
    free_port,
    guest::{self, Nonce},
};
use drover_test_prerequisites::emulated_host;
use drover_wire::vm::v1 as wire;

use crate::{
    hosts::{self, Given, Progress},
    long,
    vmmd::{Guest, Vmmd},
};

const BOOT_DEADLINE: Duration = Duration::from_secs(240);
const MOVE_DEADLINE: Duration = Duration::from_secs(300);
const SOURCE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const TARGET_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// Where the receiver listens: an address that was handed over is known by its name, and the name has the port.
const TARGET_PORT: u16 = 4000;

/// Reads the first sector of its second disk, past every cache, twice a second. Each host has another word there: the one
/// that is read is that of the host on which the guest runs. Memory that it filled before it moved must be what it was.
const WATCH_THE_HOST: &str = r#"
dd if=/dev/urandom of=/tmp/memory bs=1M count=24 2>/dev/null; before=$(sha256sum < /tmp/memory)
word() { dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -c 32; }
first=$(word); n=0
echo "ON-HOST $first"
while [ "$(word)" = "$first" ]; do n=$((n+1)); echo "TICK $n"; sleep 0.5; done
echo "ON-HOST $(word)"
[ "$(sha256sum < /tmp/memory)" = "$before" ] && echo MEMORY-WHOLE
i=0; while [ $i -lt 6 ]; do i=$((i+1)); n=$((n+1)); echo "TICK $n"; sleep 0.5; done
"#;

/// The files of one host. Both have the same kernel and root disk; the second disk says whose it is.
fn files(folder: &Path, kernel: &Kernel, root: &Path, word: &Nonce) -> anyhow::Result<()> {
    fs::create_dir(folder)?;
    fs::copy(&kernel.vmlinux, folder.join("vmlinux"))?;
    fs::write(folder.join("initramfs"), guest::initramfs(kernel)?)?;
    fs::copy(root, folder.join("root.img"))?;
    let mut sector = word.as_str().as_bytes().to_vec();
    sector.resize(4096, 0);
    fs::write(folder.join("word.img"), sector)?;
    Ok(())
}

fn start(disk: &Path, link: Link) -> anyhow::Result<Arc<EmulatedHost>> {
    let disk = Given::folder(disk, 256 << 20);
    let given = Given { disk, memory_mib: 768, link: Some(link), ..Given::default() };
    Ok(Arc::new(hosts::start(given)?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linux_guest_moves_to_another_host_and_reads_that_hosts_disk() -> anyhow::Result<()> {
    if !long() || !emulated_host() {
        return Ok(());
    }
    let progress = Progress::begin();
    let folder = tempfile::tempdir()?;
    let kernel = Kernel::newest(Series::Bookworm)?;
    let (nonce, here, there) = (Nonce::random(), Nonce::random(), Nonce::random());
    let root = folder.path().join("root.img");
    guest::make_root(&root, &nonce, Some(WATCH_THE_HOST))?;
    let [source_disk, target_disk] = ["source", "target"].map(|name| folder.path().join(name));
    files(&source_disk, &kernel, &root, &here)?;
    files(&target_disk, &kernel, &root, &there)?;

    let port = free_port()?;
    let source = start(&source_disk, Link::Listen { port, address: SOURCE_ADDRESS.to_string() })?;
    let target = start(&target_disk, Link::Connect { port, address: TARGET_ADDRESS.to_string() })?;
    progress.say("two hosts are up");

    let guest = Guest {
        vcpus: 2,
        memory_mib: 192,
        kernel: "/disk/vmlinux".to_owned(),
        initrd: "/disk/initramfs".to_owned(),
        cmdline: "console=ttyS0 quiet panic=-1 ro end=poweroff".to_owned(),
        disks: vec![("/disk/root.img".to_owned(), true), ("/disk/word.img".to_owned(), true)],
        reset_ends: true,
        ..Guest::default()
    };
    let mut sender = Vmmd::spawn(&source, "sender").await?;
    sender.boot(&guest).await?;
    let mut said = sender.wait_for("TICK 3\n", BOOT_DEADLINE).await?;
    anyhow::ensure!(said.contains(&format!("ON-HOST {}", here.as_str())), "not on the first host:\n{said}");
    progress.say("the guest runs on the first host");

    let mut receiver = Vmmd::spawn(&target, "receiver").await?;
    let address = receiver.receive(&guest, (TARGET_ADDRESS, TARGET_PORT).into()).await?;
    let moved = sender.send(address, MOVE_DEADLINE).await?;
    progress.say(&format!(
        "moved: {} rounds, {} MiB, {} ms in all, blackout {} ms",
        moved.rounds,
        moved.bytes_sent >> 20,
        moved.total_us / 1000,
        moved.downtime_us / 1000
    ));
    drop(sender);
    drop(source);
    said = receiver.wait_for(guest::DONE, BOOT_DEADLINE).await?;
    anyhow::ensure!(said.contains(&format!("ON-HOST {}", there.as_str())), "not on the second host:\n{said}");
    anyhow::ensure!(said.contains("MEMORY-WHOLE"), "its memory has changed:\n{said}");
    let info = receiver.ends(BOOT_DEADLINE).await?;
    anyhow::ensure!(info.stop_reason() == wire::StopReason::GuestShutdown, "{info:?}");
    progress.say("it went on there, and switched itself off");
    Ok(())
}
