//! What this process says about its VM: one message, published whole, with a revision that grows with every change.

use std::sync::OnceLock;

use drover_lifecycle::{BootTime, Lifecycle, Phase, State, StopReason};
use drover_wire::vm::v1 as wire;
use tokio::sync::watch;

use crate::jail;

/// The published message. Any thread may change it; readers see the newest.
#[derive(Debug)]
pub(crate) struct Status {
    info: watch::Sender<wire::VmInfo>,
    spawned_at: Option<BootTime>,
    started_at: OnceLock<BootTime>,
}

impl Status {
    /// The status of an empty process that was spawned at this moment, as far as it has been told.
    pub(crate) fn new(spawned_at: Option<BootTime>) -> Self {
        let info = wire::VmInfo {
            state: wire::VmState::Empty.into(),
            revision: 1,
            pid: u64::from(jail::host_pid()),
            boot: Some(wire::BootTimes::default()),
            ..wire::VmInfo::default()
        };
        Self { info: watch::Sender::new(info), spawned_at, started_at: OnceLock::new() }
    }

    /// The newest message.
    pub(crate) fn info(&self) -> wire::VmInfo {
        self.info.borrow().clone()
    }

    /// Follows the message.
    pub(crate) fn subscribe(&self) -> watch::Receiver<wire::VmInfo> {
        self.info.subscribe()
    }

    /// Changes the message. Readers wake only if it differs afterwards.
    pub(crate) fn update(&self, change: impl FnOnce(&mut wire::VmInfo)) {
        self.info.send_if_modified(|info| {
            let mut changed = info.clone();
            change(&mut changed);
            changed.revision = info.revision;
            let modified = changed != *info;
            if modified {
                changed.revision += 1;
                *info = changed;
            }
            modified
        });
    }

    /// Publishes where the lifecycle is. The end of a VM is final: a state that comes after it is not published.
    pub(crate) fn publish(&self, lifecycle: &Lifecycle) {
        self.update(|info| {
            if is_terminal(info) {
                return;
            }
            info.owner_epoch = lifecycle.epoch().get();
            info.state = state(lifecycle.state()).into();
            if let Phase::Stopped { reason, detail } = lifecycle.phase() {
                info.stop_reason = stop_reason(*reason).into();
                info.detail.clone_from(detail);
            }
        });
    }

    /// Publishes the end of a VM that ends without its lifecycle's help.
    pub(crate) fn publish_end(&self, reason: StopReason, detail: &str) {
        self.update(|info| {
            info.state = wire::VmState::Stopped.into();
            info.stop_reason = stop_reason(reason).into();
            detail.clone_into(&mut info.detail);
        });
    }

    /// Notes when the vCPUs were first let in.
    pub(crate) fn started(&self, at: BootTime) {
        let _ = self.started_at.set(at);
    }

    /// Publishes when the guest spoke first. A guest that has not been started here has not booted here either.
    pub(crate) fn publish_first_byte(&self, at: BootTime) {
        let Some(started_at) = self.started_at.get() else { return };
        let since = |from: BootTime| at.since(from).as_micros() as u64;
        self.update(|info| {
            info.boot = Some(wire::BootTimes {
                spawn_to_first_byte_us: self.spawned_at.map_or(0, since),
                start_to_first_byte_us: since(*started_at),
            });
        });
    }
}

/// Whether the message tells the end of its VM.
pub(crate) fn is_terminal(info: &wire::VmInfo) -> bool {
    matches!(info.state(), wire::VmState::Stopped | wire::VmState::Migrated)
}

fn state(state: State) -> wire::VmState {
    match state {
        State::Empty => wire::VmState::Empty,
        State::Created => wire::VmState::Created,
        State::Running => wire::VmState::Running,
        State::Paused => wire::VmState::Paused,
        State::Incoming => wire::VmState::Incoming,
        State::MigratingOut => wire::VmState::MigratingOut,
        State::Committed => wire::VmState::Committed,
        State::Migrated => wire::VmState::Migrated,
        State::Stopped => wire::VmState::Stopped,
    }
}

fn stop_reason(reason: StopReason) -> wire::StopReason {
    match reason {
        StopReason::Command => wire::StopReason::Command,
        StopReason::GuestShutdown => wire::StopReason::GuestShutdown,
        StopReason::GuestFault => wire::StopReason::GuestFault,
        StopReason::SelfFenced => wire::StopReason::SelfFenced,
        StopReason::Fenced => wire::StopReason::Fenced,
        StopReason::VmmFailure => wire::StopReason::VmmFailure,
        StopReason::MigrationFailed => wire::StopReason::MigrationFailed,
        StopReason::StorageStalled => wire::StopReason::StorageStalled,
        StopReason::Suspended => wire::StopReason::Suspended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_grows_with_changes_only() {
        let status = Status::new(None);
        status.update(|info| info.name = "a".to_owned());
        assert_eq!(status.info().revision, 2);
        status.update(|info| info.name = "a".to_owned());
        assert_eq!(status.info().revision, 2);
    }

    #[test]
    fn the_end_is_final() {
        let status = Status::new(None);
        status.publish_end(StopReason::SelfFenced, "the lease has run out");
        status.publish(&Lifecycle::new());
        assert_eq!(status.info().state(), wire::VmState::Stopped);
    }

    #[test]
    fn boot_times_count_from_what_is_known() {
        let at = BootTime::from_ns;
        let status = Status::new(Some(at(1_000_000)));
        status.publish_first_byte(at(2_000_000));
        assert_eq!(status.info().boot, Some(wire::BootTimes::default()), "not started here");
        status.started(at(3_000_000));
        status.publish_first_byte(at(5_000_000));
        let boot = status.info().boot.expect("always there");
        assert_eq!((boot.spawn_to_first_byte_us, boot.start_to_first_byte_us), (4_000, 2_000));
    }
}
