//! Storage that does not answer: noticed, told, and acted on as the VM's policy says.
//!
//! Requests wait in any case, and none is failed: the guest sees a slow disk. A thread looks at the oldest request of
//! each disk; it touches nothing that could wait for the storage itself.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use drover_block::Backend;
use drover_ids::VolumeId;
use drover_lifecycle::StopReason;
use drover_machine::{Holder, PauseError, PauseGuard};
use drover_thread_role::{Role, spawn};
use drover_wire::vm::v1::StorageStall;
use tracing::{error, info, warn};

use crate::{
    boottime,
    order::{StallAction, StallPolicy},
    status::Status,
};

/// Between two looks: a quarter of the shortest deadline that can be asked for, rounded.
const LOOK: Duration = Duration::from_millis(125);
/// How long a pause for a stall waits for vCPUs. The disks cannot drain, which is no reason to wait.
const PAUSE_LIMIT: Duration = Duration::from_millis(100);
/// How long the report of the end may take to leave the process before it ends.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Exit status of a process whose storage stalled for longer than its VM's policy allows.
pub(crate) const EXIT_STALLED: i32 = 5;

/// What is looked at.
pub(crate) struct Watched {
    pub(crate) disks: Vec<(VolumeId, Weak<dyn Backend>)>,
    pub(crate) holder: Holder,
    pub(crate) policy: StallPolicy,
    pub(crate) status: Arc<Status>,
}

/// The vCPUs are out. As a rule the pause is not complete, since the disks are not quiet; that holds as well.
type Standing = Result<PauseGuard, PauseError>;

/// Starts the thread. It ends when the last disk has gone.
pub(crate) fn watch(watched: Watched) -> io::Result<()> {
    spawn(Role::Watch, thread::Builder::new().name("stalls".to_owned()), move || watched.run())?;
    Ok(())
}

impl Watched {
    fn run(self) {
        let mut stalled = BTreeSet::new();
        let mut standing = None;
        loop {
            thread::sleep(LOOK);
            let Some(ages) = self.ages() else { return };
            let now: BTreeSet<VolumeId> = ages.iter().map(|(volume, _)| *volume).collect();
            if now == stalled {
                continue;
            }
            self.publish(&ages);
            match (stalled.is_empty(), now.is_empty()) {
                (true, false) => {
                    warn!(volumes = ?now, "storage does not answer: requests wait");
                    standing = self.act();
                }
                (false, true) => {
                    info!("storage answers again");
                    drop(standing.take());
                }
                _ => {}
            }
            stalled = now;
        }
    }

    /// The volumes whose oldest request is overdue, with its age; `None` if no disk is left.
    fn ages(&self) -> Option<Vec<(VolumeId, Duration)>> {
        let alive: Vec<_> =
            self.disks.iter().filter_map(|(volume, disk)| Some((*volume, disk.upgrade()?))).collect();
        if alive.is_empty() {
            return None;
        }
        let overdue = alive.iter().filter_map(|(volume, disk)| Some((*volume, disk.oldest_request()?)));
        Some(overdue.filter(|(_, age)| *age >= self.policy.deadline).collect())
    }

    fn publish(&self, ages: &[(VolumeId, Duration)]) {
        let now = boottime::now().as_ns();
        let stall = |(volume, age): &(VolumeId, Duration)| StorageStall {
            volume_id: volume.to_string(),
            since_boottime_ns: now.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)),
        };
        let ours: BTreeSet<String> = self.disks.iter().map(|(volume, _)| volume.to_string()).collect();
        // Disks that came later are looked at by others.
        self.status.update(|info| {
            info.stalls.retain(|stall| !ours.contains(&stall.volume_id));
            info.stalls.extend(ages.iter().map(stall));
        });
    }

    fn act(&self) -> Option<Standing> {
        match self.policy.action {
            StallAction::Wait => None,
            StallAction::Pause => self.holder.hold(PAUSE_LIMIT),
            StallAction::Stop => {
                let waited = self.policy.deadline.as_millis();
                let detail = format!("its storage has not answered for {waited} ms");
                self.status.publish_end(StopReason::StorageStalled, &detail);
                error!(detail, "the VM's policy is to end: the process ends");
                thread::sleep(LAST_WORDS);
                // Taking the machine apart would wait for the requests.
                std::process::exit(EXIT_STALLED);
            }
        }
    }
}
