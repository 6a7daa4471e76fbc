//! The lease: who does not hear from its owner stops in time.

use std::time::{Duration, Instant};

use drover_probe_record::Workload;
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::support::{Host, assert_refused, command, config, heartbeat, lease};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

fn create(epoch: u64, lease: Option<wire::Lease>) -> wire::CreateRequest {
    wire::CreateRequest { command: command(epoch), config: Some(config(heartbeat())), lease }
}

#[tokio::test]
async fn an_overdue_lease_pauses_its_renewal_resumes_and_its_end_ends_the_process() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.client.create(create(1, lease(300 * MS, HOUR))).await.expect("created");
    vmmd.client.start(wire::StartRequest { command: command(1) }).await.expect("started");
    vmmd.beats(3).await;
    vmmd.reaches_state(wire::VmState::Paused).await;
    assert_refused(vmmd.resume(1).await, Code::FailedPrecondition, &["lease is overdue", "ExtendLease"]);

    let extend = |owner_epoch, lease| wire::ExtendLeaseRequest { owner_epoch, lease };
    let stale = vmmd.client.extend_lease(extend(0, lease(HOUR, 2 * HOUR))).await;
    assert_refused(stale, Code::FailedPrecondition, &["stale"]);
    let (pause_in, kill_in) = (400 * MS, 700 * MS);
    // The hour granted first stays: no renewal takes anything back.
    vmmd.client.extend_lease(extend(1, lease(pause_in, HOUR))).await.expect("renewed");
    vmmd.reaches_state(wire::VmState::Running).await;
    vmmd.beats(3).await;
    drop(vmmd);

    let mut vmmd = host.spawn("next").await;
    vmmd.client.create(create(1, lease(pause_in, kill_in))).await.expect("created");
    let granted = Instant::now();
    vmmd.client.start(wire::StartRequest { command: command(1) }).await.expect("started");
    let mut watch = vmmd.client.watch(wire::WatchRequest {}).await.expect("watched").into_inner();
    let status = vmmd.exits().await;
    assert_eq!(status.code(), Some(3), "{status}");
    let lived = granted.elapsed();
    assert!(
        lived < kill_in + Duration::from_secs(1),
        "it lived for {lived:?}, margin included it has a second"
    );
    let mut last = None;
    while let Ok(Some(info)) = watch.message().await {
        last = Some(info);
    }
    let last = last.expect("a status");
    assert_eq!((last.state(), last.stop_reason()), (wire::VmState::Stopped, wire::StopReason::SelfFenced));
}

#[tokio::test]
async fn leases_that_make_no_sense_are_refused() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    let backwards = vmmd.client.create(create(1, lease(2 * HOUR, HOUR))).await;
    assert_refused(backwards, Code::InvalidArgument, &["lease.kill_at_boottime_ns", "must be later"]);
    let over = Some(wire::Lease { pause_at_boottime_ns: 1, kill_at_boottime_ns: 2 });
    assert_refused(
        vmmd.client.create(create(1, over)).await,
        Code::FailedPrecondition,
        &["lease is overdue"],
    );
    vmmd.client.create(create(1, lease(HOUR, 2 * HOUR))).await.expect("created");
    let absent = vmmd.client.extend_lease(wire::ExtendLeaseRequest { owner_epoch: 1, lease: None }).await;
    assert_refused(absent, Code::InvalidArgument, &["lease is missing"]);
}

#[tokio::test]
async fn the_end_of_a_lease_does_not_hide_how_the_vm_ended() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    let halting = config(Workload { halt_after_ms: Some(20), ..heartbeat() });
    let kill_in = 800 * MS;
    let create =
        wire::CreateRequest { command: command(1), config: Some(halting), lease: lease(600 * MS, kill_in) };
    vmmd.client.create(create).await.expect("created");
    vmmd.client.start(wire::StartRequest { command: command(1) }).await.expect("started");
    vmmd.reaches_state(wire::VmState::Stopped).await;
    tokio::time::sleep(kill_in + 200 * MS).await;
    assert_eq!(vmmd.info().await.stop_reason(), wire::StopReason::GuestShutdown);
    vmmd.stop(1).await.expect("acknowledged");
    assert!(vmmd.exits().await.success());
}
