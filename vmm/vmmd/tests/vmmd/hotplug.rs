//! Volumes that come to a running VM and go from it: owned like those that it began with.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use drover_handover::queue_name;
use drover_ids::VmId;
use drover_probe_record::{VisitorState, VisitorWork, Workload};
use drover_tap::{Interface, Tap, TapName};
use drover_test_ceph_cluster::{CephOptions, Daemon};
use drover_test_prerequisites::{kvm, network_namespace};
use drover_wire::vm::v1::{self as wire, attach_device_request, detach_device_request};
use tonic::Code;

use crate::{
    ceph::Ceph,
    support::{DEADLINE, Host, SLOTS, VOLUME, Vmmd, assert_refused, command, config, eventually, heartbeat},
};

fn on_pci() -> wire::VmConfig {
    with_work(heartbeat())
}

fn with_work(work: Workload) -> wire::VmConfig {
    let platform = wire::Platform { bus: wire::DeviceBus::VirtioPci.into(), ..wire::Platform::default() };
    wire::VmConfig { platform: Some(platform), ..config(work) }
}

/// A guest that writes a disk that comes, and lets go of it where it is not told to keep it.
fn with_visitor(keeps: bool) -> wire::VmConfig {
    let visitor = Some(VisitorWork { slots: SLOTS, iops: 400, keeps });
    with_work(Workload { visitor, ..heartbeat() })
}

async fn writes_more(vmmd: &mut Vmmd) -> u64 {
    let enough = vmmd.console().visitor_kept_max() + 20;
    vmmd.says("more writes", |log| log.visitor_kept_max() >= enough).await.visitor_kept_max()
}

fn story(vmmd: &Vmmd) -> Vec<VisitorState> {
    vmmd.console().lives.last().map(|life| life.visitor.story.clone()).unwrap_or_default()
}

fn attach(epoch: u64, disk: wire::Disk) -> wire::AttachDeviceRequest {
    let device = Some(attach_device_request::Device::Disk(disk));
    wire::AttachDeviceRequest { command: command(epoch), device }
}

fn detach(epoch: u64, volume: &str, force: bool) -> wire::DetachDeviceRequest {
    let device = Some(detach_device_request::Device::VolumeId(volume.to_owned()));
    wire::DetachDeviceRequest { command: command(epoch), device, force, wait_ms: 50 }
}

#[tokio::test]
async fn a_volume_is_the_vms_from_attaching_to_detaching() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let disk = wire::Disk { place: 3, ..host.disk() };
    let (mut vmmd, mut other) = (host.spawn("vm").await, host.spawn("other").await);
    vmmd.boot(on_pci()).await;
    assert_refused(vmmd.client.attach_device(attach(2, disk.clone())).await, Code::Aborted, &["epoch 1"]);
    assert_refused(
        vmmd.client.attach_device(attach(1, host.disk())).await,
        Code::InvalidArgument,
        &["disk.place"],
    );
    // Whoever has lost the answer asks again.
    for _ in 0..2 {
        vmmd.client.attach_device(attach(1, disk.clone())).await.expect("attached");
    }
    vmmd.beats(2).await;
    let rival = wire::VmConfig { vm_id: VmId::from_u128(0xbad).to_string(), ..config(heartbeat()) };
    let rival = wire::VmConfig { disks: vec![host.disk()], ..rival };
    assert_refused(other.create(1, rival).await, Code::FailedPrecondition, &["in use"]);

    // The probe knows no ACPI, and lets go of nothing.
    let kept = vmmd.client.detach_device(detach(1, &disk.volume_id, false)).await;
    assert_refused(kept, Code::DeadlineExceeded, &["has not let go"]);
    let next = wire::VmConfig { disks: vec![host.disk()], ..config(heartbeat()) };
    assert_refused(other.create(2, next.clone()).await, Code::FailedPrecondition, &["in use"]);
    for _ in 0..2 {
        vmmd.client.detach_device(detach(1, &disk.volume_id, true)).await.expect("taken");
    }
    vmmd.beats(2).await;
    other.create(2, next).await.expect("the volume is free for its VM");
    assert_eq!(vmmd.console().bad(), 0);
}

#[tokio::test]
async fn what_came_is_given_up_when_the_vm_ends() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(on_pci()).await;
    let disk = wire::Disk { place: 1, ..host.disk() };
    vmmd.client.attach_device(attach(1, disk)).await.expect("attached");
    vmmd.stop(1).await.expect("stopped");
    let mut next = host.spawn("next").await;
    let config = wire::VmConfig { disks: vec![host.disk()], ..config(heartbeat()) };
    next.create(2, config).await.expect("the volume is free for its VM");
}

