//! A VM into a file and out of it, and everything that must not come of that.

use std::{fs, path::PathBuf};

use drover_probe_record::{DirtyWork, Workload};
use drover_test_prerequisites::{kvm, skipped};
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::support::{Host, Vmmd, assert_refused, config, dirty_work, disk_work, eventually, heartbeat};

fn with_disk(host: &Host) -> wire::VmConfig {
    wire::VmConfig { disks: vec![host.disk()], ..config(disk_work()) }
}

/// A host with a VM that ran under epoch 1 and is in a file.
async fn suspended(host: &Host, config: wire::VmConfig) -> PathBuf {
    let mut vmmd = host.spawn("first").await;
    vmmd.boot(config).await;
    vmmd.acks(20).await;
    let path = host.path("suspended");
    let info = vmmd.suspends(1, &path).await;
    assert_eq!((info.state(), info.stop_reason()), (wire::VmState::Stopped, wire::StopReason::Suspended));
    path
}

#[tokio::test]
async fn a_suspended_vm_goes_on_where_it_was_and_once() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let path = suspended(&host, with_disk(&host)).await;
    let file = fs::metadata(&path).expect("there");
    assert!(file.len() > 64 << 20, "the whole machine");
    let mut next = host.spawn("next").await;
    let info = next.create_from(2, with_disk(&host), &path).await.expect("resumed");
    assert_eq!(info.state(), wire::VmState::Created);
    next.start(2).await.expect("started");
    next.acks(20).await;
    next.beats(5).await;
    let acked = next.console().acked_max();
    next.stop(2).await.expect("stopped");
    let report = host.verify(acked);
    assert!(report.is_clean() && report.lives.len() == 1, "one guest, in one life: {report}");
    // Its time is over.
    let mut third = host.spawn("third").await;
    assert_refused(
        third.create_from(3, with_disk(&host), &path).await,
        Code::DataLoss,
        &["resume_path", "resumed already"],
    );
}

#[tokio::test]
async fn a_guest_with_disks_that_went_on_without_it_is_refused() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let path = suspended(&host, with_disk(&host)).await;
    let mut fresh = host.spawn("fresh").await;
    fresh.boot_at(2, with_disk(&host)).await;
    fresh.acks(5).await;
    fresh.stop(2).await.expect("stopped");
    let mut late = host.spawn("late").await;
    assert_refused(
        late.create_from(3, with_disk(&host), &path).await,
        Code::DataLoss,
        &["resume_path", "written since", "epoch 2"],
    );
    // And nothing is held: the VM runs from its disks.
    late.boot_at(3, with_disk(&host)).await;
    late.acks(1).await;
}

#[tokio::test]
async fn a_process_that_dies_before_the_guest_runs_leaves_the_file_as_it_was() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let path = suspended(&host, with_disk(&host)).await;
    for epoch in 2..4 {
        let mut claimant = host.spawn(&format!("claimant-{epoch}")).await;
        claimant.create_from(epoch, with_disk(&host), &path).await.expect("resumed");
        claimant.kill_9();
    }
    let mut next = host.spawn("next").await;
    assert_refused(
        next.create_from(3, with_disk(&host), &path).await,
        Code::FailedPrecondition,
        &["resume_path", "newer"],
    );
    next.create_from(4, with_disk(&host), &path).await.expect("resumed");
    next.start(4).await.expect("started");
    next.acks(10).await;
}

#[tokio::test]
async fn a_file_that_does_not_fit_is_refused_by_field() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let path = suspended(&host, with_disk(&host)).await;
    let mut vmmd = host.spawn("next").await;
    let larger = wire::VmConfig { memory_bytes: 128 << 20, ..with_disk(&host) };
    assert_refused(
        vmmd.create_from(2, larger, &path).await,
        Code::InvalidArgument,
        &["config.memory_bytes", "64 MiB"],
    );
    for (change, says) in [
        (wire::VmConfig { vcpus: 1, ..with_disk(&host) }, "vCPU counts differ"),
        (wire::VmConfig { disks: Vec::new(), ..with_disk(&host) }, "devices differ"),
    ] {
        let refused = vmmd.create_from(2, change, &path).await;
        assert_refused(refused, Code::FailedPrecondition, &["resume_path", says]);
    }
    let bytes = fs::read(&path).expect("readable");
    let damaged = host.path("damaged");
    for (len, says) in
        [(bytes.len() - 1, "cut short"), (100, "not a suspended VM"), (0, "not a suspended VM")]
    {
        fs::write(&damaged, &bytes[..len]).expect("written");
        let refused = vmmd.create_from(2, with_disk(&host), &damaged).await;
        assert_refused(refused, Code::DataLoss, &["resume_path", says]);
    }
    assert_refused(
        vmmd.create_from(2, with_disk(&host), &host.path("nothing")).await,
        Code::FailedPrecondition,
        &["resume_path", "cannot open"],
    );
    // After all that it still works.
    vmmd.create_from(2, with_disk(&host), &path).await.expect("resumed");
    vmmd.start(2).await.expect("started");
    vmmd.acks(1).await;
}

