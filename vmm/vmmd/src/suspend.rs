//! A VM into a file, and out of one.
//!
//! ```text
//! suspend  pause -> write -> release volumes -> commit: the VM is in the file
//! resume   open, compare -> claim -> load on demand -> restore -> acquire volumes        start: spend the file -> run
//! ```
//!
//! Up to the commit a failure leaves the VM as it was, and the file without a VM. Up to the start a failure leaves the
//! file as it was, but for a claim that the next one outdoes.

use std::{path::Path, time::Duration};

use drover_guest_memory::GuestMemory;
use drover_ids::OwnerEpoch;
use drover_lifecycle::StopReason;
use drover_migration::{GuestError, shape::MachineShape};
use drover_suspend::{
    Contents, Identity, LoadProgress, ReadError, SuspendFile, SuspendWriter, WriteError, Written,
};
use tracing::info;

use crate::{
    files::Files,
    hosted::{EndSink, HostedVm, Owner, QUIESCE_LIMIT},
    order::{InvalidField, VmConfig},
    refused::{Refused, chain},
};

/// How long a migration waits for a machine that is still being loaded. A gigabyte takes a second or a few.
pub(crate) const LOADED_LIMIT: Duration = Duration::from_secs(120);
/// How long the VM's thread does: it has a lease to watch. Whoever is refused tries again.
pub(crate) const LOADED_SOON: Duration = Duration::from_secs(1);

/// Why a VM is not in its file.
#[derive(Debug)]
pub(crate) enum NotSuspended {
    /// It is here, paused, with its volumes.
    Unchanged(String),
    /// Nobody can tell where it is, or it has lost its volumes: it must end here.
    Broken(String),
}

impl<E: std::error::Error> From<E> for NotSuspended {
    fn from(error: E) -> Self {
        Self::Unchanged(chain(&error))
    }
}

/// Waits until all of a machine's memory is there.
pub(crate) fn wait_loaded(memory: &GuestMemory, limit: Duration) -> Result<(), GuestError> {
    match memory.wait_loaded(limit) {
        true => Ok(()),
        false => Err(GuestError::new("wait until the guest's memory has been loaded")),
    }
}

/// Pauses the machine and writes it into a file. Its volumes are released then, and it must be dropped.
pub(crate) fn suspend<M: HostedVm>(
    machine: &mut M,
    epoch: OwnerEpoch,
    (path, files): (&Path, &Files),
) -> Result<Written, NotSuspended> {
    wait_loaded(machine.memory(), LOADED_SOON)?;
    machine.pause(QUIESCE_LIMIT)?;
    let states = machine.save()?;
    let shape = machine.shape();
    let identity = Identity { vm: shape.vm, epoch };
    let bytes = shape.to_bytes();
    let contents = Contents { identity, memory: machine.memory(), shape: &bytes, states: &states };
    let file = files.made(path);
    let file = file.map_err(|source| WriteError::Io { attempt: "make", path: path.to_owned(), source })?;
    let writer = SuspendWriter::write(file, path, contents)?;
    let keep = |machine: &mut M, why: String| match machine.acquire_volumes(epoch) {
        Ok(()) => NotSuspended::Unchanged(why),
        Err(error) => NotSuspended::Broken(format!("{why}; and then: {}", chain(&error))),
    };
    if let Err(error) = machine.release_volumes() {
        drop(writer);
        return Err(keep(machine, chain(&error)));
    }
    match writer.commit() {
        Ok(written) => {
            info!(
                path = %path.display(),
                ram = written.ram.get(),
                zero = written.zero.get(),
                "suspended"
            );
            Ok(written)
        }
        Err(error @ WriteError::Doubtful { .. }) => Err(NotSuspended::Broken(chain(&error))),
        Err(error) => Err(keep(machine, chain(&error))),
    }
}

/// Fills a machine that was built to receive a guest from a file, and takes its volumes. The guest may run once the file
/// is [spent](LoadProgress::consume).
pub(crate) fn resume<M: HostedVm>(
    machine: &mut M,
    config: &VmConfig,
    owner: Owner,
    (path, files, ended): (&Path, &Files, EndSink),
) -> Result<LoadProgress, Refused> {
    let file = files.written(path);
    let file = file.map_err(|source| ReadError::Io { attempt: "open", path: path.to_owned(), source });
    let mut file = file.and_then(|file| SuspendFile::read(file, path)).map_err(refused)?;
    compare(machine, config, owner, &file)?;
    // Before the file is changed: a host that cannot load it leaves it to one that can.
    let source = files.fault_source().map_err(|why| Refused::Precondition(format!("resume_path: {why}")))?;
    file.claim(owner.epoch).map_err(refused)?;
    let failed = |error: &dyn std::error::Error| Refused::Failed(chain(error));
    let states = file.states().to_vec();
    let progress = file
        .load(machine.memory(), source, move |error| ended(StopReason::VmmFailure, chain(&error)))
        .map_err(|error| failed(&error))?;
    machine.restore(&states).map_err(|error| failed(&error))?;
    let lost = |error: GuestError| Refused::Precondition(format!("config.disks: {}", chain(&error)));
    machine.acquire_volumes(owner.epoch).map_err(lost)?;
    Ok(progress)
}

/// Whether the file is of this VM, fits the machine, and is what last wrote its volumes.
fn compare<M: HostedVm>(
    machine: &M,
    config: &VmConfig,
    owner: Owner,
    file: &SuspendFile,
) -> Result<(), Refused> {
    let path = file.path().display();
    let not = |reason: &dyn std::fmt::Display| {
        Refused::Precondition(format!("resume_path: {path} does not fit: {reason}"))
    };
    let over = |reason: &dyn std::fmt::Display| Refused::Useless(format!("resume_path: {path}: {reason}"));
    if file.identity().vm != owner.vm {
        return Err(not(&format_args!("it is of VM {}", file.identity().vm)));
    }
    if file.memory() != config.memory {
        let text = format!("config.memory_bytes: the suspended VM has {}", file.memory());
        return Err(Refused::Invalid(InvalidField::new(text)));
    }
    let shape = MachineShape::from_bytes(file.shape()).map_err(|error| not(&error))?;
    machine.shape().accepts(&shape).map_err(|error| not(&error))?;
    let owners = machine.last_owners().map_err(|error| Refused::Failed(chain(&error)))?;
    for last in owners {
        match last {
            Some(last) if last.vm == owner.vm && file.is_last_owner(last.epoch) => {}
            Some(last) => return Err(over(&format_args!("one of its volumes was written since, by {last}"))),
            None => return Err(over(&"nobody is on record as the last owner of one of its volumes")),
        }
    }
    Ok(())
}

/// What is wrong with a file will not come right; what failed for another reason leaves it to another try.
fn refused(error: ReadError) -> Refused {
    let text = format!("resume_path: {}", chain(&error));
    match error {
        ReadError::NotSuspended { .. }
        | ReadError::Truncated { .. }
        | ReadError::Corrupt { .. }
        | ReadError::States { .. }
        | ReadError::Consumed { .. } => Refused::Useless(text),
        // The disk, a newer release's file, or somebody newer.
        _ => Refused::Precondition(text),
    }
}
