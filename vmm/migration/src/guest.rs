//! The seam to the machine that moves: [`MigratableGuest`].

use std::{error::Error, time::Duration};

use drover_guest_memory::{DirtyPages, GuestMemory};
use drover_ids::OwnerEpoch;
use drover_saved_state::Envelope;

use crate::shape::MachineShape;

/// A machine refused or failed a step. Says what was tried; the cause is its source.
#[derive(Debug, thiserror::Error)]
#[error("{tried}")]
pub struct GuestError {
    tried: String,
    #[source]
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl GuestError {
    /// A failure to do `tried`, without a deeper cause.
    pub fn new(tried: impl Into<String>) -> Self {
        Self { tried: tried.into(), cause: None }
    }

    /// A failure to do `tried` because of `cause`.
    pub fn because(tried: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { tried: tried.into(), cause: Some(cause.into()) }
    }

    /// The failure and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }
}

/// A machine that can be moved. One implementation serves both ends; each end calls its own half.
///
/// The driver owns the guest for the length of the migration and calls it from one thread, one call at a time, in
/// the orders below and no other. Every method may block; none may wait for the driver. An error changes nothing
/// that the driver would not undo by the calls that it makes next.
///
/// **Source**, a running machine that holds its volumes' locks:
/// ```text
///  shape -> start_dirty_log -> take_dirty*                 (vCPUs run)
///        -> pause -> save -> take_dirty                    (vCPUs stand, devices drained)
///        -> release_volumes -> [Commit is sent here]
///        -> retire                                         (the target said that it runs)
///  before Commit, from anywhere:
///        -> acquire_volumes(own epoch), if release_volumes was called -> mark_dirty(all taken) -> stop_dirty_log
///        -> resume, if pause was called
///  after Commit, only on the orchestrator's word:
///        -> acquire_volumes(granted epoch) -> mark_dirty(all taken) -> stop_dirty_log -> resume
/// ```
/// Never: `resume` after Commit without a grant; `restore`; any call after `retire`.
///
/// **Target**, a machine built for the same shape, its vCPUs never run, its RAM untouched, its images open but not
/// locked:
/// ```text
///  shape -> (writes to memory) -> restore -> [Ready is sent here, Commit arrives]
///        -> acquire_volumes(target epoch) -> resume
///  before Commit, from anywhere: -> discard
///  after Commit, if acquire_volumes or resume fails: -> discard
/// ```
/// Never: `acquire_volumes` or `resume` before Commit; I/O on a volume before `acquire_volumes`; any call after
/// `discard`; the dirty log.
pub trait MigratableGuest: Send {
    /// What the other end's machine must look like. Constant for the length of the migration.
    fn shape(&self) -> MachineShape;

    /// Guest RAM. The same memory for the length of the migration.
    fn memory(&self) -> &GuestMemory;

    /// From the return of this call on, every page written by a vCPU, by a device or by the VMM is logged. What the
    /// log held before is of no interest: the first round sends everything. Idempotent.
    ///
    /// # Errors
    /// Where the machine cannot log.
    fn start_dirty_log(&mut self) -> Result<(), GuestError>;

    /// Takes the pages logged since the last take, and clears exactly these. A page written while this runs is in
    /// this take or in the next one, never in neither.
    ///
    /// # Errors
    /// Where the log cannot be read. Pages already cleared by the failed call are lost to the log, so the source
    /// gives the migration up.
    fn take_dirty(&mut self) -> Result<DirtyPages, GuestError>;

    /// Marks pages dirty again, as if they had just been written: the migration has failed and another reader of the
    /// log (the next migration, a backup) must not miss what this one consumed. Cannot fail.
    fn mark_dirty(&mut self, pages: &DirtyPages);

    /// Ends logging of vCPU writes. Idempotent; failing to is harmless and therefore not reported.
    fn stop_dirty_log(&mut self);

    /// Returns once no vCPU runs guest code and every device has drained: no completion will write guest RAM, and
    /// everything acknowledged to the guest is flushed as the guest asked. Idempotent.
    ///
    /// # Errors
    /// Where that does not happen within `limit`; what was stopped stays so until `resume`.
    fn pause(&mut self, limit: Duration) -> Result<(), GuestError>;

    /// The state of every vCPU and device, in the order in which `restore` wants them. The machine is paused and
    /// stays so. What this writes to guest RAM is in the next `take_dirty`.
    ///
    /// # Errors
    /// Where a state cannot be read.
    fn save(&mut self) -> Result<Vec<Envelope>, GuestError>;

    /// Gives up the exclusive ownership of every volume, so that another owner can take it. No I/O may reach a
    /// volume afterwards. The machine is paused. Idempotent.
    ///
    /// # Errors
    /// Where a volume could not be released; the driver takes all of them again.
    fn release_volumes(&mut self) -> Result<(), GuestError>;

    /// Takes exclusive ownership of every volume under `epoch`, all or none. Idempotent for an epoch already held.
    ///
    /// # Errors
    /// Where a volume is owned by somebody else or by a newer epoch. Also, at a source that released its volumes, where
    /// the volume's record shows that somebody else has owned it since: this guest's RAM is then older than its disk.
    fn acquire_volumes(&mut self, epoch: OwnerEpoch) -> Result<(), GuestError>;

    /// Runs the machine: its devices, then its vCPUs. Undoes this driver's `pause` and no other: a machine that is
    /// also paused for another reason (a lease that ran out) keeps standing until that has gone. Idempotent.
    ///
    /// # Errors
    /// Where a vCPU or device cannot run.
    fn resume(&mut self) -> Result<(), GuestError>;

    /// Puts received states into the freshly built machine, in the given order. Must not touch a volume and must not
    /// run a vCPU. Every envelope must be consumed: one that nothing wants is an error.
    ///
    /// # Errors
    /// Where a state does not fit the machine, with the kind that does not.
    fn restore(&mut self, states: &[Envelope]) -> Result<(), GuestError>;

    /// The guest runs elsewhere: nothing here may ever run again. The owner drops the machine afterwards.
    fn retire(&mut self);

    /// The guest never ran here and never will: releases every volume that `acquire_volumes` may have taken. The owner
    /// drops the machine afterwards.
    fn discard(&mut self);
}

/// An error and its causes in one line, for a reason that crosses to another process.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
