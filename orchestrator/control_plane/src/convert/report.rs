//! What a node says about a VM.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{
    BootTimes, MigrationPhase, MigrationReport, RunState, StopReason, StorageClient, VmReport,
};
use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_wire::{node::v1 as node, vm::v1 as wire};

use super::{WireError, required};

/// Longest text of a report that is kept, characters.
const TEXT_MAX: usize = 1024;
/// Most storage clusters, addresses in one, and volumes that one VM is heard about: far more than it can have disks.
const CLIENTS_MAX: usize = 64;
/// Longest address, bytes: two of IPv6 with ports and nonces.
const ADDRESS_MAX: usize = 160;

/// Checks a report and names its VM.
pub(crate) fn vm_report(status: node::VmStatus) -> Result<(VmId, VmReport), WireError> {
    let info = required("info", status.info)?;
    let vm = info.vm_id.parse().map_err(|error| WireError::new("info.vm_id", error))?;
    let state = run_state(info.state()).ok_or_else(|| WireError::new("info.state", info.state))?;
    let stop_reason =
        stop_reason(info.stop_reason).ok_or_else(|| WireError::new("info.stop_reason", info.stop_reason))?;
    let boot = info.boot.unwrap_or_default();
    let report = VmReport {
        epoch: OwnerEpoch::new(info.owner_epoch),
        state: if status.process_ended { RunState::Stopped } else { state },
        stop_reason,
        detail: bounded(info.detail),
        revision: info.revision,
        pid: info.pid,
        boot: BootTimes {
            spawn_to_first_byte: measured(boot.spawn_to_first_byte_us),
            start_to_first_byte: measured(boot.start_to_first_byte_us),
        },
        migration: info
            .migration
            .map(migration)
            .transpose()
            .map_err(|error| error.within("info.migration"))?,
        clients: clients(info.storage_clients)?,
        stalled: stalled(&info.stalls)?,
        exit: status.process_ended.then(|| bounded(status.exit)),
        // The heartbeat names the files.
        has_file: false,
    };
    Ok((vm, report))
}

fn clients(messages: Vec<wire::StorageClient>) -> Result<Vec<StorageClient>, WireError> {
    let refuse = |reason: String| Err(WireError::new("info.storage_clients", reason));
    if messages.len() > CLIENTS_MAX {
        return refuse(format!("there are {}, at most {CLIENTS_MAX} are taken", messages.len()));
    }
    let mut clients = Vec::with_capacity(messages.len());
    for wire::StorageClient { cluster, addresses } in messages {
        if addresses.len() > CLIENTS_MAX || addresses.iter().any(|a| a.is_empty() || a.len() > ADDRESS_MAX) {
            return refuse(format!("'{}' has addresses that are none", bounded(cluster)));
        }
        clients.push(StorageClient { cluster: bounded(cluster), addresses: addresses.into_iter().collect() });
    }
    Ok(clients)
}

fn stalled(messages: &[wire::StorageStall]) -> Result<BTreeSet<VolumeId>, WireError> {
    let volume = |stall: &wire::StorageStall| {
        stall.volume_id.parse().map_err(|error| WireError::new("info.stalls.volume_id", error))
    };
    messages.iter().take(CLIENTS_MAX).map(volume).collect()
}

/// Zero means "not yet".
fn measured(us: u64) -> Option<Duration> {
    (us > 0).then(|| Duration::from_micros(us))
}

fn bounded(text: String) -> String {
    if text.len() <= TEXT_MAX { text } else { text.chars().take(TEXT_MAX).collect() }
}

fn run_state(state: wire::VmState) -> Option<RunState> {
    Some(match state {
        wire::VmState::Unspecified => return None,
        wire::VmState::Empty => RunState::Empty,
        wire::VmState::Created => RunState::Created,
        wire::VmState::Running => RunState::Running,
        wire::VmState::Paused => RunState::Paused,
        wire::VmState::Incoming => RunState::Incoming,
        wire::VmState::MigratingOut => RunState::MigratingOut,
        wire::VmState::Committed => RunState::Committed,
        wire::VmState::Migrated => RunState::Migrated,
        wire::VmState::Stopped => RunState::Stopped,
    })
}

fn stop_reason(number: i32) -> Option<StopReason> {
    Some(match wire::StopReason::try_from(number).ok()? {
        wire::StopReason::Unspecified => StopReason::Unknown,
        wire::StopReason::Command => StopReason::Command,
        wire::StopReason::GuestShutdown => StopReason::GuestShutdown,
        wire::StopReason::GuestFault => StopReason::GuestFault,
        wire::StopReason::SelfFenced => StopReason::SelfFenced,
        wire::StopReason::Fenced => StopReason::Fenced,
        wire::StopReason::VmmFailure => StopReason::VmmFailure,
        wire::StopReason::MigrationFailed => StopReason::MigrationFailed,
        wire::StopReason::StorageStalled => StopReason::StorageStalled,
        wire::StopReason::Suspended => StopReason::Suspended,
    })
}