#[tokio::test]
async fn without_pci_nothing_comes_and_nothing_is_taken() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    let disk = wire::Disk { place: 1, ..host.disk() };
    assert_refused(
        vmmd.client.attach_device(attach(1, disk)).await,
        Code::FailedPrecondition,
        &["its bus is not PCI"],
    );
    let mut next = host.spawn("next").await;
    let config = wire::VmConfig { disks: vec![host.disk()], ..config(heartbeat()) };
    next.create(2, config).await.expect("the volume was given up again");
}

#[tokio::test]
async fn a_guest_writes_what_comes_lets_go_when_asked_and_finds_its_writes_again() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let disk = wire::Disk { place: 3, ..host.disk() };
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(with_visitor(false)).await;
    vmmd.client.attach_device(attach(1, disk.clone())).await.expect("attached");
    let kept = writes_more(&mut vmmd).await;
    let asked = wire::DetachDeviceRequest { wait_ms: 30_000, ..detach(1, &disk.volume_id, false) };
    vmmd.client.detach_device(asked.clone()).await.expect("the guest lets go");
    assert_eq!(story(&vmmd), [VisitorState::Came, VisitorState::Asked, VisitorState::LetGo]);
    let kept = kept.max(vmmd.console().visitor_kept_max());
    let report = host.verify(kept);
    assert!(report.is_clean(), "{report}");

    // In another place, as if it had never been there.
    let elsewhere = wire::Disk { place: 5, ..disk };
    vmmd.client.attach_device(attach(1, elsewhere)).await.expect("attached");
    writes_more(&mut vmmd).await;
    assert!(vmmd.console().lives[0].visitor.found >= kept, "{:?}", vmmd.console().lives[0].visitor);
    vmmd.client.detach_device(asked).await.expect("the guest lets go");
    assert_eq!(vmmd.console().bad(), 0);
    let report = host.verify(vmmd.console().visitor_kept_max());
    assert!(report.is_clean() && report.lives.len() == 2, "a life for each time: {report}");
}

#[tokio::test]
async fn a_guest_may_keep_what_it_is_asked_for_and_not_what_is_pulled_out() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let disk = wire::Disk { place: 1, ..host.disk() };
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(with_visitor(true)).await;
    vmmd.client.attach_device(attach(1, disk.clone())).await.expect("attached");
    writes_more(&mut vmmd).await;
    let asked = wire::DetachDeviceRequest { wait_ms: 500, ..detach(1, &disk.volume_id, false) };
    let kept = vmmd.client.detach_device(asked).await;
    assert_refused(kept, Code::DeadlineExceeded, &["has not let go"]);
    writes_more(&mut vmmd).await;
    vmmd.client.detach_device(detach(1, &disk.volume_id, true)).await.expect("taken");
    let gone =
        vmmd.says("that it is gone", |log| log.lives[0].visitor.story.last() == Some(&VisitorState::Gone));
    let acked = gone.await.visitor_kept_max();
    vmmd.beats(5).await;
    let report = host.verify(acked);
    assert!(report.is_clean(), "{report}");
}

