//! Clusters that break while a guest writes, and images that change under it: every acknowledged write is there.

use std::time::Duration;

use drover_test_ceph_cluster::{CephOptions, Daemon};
use drover_wire::vm::v1 as wire;

use crate::{
    ceph::{Ceph, DISK, name},
    support::{DEADLINE, VOLUME, Vmmd},
};

/// How long the storage is away; the long form of the suite waits a minute.
fn outage() -> Duration {
    Duration::from_secs(if std::env::var_os("DROVER_CEPH_LONG").is_some() { 60 } else { 6 })
}

/// A VM at work on the cluster.
async fn at_work(options: &CephOptions) -> Option<(Ceph, Vmmd)> {
    let ceph = Ceph::with_volume(options)?;
    let mut vmmd = ceph.spawn("vm").await;
    vmmd.boot(ceph.config()).await;
    vmmd.acks(50).await;
    Some((ceph, vmmd))
}

/// It goes on, and nothing was lost.
async fn goes_on(ceph: Ceph, mut vmmd: Vmmd) {
    vmmd.acks(50).await;
    vmmd.stop(1).await.expect("stopped");
    let console = vmmd.console();
    // That it waits the guest may say; that a request failed it must not have to.
    let failed = |line: &&String| !line.contains("have not completed");
    let errors: Vec<_> = console.lives.iter().flat_map(|life| &life.errors).filter(failed).collect();
    assert_eq!((console.bad(), errors.len()), (0, 0), "{errors:?}");
    let report = ceph.verify(console.acked_max());
    assert!(report.is_clean() && report.lives.len() == 1, "{report}");
    vmmd.exits().await;
    ceph.assert_clean(&[]);
}

#[tokio::test]
async fn one_osd_of_three_may_die() {
    let Some((ceph, mut vmmd)) = at_work(&CephOptions::three_osds()).await else { return };
    ceph.cluster.kill(Daemon::Osd(1)).expect("killed");
    vmmd.acks(50).await;
    ceph.cluster.spawn(Daemon::Osd(1)).expect("started");
    ceph.cluster.wait_up(Daemon::Osd(1)).expect("back");
    goes_on(ceph, vmmd).await;
}

#[tokio::test]
async fn the_monitor_may_be_restarted() {
    let Some((ceph, mut vmmd)) = at_work(&CephOptions::default()).await else { return };
    ceph.cluster.kill(Daemon::Mon).expect("killed");
    vmmd.acks(50).await;
    ceph.cluster.spawn(Daemon::Mon).expect("started");
    ceph.cluster.wait_up(Daemon::Mon).expect("back");
    goes_on(ceph, vmmd).await;
}

#[tokio::test]
async fn all_storage_may_go_away_and_come_back() {
    let Some((ceph, mut vmmd)) = at_work(&CephOptions::three_osds()).await else { return };
    let osds = || (0..ceph.cluster.osds()).map(Daemon::Osd);
    for osd in osds() {
        ceph.cluster.kill(osd).expect("killed");
    }
    let info = vmmd.reaches("a stall that is told", |info| !info.stalls.is_empty()).await;
    assert_eq!(info.state(), wire::VmState::Running, "the default is to wait");
    assert!(info.stalls[0].since_boottime_ns > 0);
    // The outage is what is tested: nothing happens meanwhile that could be waited for.
    tokio::time::sleep(outage()).await;
    assert!(vmmd.is_running());
    for osd in osds() {
        ceph.cluster.spawn(osd).expect("started");
    }
    for osd in osds() {
        ceph.cluster.wait_up(osd).expect("back");
    }
    vmmd.reaches("the end of the stall", |info| info.stalls.is_empty()).await;
    goes_on(ceph, vmmd).await;
}

#[tokio::test]
async fn a_vm_may_stand_still_while_its_storage_is_away() {
    let Some(ceph) = Ceph::with_volume(&CephOptions::default()) else { return };
    let mut vmmd = ceph.spawn("vm").await;
    let stall = wire::StallPolicy { deadline_ms: 1000, action: wire::StallAction::Pause.into() };
    vmmd.boot(wire::VmConfig { stall: Some(stall), ..ceph.config() }).await;
    vmmd.acks(50).await;
    ceph.cluster.kill(Daemon::Osd(0)).expect("killed");
    vmmd.reaches("a stall that is told", |info| !info.stalls.is_empty()).await;
    // Its clock stands as well: no heartbeat comes for a hundred of its periods.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stood = vmmd.console().heartbeats();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(vmmd.console().heartbeats(), stood);
    ceph.cluster.spawn(Daemon::Osd(0)).expect("started");
    ceph.cluster.wait_up(Daemon::Osd(0)).expect("back");
    vmmd.beats(20).await;
    goes_on(ceph, vmmd).await;
}

