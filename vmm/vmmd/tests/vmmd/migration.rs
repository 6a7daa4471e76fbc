//! A guest that moves between two processes while it writes its disk and dirties its memory.

use drover_ids::{MigrationId, VmId, VolumeId};
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::{Code, Status};

use crate::support::{Host, VM, VOLUME, Vmmd, assert_refused, command, config, dirty_work};

const SOURCE_EPOCH: u64 = 1;
const TARGET_EPOCH: u64 = 2;

fn migration_id() -> String {
    MigrationId::from_u128(0xa).to_string()
}

/// 128 MiB, of which the guest sweeps a quarter at 32 MiB/s.
fn busy(host: &Host) -> wire::VmConfig {
    wire::VmConfig { disks: vec![host.disk()], memory_bytes: 128 << 20, ..config(dirty_work(32, 32)) }
}

async fn migrate_in(target: &mut Vmmd, config: wire::VmConfig) -> Result<String, Status> {
    let request = wire::MigrateInRequest {
        command: command(TARGET_EPOCH),
        migration_id: migration_id(),
        config: Some(config),
        listen_address: "127.0.0.1:0".to_owned(),
        lease: None,
    };
    let address = target.client.migrate_in(request.clone()).await?.into_inner().address;
    // Whoever lost the answer asks again, and learns the same.
    let again = target.client.migrate_in(request).await?.into_inner().address;
    assert_eq!(again, address);
    Ok(address)
}

async fn migrate_out(
    source: &mut Vmmd,
    address: &str,
    downtime_target_ms: u32,
) -> Result<wire::VmInfo, Status> {
    let request = wire::MigrateOutRequest {
        command: command(SOURCE_EPOCH),
        migration_id: migration_id(),
        target_address: address.to_owned(),
        target_epoch: TARGET_EPOCH,
        downtime_target_ms,
    };
    source.client.migrate_out(request).await.map(tonic::Response::into_inner)
}

async fn cancel(source: &mut Vmmd) -> Result<wire::VmInfo, Status> {
    let request =
        wire::CancelMigrationRequest { command: command(SOURCE_EPOCH), migration_id: migration_id() };
    source.client.cancel_migration(request).await.map(tonic::Response::into_inner)
}

/// A busy guest at the source, and a target that waits for it.
async fn pair(host: &Host) -> (Vmmd, Vmmd, String) {
    let (mut source, mut target) = (host.spawn("source").await, host.spawn("target").await);
    source.boot(busy(host)).await;
    source.acks(20).await;
    let address = migrate_in(&mut target, busy(host)).await.expect("listening");
    (source, target, address)
}

fn phase(info: &wire::VmInfo) -> wire::MigrationPhase {
    info.migration.as_ref().map_or(wire::MigrationPhase::Unspecified, wire::MigrationStatus::phase)
}

/// The guest runs on, and nothing that it has verified or the disk holds is wrong.
async fn assert_sound(vmmd: &mut Vmmd) {
    vmmd.beats(10).await;
    vmmd.acks(20).await;
    let console = vmmd.console();
    let errors: Vec<_> = console.lives.iter().flat_map(|life| &life.errors).collect();
    assert_eq!((console.bad(), errors.len()), (0, 0), "{errors:?}");
}