/// Everything by descriptors that are handed over, while the filters are in force.
#[tokio::test]
async fn devices_come_to_a_jail_and_go_from_it() {
    if !kvm() || !network_namespace() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn_jailed("vm", &[]).await;
    let config = with_visitor(false);
    vmmd.hand_over(&[(
        config.kernel_path.clone(),
        File::open(&config.kernel_path).expect("the probe").into(),
    )]);
    vmmd.boot(config).await;
    let disk = wire::Disk { place: 2, ..host.disk() };
    let missing = vmmd.client.attach_device(attach(1, disk.clone())).await;
    assert_refused(missing, Code::FailedPrecondition, &["disk.path", "handed over"]);
    vmmd.hand_over(&host.disk_files());
    vmmd.client.attach_device(attach(1, disk.clone())).await.expect("attached");
    writes_more(&mut vmmd).await;

    let name = format!("dvt{:08x}", std::process::id());
    let tap: TapName = name.parse().expect("a name");
    let nic = wire::Nic {
        mac: "52:54:00:00:00:09".to_owned(),
        tap: name.clone(),
        place: 1,
        ..wire::Nic::default()
    };
    let device = Some(attach_device_request::Device::Nic(nic));
    let request = || wire::AttachDeviceRequest { command: command(1), device: device.clone() };
    assert_refused(
        vmmd.client.attach_device(request()).await,
        Code::FailedPrecondition,
        &["nic.tap", "handed over"],
    );
    let queue = Tap::open(&tap, 1).expect("root may").remove(0);
    vmmd.hand_over(&[(queue_name(&name, 0), queue.into())]);
    for _ in 0..2 {
        vmmd.client.attach_device(request()).await.expect("attached, and the answer may be lost");
    }
    let there = || Interface::exists(&tap);
    assert!(there());
    let mac = detach_device_request::Device::Mac("52:54:00:00:00:09".to_owned());
    let pulled =
        wire::DetachDeviceRequest { command: command(1), device: Some(mac), force: true, wait_ms: 0 };
    vmmd.client.detach_device(pulled).await.expect("taken");
    eventually("a tap that is gone with its interface", || (!there()).then_some(())).await;

    let access = wire::RbdAccess {
        mon_hosts: "127.0.0.1:1".to_owned(),
        ceph_pool: "pool".to_owned(),
        user: "vms".to_owned(),
        key: "QUJD".to_owned(),
        ..wire::RbdAccess::default()
    };
    let rbd = Some(wire::RbdImage { access: Some(access), image: "image".to_owned() });
    let other = drover_ids::VolumeId::from_u128(9).to_string();
    let in_ceph = wire::Disk { volume_id: other, place: 4, rbd, ..wire::Disk::default() };
    assert_refused(
        vmmd.client.attach_device(attach(1, in_ceph)).await,
        Code::FailedPrecondition,
        &["without a disk in Ceph", "stop the VM, attach the volume, and start it again"],
    );
    writes_more(&mut vmmd).await;
    vmmd.stop(1).await.expect("stopped");
    let report = host.verify(vmmd.console().visitor_kept_max());
    assert!(report.is_clean(), "{report}");
}

/// What does not answer is waited for, for seconds, by whoever asks; never by the guest.
#[tokio::test]
async fn storage_that_does_not_answer_ends_no_attach_and_no_detach_in_silence() {
    let Some(ceph) = Ceph::with_volume(&CephOptions::default()) else { return };
    let mut vmmd = ceph.spawn("vm").await;
    vmmd.boot(with_visitor(true)).await;
    let disk = wire::Disk { place: 1, ..ceph.disk(VOLUME) };
    let away = || ceph.cluster.kill(Daemon::Osd(0)).expect("killed");
    let back = || {
        ceph.cluster.spawn(Daemon::Osd(0)).expect("started");
        ceph.cluster.wait_up(Daemon::Osd(0)).expect("back");
    };
    away();
    let slow = vmmd.client.attach_device(attach(1, disk.clone())).await;
    assert_refused(slow, Code::Aborted, &["has not answered within"]);
    vmmd.beats(5).await;
    back();
    // What came too late is given up before it can be had again.
    let deadline = Instant::now() + DEADLINE;
    while let Err(status) = vmmd.client.attach_device(attach(1, disk.clone())).await {
        assert!(Instant::now() < deadline, "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writes_more(&mut vmmd).await;

    // The guest has requests under way, which may still write its memory.
    away();
    let force = || detach(1, &disk.volume_id, true);
    let pulled = async {
        loop {
            match vmmd.client.detach_device(force()).await {
                Err(status) if status.message().contains("has not answered for") => break status,
                // Nothing was under way at the moment: it has gone, and its storage takes nothing back.
                Err(status) if status.message().contains("does not have it any more") => break status,
                // The machine was not quiet in time.
                Err(status) => assert!(status.message().contains("does not stand still"), "{status}"),
                Ok(_) => panic!("its storage is away"),
            }
        }
    };
    let refused = tokio::time::timeout(DEADLINE, pulled).await.expect("bounded");
    assert_eq!(refused.code(), Code::Aborted, "{refused}");
    vmmd.beats(5).await;
    back();
    let deadline = Instant::now() + DEADLINE;
    while let Err(status) = vmmd.client.detach_device(force()).await {
        assert!(Instant::now() < deadline, "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(vmmd.console().bad(), 0);
    let report = ceph.verify(vmmd.console().visitor_kept_max());
    assert!(report.is_clean(), "{report}");
    let mut next = ceph.spawn("next").await;
    let free = wire::VmConfig { disks: vec![ceph.disk(VOLUME)], ..config(heartbeat()) };
    next.create(2, free).await.expect("the volume is free for its VM");
    next.stop(2).await.expect("stopped");
    vmmd.stop(1).await.expect("stopped");
    next.exits().await;
    vmmd.exits().await;
    ceph.assert_clean(&[]);
}
