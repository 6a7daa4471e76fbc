//! A process that is told of its VM when it is born makes and starts it before anybody calls.

use std::fs::File;

use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::support::{Host, assert_refused, command_of, config, disk_work};

/// Calls of one operation, as an agent makes them.
fn calls(config: wire::VmConfig) -> (wire::CreateRequest, wire::StartRequest) {
    let command = command_of(77, 1);
    let create = wire::CreateRequest {
        command: command.clone(),
        config: Some(config),
        ..wire::CreateRequest::default()
    };
    (create, wire::StartRequest { command })
}

async fn a_vm_is_there_before_its_calls(jailed: bool) {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let config = wire::VmConfig { disks: vec![host.disk()], ..config(disk_work()) };
    let kernel = File::open(&config.kernel_path).expect("the probe");
    let mut files = vec![(config.kernel_path.clone(), kernel.into())];
    files.extend(host.disk_files());
    let (create, start) = calls(config);
    let mut vmmd = host.spawn_told(("first", jailed), files, (&create, &start)).await;
    vmmd.reaches_state(wire::VmState::Running).await;
    vmmd.acks(10).await;
    // Who makes them all the same hears that they have been carried out.
    vmmd.client.create(create).await.expect("created");
    let info = vmmd.client.start(start).await.expect("started").into_inner();
    assert_eq!((info.state(), info.owner_epoch), (wire::VmState::Running, 1));
    assert!(info.boot.is_some_and(|boot| boot.spawn_to_first_byte_us > 0), "its boot is timed");
    let acked = vmmd.acks(10).await;
    vmmd.stop(1).await.expect("stopped");
    assert!(vmmd.exits().await.success());
    let report = host.verify(acked);
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_vm_is_there_before_its_calls_in_a_jail() {
    a_vm_is_there_before_its_calls(true).await;
}

#[tokio::test]
async fn a_vm_is_there_before_its_calls_without_one() {
    a_vm_is_there_before_its_calls(false).await;
}

#[tokio::test]
async fn what_cannot_be_made_ahead_is_refused_when_it_is_asked_for() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let wrong = wire::VmConfig { kernel_path: "/no/such/kernel".to_owned(), ..config(disk_work()) };
    let (create, start) = calls(wrong);
    let mut vmmd = host.spawn_told(("first", false), Vec::new(), (&create, &start)).await;
    assert_refused(
        vmmd.client.create(create.clone()).await,
        Code::FailedPrecondition,
        &["config.kernel_path", "/no/such/kernel"],
    );
    // A field that makes no sense is the caller's to hear of, too.
    let (mut create, start) = calls(config(disk_work()));
    create.config.as_mut().expect("one").vcpus = 0;
    let mut other = host.spawn_told(("other", true), Vec::new(), (&create, &start)).await;
    assert_refused(other.client.create(create).await, Code::InvalidArgument, &["config.vcpus"]);
}