fn migration(status: wire::MigrationStatus) -> Result<MigrationReport, WireError> {
    let phase = match status.phase() {
        wire::MigrationPhase::Unspecified => return Err(WireError::new("phase", status.phase)),
        wire::MigrationPhase::Reserved => MigrationPhase::Reserved,
        wire::MigrationPhase::TargetReady => MigrationPhase::TargetReady,
        wire::MigrationPhase::Copying => MigrationPhase::Copying,
        wire::MigrationPhase::Switchover => MigrationPhase::Switchover,
        wire::MigrationPhase::Committed => MigrationPhase::Committed,
        wire::MigrationPhase::SourceRetired => MigrationPhase::SourceRetired,
        wire::MigrationPhase::Aborted => MigrationPhase::Aborted,
    };
    Ok(MigrationReport {
        migration: status.migration_id.parse().map_err(|error| WireError::new("migration_id", error))?,
        phase,
        rounds: status.rounds,
        bytes_sent: status.bytes_sent,
        bytes_remaining: status.bytes_remaining,
        total: Duration::from_micros(status.total_us),
        downtime: Duration::from_micros(status.downtime_us),
        error: bounded(status.error),
    })
}

/// A migration as clients see it.
pub(super) fn migration_status(report: &MigrationReport) -> wire::MigrationStatus {
    let phase = match report.phase {
        MigrationPhase::Reserved => wire::MigrationPhase::Reserved,
        MigrationPhase::TargetReady => wire::MigrationPhase::TargetReady,
        MigrationPhase::Copying => wire::MigrationPhase::Copying,
        MigrationPhase::Switchover => wire::MigrationPhase::Switchover,
        MigrationPhase::Committed => wire::MigrationPhase::Committed,
        MigrationPhase::SourceRetired => wire::MigrationPhase::SourceRetired,
        MigrationPhase::Aborted => wire::MigrationPhase::Aborted,
    };
    wire::MigrationStatus {
        migration_id: report.migration.to_string(),
        phase: phase.into(),
        rounds: report.rounds,
        bytes_sent: report.bytes_sent,
        bytes_remaining: report.bytes_remaining,
        total_us: micros(report.total),
        downtime_us: micros(report.downtime),
        error: report.error.clone(),
    }
}

/// Boot times as clients see them.
pub(super) fn boot_times(boot: &BootTimes) -> wire::BootTimes {
    wire::BootTimes {
        spawn_to_first_byte_us: boot.spawn_to_first_byte.map_or(0, micros),
        start_to_first_byte_us: boot.start_to_first_byte.map_or(0, micros),
    }
}

/// Whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> node::VmStatus {
        let info = wire::VmInfo {
            vm_id: VmId::from_u128(1).to_string(),
            state: wire::VmState::Running.into(),
            ..wire::VmInfo::default()
        };
        node::VmStatus { info: Some(info), process_ended: false, exit: String::new() }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut wire::VmInfo), expect: &str) {
        let mut status = status();
        change(status.info.as_mut().unwrap());
        let error = vm_report(status).unwrap_err().to_string();
        assert!(error.starts_with(expect), "{error}");
    }

    #[test]
    fn a_report_that_makes_no_sense_names_its_field() {
        assert_eq!(vm_report(node::VmStatus::default()).unwrap_err().to_string(), "info: it is missing");
        refused(|info| info.vm_id = "x".repeat(10_000), "info.vm_id: 'xxxx");
        refused(|info| info.state = 0, "info.state: 0");
        refused(|info| info.state = 99, "info.state: 99");
        refused(|info| info.stop_reason = -1, "info.stop_reason: -1");
        refused(|info| info.migration = Some(wire::MigrationStatus::default()), "info.migration.phase: 0");
    }

    #[test]
    fn a_process_that_has_ended_is_stopped_whatever_it_said_last() {
        let ended = node::VmStatus { process_ended: true, exit: "killed by signal 9".to_owned(), ..status() };
        let (_, report) = vm_report(ended).unwrap();
        assert_eq!((report.state, report.exit.as_deref()), (RunState::Stopped, Some("killed by signal 9")));
        let (_, report) = vm_report(status()).unwrap();
        assert_eq!((report.state, report.exit, report.boot), (RunState::Running, None, BootTimes::default()));
    }

    #[test]
    fn a_long_text_is_cut() {
        let mut long = status();
        long.info.as_mut().unwrap().detail = "ä".repeat(1 << 20);
        assert_eq!(vm_report(long).unwrap().1.detail.chars().count(), TEXT_MAX);
    }
}
