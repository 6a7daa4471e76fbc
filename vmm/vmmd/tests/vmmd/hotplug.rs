//! Volumes that come to a running VM and go from it: owned like those that it began with.

use drover_ids::VmId;
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1::{self as wire, attach_device_request, detach_device_request};
use tonic::Code;

use crate::support::{Host, assert_refused, command, config, heartbeat};

fn on_pci() -> wire::VmConfig {
    let platform = wire::Platform { bus: wire::DeviceBus::VirtioPci.into(), ..wire::Platform::default() };
    wire::VmConfig { platform: Some(platform), ..config(heartbeat()) }
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
    assert_refused(
        vmmd.client.attach_device(attach(2, disk.clone())).await,
        Code::FailedPrecondition,
        &["epoch 1"],
    );
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
