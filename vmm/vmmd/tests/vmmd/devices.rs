//! Virtio devices beside disks, from the configuration to a machine that runs, is suspended and goes on.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::support::{Host, assert_refused, command, config, disk_work, heartbeat};

/// A VM with one of each kind.
pub(crate) fn with_everything(host: &Host) -> wire::VmConfig {
    let socket_path = host.path("vm.vsock").to_string_lossy().into_owned();
    let devices = wire::VirtioDevices {
        rng: true,
        console: true,
        balloon: Some(wire::BalloonDevice::default()),
        vsock: Some(wire::VsockDevice { cid: 42, socket_path }),
    };
    wire::VmConfig { disks: vec![host.disk()], devices: Some(devices), ..config(disk_work()) }
}

#[tokio::test]
async fn a_vm_with_every_device_runs_and_goes_on_after_a_suspend() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("first").await;
    vmmd.boot(with_everything(&host)).await;
    vmmd.acks(10).await;

    // The probe has drivers for none of them: what the host asks for stands, and nobody is kept waiting.
    let target_bytes = 16 << 20;
    let request = wire::SetBalloonRequest { command: command(1), target_bytes };
    let status = vmmd.client.set_balloon(request).await.expect("set").into_inner();
    assert_eq!((status.driver, status.target_bytes, status.actual_bytes), (false, target_bytes, 0));
    let stale = wire::SetBalloonRequest { command: command(7), target_bytes };
    assert_refused(vmmd.client.set_balloon(stale).await, Code::FailedPrecondition, &["owner_epoch"]);
    let reclaim = wire::ReclaimFreeMemoryRequest { command: command(1), limit_ms: 100 };
    let refused = vmmd.client.reclaim_free_memory(reclaim).await;
    assert_refused(refused, Code::FailedPrecondition, &["free"]);
    let mut host_side = UnixStream::connect(host.path("vm.vsock")).expect("vmmd listens");
    host_side.write_all(b"CONNECT 22\n").expect("taken");

    let path = host.path("suspended");
    vmmd.suspends(1, &path).await;
    assert_eq!(host_side.read(&mut [0; 1]).unwrap_or(0), 0, "no connection outlives its machine");

    let mut next = host.spawn("next").await;
    next.create_from(2, with_everything(&host), &path).await.expect("resumed");
    let status = next.client.get_balloon(wire::GetBalloonRequest { wait_ms: 1 }).await.expect("told");
    assert_eq!(status.into_inner().target_bytes, target_bytes, "what was asked for moves with the guest");
    next.start(2).await.expect("started");
    next.acks(10).await;
    assert_eq!(next.console().bad(), 0);
}

#[tokio::test]
async fn a_vm_without_a_balloon_says_so() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    let refused = vmmd.client.get_balloon(wire::GetBalloonRequest { wait_ms: 0 }).await;
    assert_refused(refused, Code::FailedPrecondition, &["no balloon"]);
    let refused = vmmd.client.get_balloon(wire::GetBalloonRequest { wait_ms: 99_999 }).await;
    assert_refused(refused, Code::InvalidArgument, &["wait_ms"]);
}
