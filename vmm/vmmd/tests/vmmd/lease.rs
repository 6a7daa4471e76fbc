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
    wire::CreateRequest {
        command: command(epoch),
        config: Some(config(heartbeat())),
        lease,
        ..wire::CreateRequest::default()
    }
}

fn extend(owner_epoch: u64, lease: Option<wire::Lease>) -> wire::ExtendLeaseRequest {
    wire::ExtendLeaseRequest { owner_epoch, lease }
}

// Short leases are given to VMs that run already: on a busy machine a short lease may be over when its message arrives,
// and then means the same.

#[tokio::test]
async fn an_overdue_lease_pauses_and_its_renewal_resumes() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    vmmd.beats(3).await;
    vmmd.client.extend_lease(extend(1, lease(50 * MS, HOUR))).await.expect("leased");
    vmmd.reaches_state(wire::VmState::Paused).await;
    assert_refused(vmmd.resume(1).await, Code::FailedPrecondition, &["lease is overdue", "ExtendLease"]);
    let stale = vmmd.client.extend_lease(extend(0, lease(HOUR, 2 * HOUR))).await;
    assert_refused(stale, Code::FailedPrecondition, &["stale"]);
    vmmd.client.extend_lease(extend(1, lease(HOUR, 2 * HOUR))).await.expect("renewed");
    vmmd.reaches_state(wire::VmState::Running).await;
    vmmd.beats(3).await;
    // A renewal that was overtaken by a newer one takes nothing back.
    vmmd.client.extend_lease(extend(1, lease(MS, 2 * MS))).await.expect("late");
    vmmd.beats(10).await;
    assert_eq!(vmmd.info().await.state(), wire::VmState::Running);
}

#[tokio::test]
async fn the_end_of_the_lease_ends_the_process_in_time() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    vmmd.beats(3).await;
    let mut watch = vmmd.client.watch(wire::WatchRequest {}).await.expect("watched").into_inner();
    let kill_in = 400 * MS;
    let begun = Instant::now();
    // The answer may or may not come before the end.
    let _ = vmmd.client.extend_lease(extend(1, lease(200 * MS, kill_in))).await;
    let status = vmmd.exits().await;
    assert_eq!(status.code(), Some(3), "{status}");
    let lived = begun.elapsed();
    assert!(lived < kill_in + Duration::from_secs(1), "it lived for {lived:?}, and the margin is a second");
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
    let absent = vmmd.client.extend_lease(extend(1, None)).await;
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
    vmmd.boot(halting).await;
    vmmd.reaches_state(wire::VmState::Stopped).await;
    let kill_in = 100 * MS;
    vmmd.client.extend_lease(extend(1, lease(50 * MS, kill_in))).await.expect("noted");
    tokio::time::sleep(kill_in + 200 * MS).await;
    assert_eq!(vmmd.info().await.stop_reason(), wire::StopReason::GuestShutdown);
    vmmd.stop(1).await.expect("acknowledged");
    assert!(vmmd.exits().await.success());
}
