//! librbd in the emulated host: vmmd is the same, dynamically linked program as everywhere else, and finds it there.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use drover_ids::VolumeId;
use drover_test_ceph_cluster::{CephCluster, CephOptions};
use drover_test_emulated_host::{
    EmulatedHost,
    debian::{Kernel, Series},
    guest::{self, Nonce},
};
use drover_test_prerequisites::{ceph, emulated_host, skipped};
use drover_wire::vm::v1 as wire;
use serde_json::Value;

use crate::{
    hosts::{self, Given, Progress},
    long,
    vmmd::{Guest, Storage, Vmmd},
};

const GUEST_DEADLINE: Duration = Duration::from_secs(400);
const USER: &str = "vmm";

/// librbd and librados, which vmmd opens while it runs; what they are linked with comes by itself.
fn libraries() -> Option<Vec<PathBuf>> {
    let libraries =
        ["librbd.so.1", "librados.so.2"].map(|name| PathBuf::from("/usr/lib/x86_64-linux-gnu").join(name));
    let there = libraries.iter().all(|path| path.exists());
    if !there {
        skipped("librbd is not installed: the package librbd1");
    }
    there.then(|| libraries.to_vec())
}

#[test]
fn vmmd_opens_librbd_in_the_emulated_host() -> anyhow::Result<()> {
    if !long() || !emulated_host() {
        return Ok(());
    }
    let Some(libraries) = libraries() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::create_dir(&disk)?;
    let capabilities = |libraries: Vec<PathBuf>| {
        let given =
            Given { disk: Given::folder(&disk, 16 << 20), memory_mib: 768, libraries, ..Given::default() };
        hosts::start(given)?.shell("/programs/drover-vmmd --capabilities", Duration::from_secs(120))
    };
    let with = capabilities(libraries)?;
    let without = capabilities(Vec::new())?;
    let says = |text: &str| text.lines().find(|line| line.starts_with("librbd:")).map(str::to_owned);
    anyhow::ensure!(says(&with).is_some_and(|line| line.contains("1.")), "{with}");
    anyhow::ensure!(says(&without) != says(&with), "found where it is not: {without}");
    Ok(())
}

/// Where the cluster's daemons listen, on loopback addresses of this machine.
fn addresses(cluster: &CephCluster) -> anyhow::Result<Vec<SocketAddr>> {
    let dump: Value = serde_json::from_str(&cluster.ceph(&["osd", "dump", "--format", "json"])?)?;
    let osds = dump["osds"].as_array().context("no OSDs")?.iter();
    let osds = osds.flat_map(|osd| osd["public_addrs"]["addrvec"].as_array().into_iter().flatten());
    let osds = osds.filter_map(|address| address["addr"].as_str());
    // "[v2:127.1.2.3:3300/0]"
    let monitor = cluster.mon_hosts().trim_matches(['[', ']']);
    let monitor = monitor.trim_start_matches("v2:").split('/').next().context("no monitor")?;
    let all = osds.chain([monitor]).map(str::parse).collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(all.len() >= 2, "a monitor and no OSD: {dump}");
    Ok(all)
}

/// The image of a volume, by the name that its pool gives it.
fn image(cluster: &CephCluster, volume: VolumeId) -> anyhow::Result<wire::RbdImage> {
    let access = wire::RbdAccess {
        mon_hosts: cluster.mon_hosts().to_owned(),
        ceph_pool: cluster.pool().to_owned(),
        user: USER.to_owned(),
        key: cluster.create_vmm_key(USER, cluster.pool())?,
        ..wire::RbdAccess::default()
    };
    Ok(wire::RbdImage { access: Some(access), image: format!("volume-{volume}") })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debians_kernel_boots_from_an_image_in_ceph() -> anyhow::Result<()> {
    if !long() || !emulated_host() || !ceph() {
        return Ok(());
    }
    let Some(libraries) = libraries() else { return Ok(()) };
    let progress = Progress::begin();
    let cluster = CephCluster::start(&CephOptions::default())?;
    let folder = tempfile::tempdir()?;
    let (disk, root, nonce) = (folder.path().join("disk"), folder.path().join("root.img"), Nonce::random());
    fs::create_dir(&disk)?;
    let kernel = Kernel::newest(Series::Bookworm)?;
    fs::copy(&kernel.vmlinux, disk.join("vmlinux"))?;
    fs::write(disk.join("initramfs"), guest::initramfs(&kernel)?)?;
    guest::make_root(&root, &nonce, None)?;
    let image = image(&cluster, VolumeId::from_u128(0x100))?;
    let name = format!("{}/{}", cluster.pool(), image.image);
    cluster.rbd(&["import", "--no-progress", &root.to_string_lossy(), &name])?;
    progress.say("a cluster runs beside the emulated host, and has the root disk");

    let host: Arc<EmulatedHost> = Arc::new(hosts::start(Given {
        disk: Given::folder(&disk, 256 << 20),
        memory_mib: 1024,
        libraries,
        ..Given::default()
    })?);
    for address in addresses(&cluster)? {
        host.forward(address);
    }
    progress.say("the host is up");
    let guest = Guest {
        vcpus: 2,
        memory_mib: 192,
        kernel: "/disk/vmlinux".to_owned(),
        initrd: "/disk/initramfs".to_owned(),
        cmdline: "console=ttyS0 quiet panic=-1 end=poweroff".to_owned(),
        images: vec![image],
        reset_ends: true,
        ..Guest::default()
    };
    let mut vmmd = Vmmd::spawn_with(&host, "rbd", Storage::Ceph).await?;
    vmmd.boot(&guest).await?;
    let said = vmmd.wait_for(guest::DONE, GUEST_DEADLINE).await?;
    nonce.check_said(&said, &kernel, 2)?;
    let info = vmmd.ends(GUEST_DEADLINE).await?;
    anyhow::ensure!(info.stop_reason() == wire::StopReason::GuestShutdown, "{info:?}");
    progress.say("the guest has booted and switched itself off");

    let written = folder.path().join("written.img");
    cluster.export(&name, &written)?;
    nonce.check_written(&written)?;
    assert!(nonce.check_written(&root).is_err(), "the answer was there before");
    progress.say("its answer is in the cluster");
    Ok(())
}