#[tokio::test]
async fn a_busy_guest_moves_and_nothing_is_lost() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target, address) = pair(&host).await;
    migrate_out(&mut source, &address, 0).await.expect("admitted");
    let moved = source.reaches_state(wire::VmState::Migrated).await;
    let migration = moved.migration.clone().expect("told");
    assert_eq!(migration.phase(), wire::MigrationPhase::SourceRetired, "{migration:?}");
    let there = target.reaches_state(wire::VmState::Running).await;
    assert_eq!(there.owner_epoch, TARGET_EPOCH);
    assert_sound(&mut target).await;
    target
        .says("a second of verification", |console| {
            console.lives.iter().any(|life| life.pages_dirtied > 0 && life.reads_verified > 0)
        })
        .await;

    // One life across both logs: the guest never noticed more than a gap between two heartbeats.
    let logs = ["source/console.log", "target/console.log"]
        .map(|log| std::fs::read_to_string(host.path(log)).expect("kept"));
    let both = drover_probe_record::ConsoleLog::parse_all(logs.iter().map(String::as_str));
    assert_eq!((both.lives.len(), both.bad()), (1, 0), "{both:?}");
    let gap = both.longest_gap().expect("many heartbeats");
    println!(
        "downtime {} us by the source, longest heartbeat gap {:?} (period 5 ms); {} rounds, {} MiB, {} ms in all",
        migration.downtime_us,
        gap.length,
        migration.rounds,
        migration.bytes_sent >> 20,
        migration.total_us / 1000,
    );

    target.stop(TARGET_EPOCH).await.expect("stopped");
    let acked = both.acked_max().max(target.console().acked_max());
    let report = host.verify(acked);
    assert!(report.is_clean() && report.lives.len() == 1, "{report}");
    assert_eq!(source.stop(SOURCE_EPOCH).await.expect("acknowledged").state(), wire::VmState::Migrated);
    assert!(source.exits().await.success());
}

#[tokio::test]
async fn a_cancelled_migration_leaves_the_source_running() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target, address) = pair(&host).await;
    // A target of 1 ms is out of reach, so that the copying goes on until it is cancelled.
    migrate_out(&mut source, &address, 1).await.expect("admitted");
    source
        .reaches("a round", |info| info.migration.as_ref().is_some_and(|migration| migration.rounds > 0))
        .await;
    let info = cancel(&mut source).await.expect("cancelled");
    assert_eq!((info.state(), phase(&info)), (wire::VmState::Running, wire::MigrationPhase::Aborted));
    cancel(&mut source).await.expect("cancelling twice is cancelling once");
    let ended = target.reaches_state(wire::VmState::Stopped).await;
    assert_eq!(ended.stop_reason(), wire::StopReason::MigrationFailed, "{}", ended.detail);
    assert_sound(&mut source).await;
    source.stop(SOURCE_EPOCH).await.expect("stopped");
    let report = host.verify(source.console().acked_max());
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_target_that_is_killed_while_copying_leaves_the_source_running() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target, address) = pair(&host).await;
    migrate_out(&mut source, &address, 1).await.expect("admitted");
    source.reaches("copying", |info| phase(info) == wire::MigrationPhase::Copying).await;
    target.kill_9();
    let info = source.reaches("the abort", |info| phase(info) == wire::MigrationPhase::Aborted).await;
    assert_ne!(info.migration.expect("told").error, "");
    source.reaches_state(wire::VmState::Running).await;
    assert_sound(&mut source).await;

    // And it can be moved after all.
    let mut second = host.spawn("second").await;
    let address = migrate_in(&mut second, busy(&host)).await.expect("listening");
    migrate_out(&mut source, &address, 0).await.expect("admitted");
    second.reaches_state(wire::VmState::Running).await;
    assert_sound(&mut second).await;
}

#[tokio::test]
async fn a_source_that_is_killed_while_copying_leaves_no_target() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target, address) = pair(&host).await;
    migrate_out(&mut source, &address, 1).await.expect("admitted");
    source.reaches("copying", |info| phase(info) == wire::MigrationPhase::Copying).await;
    source.kill_9();
    let ended = target.reaches_state(wire::VmState::Stopped).await;
    assert_eq!(ended.stop_reason(), wire::StopReason::MigrationFailed, "{}", ended.detail);

    // The volume is free, with every acknowledged write on it, for an epoch newer than the target's.
    let acked = source.console().acked_max();
    assert!(host.verify(acked).is_clean());
    let mut next = host.spawn("next").await;
    next.boot_at(TARGET_EPOCH + 1, busy(&host)).await;
    assert_sound(&mut next).await;
}