#[tokio::test]
async fn a_vm_may_end_when_its_storage_is_away() {
    let Some(ceph) = Ceph::with_volume(&CephOptions::default()) else { return };
    let mut vmmd = ceph.spawn("vm").await;
    let stall = wire::StallPolicy { deadline_ms: 1000, action: wire::StallAction::Stop.into() };
    vmmd.boot(wire::VmConfig { stall: Some(stall), ..ceph.config() }).await;
    vmmd.acks(50).await;
    let own = crate::ceph::addresses(&vmmd.info().await);
    ceph.cluster.kill(Daemon::Osd(0)).expect("killed");
    assert_eq!(vmmd.exits().await.code(), Some(5));
    ceph.cluster.spawn(Daemon::Osd(0)).expect("started");
    ceph.cluster.wait_up(Daemon::Osd(0)).expect("back");
    let proof = ceph.fence(2, &own);
    let report = ceph.verify(vmmd.console().acked_max());
    assert!(report.is_clean(), "{report}");
    ceph.assert_clean(&proof.entries);
}

#[tokio::test]
async fn a_vm_may_be_stopped_while_its_storage_is_away() {
    let Some((ceph, mut vmmd)) = at_work(&CephOptions::default()).await else { return };
    let own = crate::ceph::addresses(&vmmd.info().await);
    ceph.cluster.kill(Daemon::Osd(0)).expect("killed");
    vmmd.reaches("a stall that is told", |info| !info.stalls.is_empty()).await;
    let stopped = tokio::time::timeout(DEADLINE, vmmd.stop(1)).await;
    let stopped = stopped.expect("it does not wait for the storage for ever").expect("stopped");
    assert!(stopped.detail.contains("storage") || stopped.detail.contains("ending"), "{}", stopped.detail);
    vmmd.exits().await;
    ceph.cluster.spawn(Daemon::Osd(0)).expect("started");
    ceph.cluster.wait_up(Daemon::Osd(0)).expect("back");
    let proof = ceph.fence(2, &own);
    let report = ceph.verify(vmmd.console().acked_max());
    assert!(report.is_clean(), "{report}");
    ceph.assert_clean(&proof.entries);
}

#[tokio::test]
async fn an_image_may_be_resized_snapshotted_and_flattened_under_load() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    // A clone, so that there is something to flatten.
    ceph.create(0xba5e, DISK);
    let base = name(0xba5e);
    {
        let image =
            drover_rbd::Image::open(&ceph.admin, &base, drover_rbd::Access::ReadWrite).expect("opened");
        image.create_snapshot("base").expect("a snapshot");
        image.protect_snapshot("base").expect("protected");
    }
    let pool = ceph.cluster.pool().to_owned();
    let (parent, child) = (format!("{pool}/{base}@base"), format!("{pool}/{}", name(VOLUME)));
    ceph.cluster.rbd(&["clone", &parent, &child]).expect("cloned");
    let mut vmmd = ceph.spawn("vm").await;
    vmmd.boot(ceph.config()).await;
    vmmd.acks(50).await;

    let image = ceph.image();
    image.create_snapshot("under-load").expect("a snapshot");
    vmmd.acks(20).await;
    image.resize(2 * DISK.get(), false, &mut |_, _| true).expect("resized");
    vmmd.acks(20).await;
    image.flatten(&mut |_, _| true).expect("flattened");
    assert!(image.parent().expect("told").is_none());
    vmmd.acks(20).await;
    image.remove_snapshot("under-load", &mut |_, _| true).expect("removed");
    drop(image);
    {
        let image =
            drover_rbd::Image::open(&ceph.admin, &base, drover_rbd::Access::ReadWrite).expect("opened");
        image.unprotect_snapshot("base").expect("nobody needs it");
        image.remove_snapshot("base", &mut |_, _| true).expect("removed");
    }
    goes_on(ceph, vmmd).await;
}

#[tokio::test]
async fn disks_are_held_for_a_moment_and_go_on_by_themselves() {
    let Some((ceph, mut vmmd)) = at_work(&CephOptions::default()).await else { return };
    let hold =
        |limit_ms| wire::HoldQueuesRequest { command: crate::support::command_of(0x4001, 1), limit_ms };
    let release = wire::ReleaseQueuesRequest { command: crate::support::command_of(0x4001, 1) };
    let drained = vmmd.client.hold_queues(hold(500)).await.expect("held").into_inner().drained_us;
    ceph.image().create_snapshot("held").expect("a snapshot");
    let held = vmmd.client.release_queues(release.clone()).await.expect("released").into_inner();
    println!(
        "disks held: drained in {drained} us, stood for {} us with a snapshot made meanwhile",
        held.held_us
    );
    vmmd.acks(20).await;
    // Nobody releases it: it ends by itself.
    vmmd.client.hold_queues(hold(50)).await.expect("held");
    vmmd.acks(20).await;
    let late = vmmd.client.release_queues(release).await.expect("known").into_inner();
    assert!(late.expired, "{late:?}");
    ceph.image().remove_snapshot("held", &mut |_, _| true).expect("removed");
    goes_on(ceph, vmmd).await;
}