#[tokio::test]
async fn a_vm_that_cannot_be_written_goes_on() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(with_disk(&host)).await;
    vmmd.acks(5).await;
    let nowhere = host.path("no/such/directory");
    assert_refused(vmmd.suspend(1, &nowhere).await, Code::Internal, &["suspending", "cannot make"]);
    assert_eq!(vmmd.info().await.state(), wire::VmState::Running);
    vmmd.acks(5).await;
    // A paused one stays paused, and can be suspended too.
    vmmd.pause(1).await.expect("paused");
    assert_refused(vmmd.suspend(1, &nowhere).await, Code::Internal, &["suspending"]);
    assert_eq!(vmmd.info().await.state(), wire::VmState::Paused);
    vmmd.suspends(1, &host.path("suspended")).await;
    assert!(host.verify(vmmd.console().acked_max()).is_clean());
}

#[tokio::test]
async fn a_process_killed_while_it_writes_leaves_a_vm_that_starts_from_its_disks() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("first").await;
    let dirty = dirty_work(192, 4000);
    let large = wire::VmConfig { memory_bytes: 256 << 20, disks: vec![host.disk()], ..config(dirty) };
    vmmd.boot(large.clone()).await;
    vmmd.acks(200).await;
    let path = host.path("suspended");
    let mut client = vmmd.client.clone();
    let request = wire::SuspendRequest {
        command: crate::support::command(1),
        path: path.to_string_lossy().into_owned(),
    };
    let suspending = tokio::spawn(async move { client.suspend(request).await });
    eventually("a file that is being written", || {
        fs::metadata(&path).ok().filter(|file| file.len() > 0).map(|_| ())
    })
    .await;
    vmmd.kill_9();
    let outcome = suspending.await.expect("no panic");
    let mut next = host.spawn("next").await;
    if outcome.is_ok() {
        // Quicker than the kill: then the file is whole.
        next.create_from(2, large, &path).await.expect("resumed");
        next.start(2).await.expect("started");
    } else {
        let refused = next.create_from(2, large.clone(), &path).await;
        assert_refused(refused, Code::DataLoss, &["resume_path"]);
        next.boot_at(2, large).await;
    }
    next.acks(5).await;
    next.stop(2).await.expect("stopped");
    assert!(host.verify(next.console().acked_max()).is_clean());
}

/// What the file of the first release that could suspend was made from.
fn small() -> wire::VmConfig {
    let balloon = Some(wire::BalloonDevice::default());
    let devices = wire::VirtioDevices { rng: true, console: true, balloon, vsock: None };
    wire::VmConfig { vcpus: 1, memory_bytes: 4 << 20, devices: Some(devices), ..config(heartbeat()) }
}

/// A file of an earlier release, which is never written again: `UPDATE_EXPECT=1` makes it where it is not there.
#[tokio::test]
async fn a_vm_that_an_earlier_release_suspended_goes_on() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/suspended-v1.vm");
    if std::env::var_os("UPDATE_EXPECT").is_some() && !golden.exists() {
        let mut vmmd = host.spawn("writer").await;
        vmmd.boot(small()).await;
        vmmd.beats(20).await;
        fs::create_dir_all(golden.parent().expect("a folder")).expect("made");
        vmmd.suspend(1, &golden).await.expect("suspended");
    }
    // Resuming spends it.
    let copy = host.path("suspended");
    fs::copy(&golden, &copy).expect("kept in the repository");
    let mut vmmd = host.spawn("reader").await;
    match vmmd.create_from(2, small(), &copy).await {
        // Where KVM neither scales nor moves a guest's TSC, the file is at home on one machine, until that restarts.
        Err(status)
            if ["processor", "TSC", "model-specific register"]
                .iter()
                .any(|what| status.message().contains(what)) =>
        {
            return skipped(
                "not the processor, or not the TSC, that the golden file of a suspended VM was made on",
            );
        }
        other => other.expect("resumed"),
    };
    vmmd.start(2).await.expect("started");
    vmmd.beats(20).await;
}

/// How much of the 4 GiB the guest has written when it is suspended. More makes the file larger, not the answer later.
fn dirty_mib() -> u64 {
    std::env::var("DROVER_SUSPEND_DIRTY_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(128)
}

#[tokio::test]
async fn four_gigabytes_answer_before_they_are_loaded() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("first").await;
    let mib = dirty_mib();
    let work = Workload { dirty: Some(DirtyWork { mib, mib_per_s: 2000 }), ..heartbeat() };
    let large = wire::VmConfig { memory_bytes: 4 << 30, ..config(work) };
    vmmd.boot(large.clone()).await;
    // Long enough for the sweep to have been through all of it once.
    vmmd.beats(20 + mib).await;
    let path = host.path("suspended");
    let began = std::time::Instant::now();
    vmmd.suspend(1, &path).await.expect("suspended");
    let wrote = began.elapsed();
    let began = std::time::Instant::now();
    let mut next = host.spawn("next").await;
    let spawned = began.elapsed();
    next.create_from(2, large, &path).await.expect("resumed");
    let built = began.elapsed();
    next.start(2).await.expect("started");
    next.beats(1).await;
    let answered = began.elapsed();
    let boot = next.info().await.boot.expect("always there");
    println!(
        "4 GiB, {mib} MiB of it written: suspended in {wrote:?}; resumed: process {spawned:?}, built {built:?}, \
         answered {answered:?} (start to first byte {} us)",
        boot.start_to_first_byte_us
    );
    // All of it comes, and the guest's own check of its memory finds nothing wrong.
    next.beats(200).await;
    assert_eq!(next.console().bad(), 0);
    stop(next).await;
}

async fn stop(mut vmmd: Vmmd) {
    vmmd.stop(2).await.expect("stopped");
}