/// Moments at which a side is killed: as soon as the source reports this phase, or a later one.
const MOMENTS: [wire::MigrationPhase; 4] = [
    wire::MigrationPhase::TargetReady,
    wire::MigrationPhase::Copying,
    wire::MigrationPhase::Switchover,
    wire::MigrationPhase::Committed,
];

/// Everything that was acknowledged, wherever the guest was, is on the volume, and nobody wrote beside anybody.
fn assert_whole(host: &Host, processes: &[&Vmmd], what: &str) {
    let acked = processes.iter().map(|vmmd| vmmd.console().acked_max()).max().expect("some");
    let report = host.verify(acked);
    assert!(report.is_clean(), "{what}: {report}");
}

#[tokio::test]
async fn whenever_the_target_dies_the_guest_goes_on_once_and_whole() {
    if !kvm() {
        return;
    }
    for moment in MOMENTS {
        let host = Host::with_volume();
        let (mut source, mut target, address) = pair(&host).await;
        migrate_out(&mut source, &address, 0).await.expect("admitted");
        source.reaches("the moment", |info| phase(info) >= moment).await;
        target.kill_9();
        let decided = source.reaches("a decision", |info| match info.state() {
            wire::VmState::Running | wire::VmState::Migrated => true,
            wire::VmState::Committed => {
                info.migration.as_ref().is_some_and(|migration| !migration.error.is_empty())
            }
            _ => false,
        });
        let decided = decided.await;
        println!("target killed at {}: {}", moment.as_str_name(), decided.state().as_str_name());
        match decided.state() {
            wire::VmState::Running => assert_sound(&mut source).await,
            wire::VmState::Committed => {
                host.fence(TARGET_EPOCH + 1).await;
                source.resume(TARGET_EPOCH + 1).await.expect("granted");
                assert_sound(&mut source).await;
            }
            _ => {
                let mut next = host.spawn("next").await;
                next.boot_at(TARGET_EPOCH + 1, busy(&host)).await;
                assert_sound(&mut next).await;
                next.kill_9();
                assert_whole(&host, &[&source, &target, &next], moment.as_str_name());
            }
        }
        source.kill_9();
        assert_whole(&host, &[&source, &target], moment.as_str_name());
    }
}

#[tokio::test]
async fn whenever_the_source_dies_the_guest_goes_on_once_and_whole() {
    if !kvm() {
        return;
    }
    for moment in MOMENTS {
        let host = Host::with_volume();
        let (mut source, mut target, address) = pair(&host).await;
        migrate_out(&mut source, &address, 0).await.expect("admitted");
        source.reaches("the moment", |info| phase(info) >= moment).await;
        source.kill_9();
        let decided = target.reaches("a decision", |info| {
            matches!(info.state(), wire::VmState::Running | wire::VmState::Stopped)
        });
        let decided = decided.await;
        println!("source killed at {}: {}", moment.as_str_name(), decided.state().as_str_name());
        if decided.state() == wire::VmState::Running {
            assert_sound(&mut target).await;
            target.kill_9();
            assert_whole(&host, &[&source, &target], moment.as_str_name());
        } else {
            let mut next = host.spawn("next").await;
            next.boot_at(TARGET_EPOCH + 1, busy(&host)).await;
            assert_sound(&mut next).await;
            next.kill_9();
            assert_whole(&host, &[&source, &next], moment.as_str_name());
        }
    }
}

#[tokio::test]
async fn a_source_after_commit_waits_for_a_newer_epoch_than_the_targets() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target, address) = pair(&host).await;
    // The record of a fence that came while the source held the lock: the target is too old for the volume.
    let record = format!(r#"{{"vm":"{}","epoch":{}}}"#, VmId::from_u128(VM), TARGET_EPOCH + 1);
    std::fs::write(host.pool.sidecar_path(VolumeId::from_u128(VOLUME)), record).expect("written");
    migrate_out(&mut source, &address, 0).await.expect("admitted");
    let failed = target.reaches_state(wire::VmState::Stopped).await;
    assert_eq!(failed.stop_reason(), wire::StopReason::MigrationFailed, "{}", failed.detail);
    let info = source.reaches_state(wire::VmState::Committed).await;
    assert_eq!(info.owner_epoch, SOURCE_EPOCH);
    for epoch in [SOURCE_EPOCH, TARGET_EPOCH] {
        let says = ["handed over under epoch 2", "newer"];
        assert_refused(source.resume(epoch).await, Code::FailedPrecondition, &says);
    }
    let late = cancel(&mut source).await;
    assert_refused(late, Code::FailedPrecondition, &["has been committed"]);
    let info = source.resume(TARGET_EPOCH + 1).await.expect("granted");
    assert_eq!((info.state(), info.owner_epoch), (wire::VmState::Running, TARGET_EPOCH + 1));
    assert_sound(&mut source).await;
    source.stop(TARGET_EPOCH + 1).await.expect("stopped");
    let report = host.verify(source.console().acked_max());
    assert!(report.is_clean() && report.lives.len() == 1, "{report}");
}

#[tokio::test]
async fn stop_during_a_migration_ends_the_source_and_its_target() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target, address) = pair(&host).await;
    migrate_out(&mut source, &address, 1).await.expect("admitted");
    source.reaches("copying", |info| phase(info) == wire::MigrationPhase::Copying).await;
    let info = source.stop(SOURCE_EPOCH).await.expect("stopped");
    assert_eq!((info.state(), info.stop_reason()), (wire::VmState::Stopped, wire::StopReason::Command));
    target.reaches_state(wire::VmState::Stopped).await;
    let report = host.verify(source.console().acked_max());
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_target_of_another_shape_is_refused_before_anything_moves() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut source, mut target) = (host.spawn("source").await, host.spawn("target").await);
    source.boot(busy(&host)).await;
    let other = wire::VmConfig { memory_bytes: 64 << 20, ..busy(&host) };
    let address = migrate_in(&mut target, other).await.expect("listening");
    migrate_out(&mut source, &address, 0).await.expect("admitted");
    let info = source.reaches("the abort", |info| phase(info) == wire::MigrationPhase::Aborted).await;
    let error = info.migration.expect("told").error;
    assert!(error.contains("memory layouts differ"), "{error}");
    assert_sound(&mut source).await;
}

#[tokio::test]
async fn what_cannot_be_migrated_is_refused_by_field() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut source = host.spawn("source").await;
    assert_refused(
        migrate_out(&mut source, "127.0.0.1:9", 0).await,
        Code::FailedPrecondition,
        &["MigrateOut", "EMPTY", "needs RUNNING"],
    );
    source.boot(busy(&host)).await;
    let nameless = migrate_out(&mut source, "target:9", 0).await;
    assert_refused(nameless, Code::InvalidArgument, &["target_address", "IP address"]);
    let slow = migrate_out(&mut source, "127.0.0.1:9", 60_000).await;
    assert_refused(slow, Code::InvalidArgument, &["downtime_target_ms", "1 to 10000"]);
    let unknown = cancel(&mut source).await;
    assert_refused(unknown, Code::NotFound, &["migration_id", "is not under way"]);
    let taken = migrate_in(&mut source, busy(&host)).await;
    assert_refused(taken, Code::FailedPrecondition, &["MigrateIn", "needs EMPTY"]);

    // Nobody listens there: the VM does not notice.
    migrate_out(&mut source, "127.0.0.1:9", 0).await.expect("admitted");
    source.reaches("the abort", |info| phase(info) == wire::MigrationPhase::Aborted).await;
    assert_sound(&mut source).await;
}
