//! The VM's disks on this host: opened, and taken from whoever is gone.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use drover_block::{Access, Backend, Owner, OwnershipError};
use drover_block_rbd::{RbdBackend, RbdDisk};
use drover_machine::{Disk, MachineError};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};

use crate::{
    clusters::Clusters,
    files::Files,
    jail,
    order::{DiskConfig, DiskPlace, RbdImage},
    refused::{Refused, chain},
};

/// How long a volume may remain locked by a process of this host that is gone.
///
/// The kernel ends the last requests of a killed process after the process itself, in a worker of its own (io_uring's
/// deferred release), and each request holds its file, and with it the lock: now and then, on a busy machine, a restart
/// right after a kill finds the volume held by the dead.
const LAST_REQUESTS: Duration = Duration::from_secs(2);
/// How long a volume that has been handed over may still seem held: far above what a release takes (milliseconds), and
/// short beside the restart it saves.
const MOMENT: Duration = Duration::from_millis(200);
/// Between two looks at such a lock.
const LOOK: Duration = Duration::from_millis(2);

/// Opens the images. Nothing is locked yet.
pub(crate) fn open(
    configs: &[DiskConfig],
    clusters: &mut Clusters,
    files: &Files,
) -> Result<Vec<Disk>, Refused> {
    let open = |(n, config)| open_one(&format!("config.disks[{n}]"), config, clusters, files);
    configs.iter().enumerate().map(open).collect()
}

/// Opens an image. Nothing is locked yet.
pub(crate) fn open_one(
    field: &str,
    config: &DiskConfig,
    clusters: &mut Clusters,
    files: &Files,
) -> Result<Disk, Refused> {
    let access = if config.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let refused = |part: &str, error: &dyn std::error::Error| {
        Refused::Precondition(format!("{field}.{part}: {}", chain(error)))
    };
    let backend: Arc<dyn Backend> = match &config.place {
        DiskPlace::File(path) => {
            Arc::new(files.volume(path, access).map_err(|error| refused("path", &error))?)
        }
        DiskPlace::Rbd(RbdImage { access: way, image }) => {
            let pool = clusters.pool(way).map_err(|error| refused("rbd.access", &error))?;
            let disk = RbdDisk { pool: &pool, image, access, encryption: None };
            Arc::new(RbdBackend::open(&disk).map_err(|error| refused("rbd.image", &error))?)
        }
    };
    Ok(Disk { id: config.volume.to_string(), backend, queues: config.queues })
}

/// Takes the volumes for `owner`. Refused at once where somebody else is at work; a dead process of this host is given
/// the moment that its last requests take.
pub(crate) fn acquire(disks: &[Disk], owner: &Owner) -> Result<(), Refused> {
    let deadline = Instant::now() + LAST_REQUESTS;
    for (n, disk) in disks.iter().enumerate() {
        loop {
            match disk.backend.acquire(owner) {
                Ok(()) => break,
                Err(OwnershipError::Held { owner: Some(holder) })
                    if is_gone(&holder, owner) && Instant::now() < deadline =>
                {
                    thread::sleep(LOOK);
                }
                Err(error) => {
                    let text =
                        format!("config.disks[{n}]: cannot acquire volume {}: {}", disk.id, chain(&error));
                    return Err(Refused::Precondition(text));
                }
            }
        }
    }
    Ok(())
}

/// Tries again while a volume is held, for the moment that the source's release takes to be seen everywhere.
///
/// The source has released the volumes before it says Commit. What still holds one then is on its way out: the last
/// reference to a file that a worker of the kernel drops, a lock whose release the storage has not passed on. The guest
/// stands meanwhile, and giving up here would cost it a restart.
pub(crate) fn while_held_for_a_moment(
    mut acquire: impl FnMut() -> Result<(), MachineError>,
) -> Result<(), MachineError> {
    let deadline = Instant::now() + MOMENT;
    loop {
        match acquire() {
            Err(MachineError::Disk { source: OwnershipError::Held { .. }, .. })
                if Instant::now() < deadline =>
            {
                thread::sleep(LOOK);
            }
            result => return result,
        }
    }
}

/// Whether the holder was a process of our node, and is one no more. Of another node's processes only that node knows; and in
/// a jail, where no other process can be seen, each of our node's may have gone a moment ago.
fn is_gone(holder: &Owner, we: &Owner) -> bool {
    let Ok(pid) = i32::try_from(holder.pid) else { return false };
    holder.node == we.node
        && pid > 0
        && (!jail::sees_processes() || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use drover_ids::{NodeId, OwnerEpoch, VmId};

    use super::*;

    #[test]
    fn a_volume_that_is_held_for_a_moment_is_had_and_one_that_is_kept_is_not() {
        let held = || {
            let source = OwnershipError::Held { owner: None };
            Err(MachineError::Disk { disk: "disk0".to_owned(), attempt: "acquire", source })
        };
        let mut looks = 0;
        let had = while_held_for_a_moment(|| {
            looks += 1;
            if looks < 3 { held() } else { Ok(()) }
        });
        assert!(had.is_ok());
        assert!(while_held_for_a_moment(held).is_err());
    }

    #[test]
    fn only_a_dead_process_of_this_node_is_gone() {
        let owner = |node, pid| Owner {
            vm: VmId::from_u128(1),
            node: NodeId::from_u128(node),
            epoch: OwnerEpoch::new(1),
            pid,
        };
        let mut child = std::process::Command::new("true").spawn().expect("spawned");
        let pid = child.id();
        assert!(!is_gone(&owner(7, pid), &owner(7, 1)), "not before it is reaped");
        child.wait().expect("reaped");
        assert!(is_gone(&owner(7, pid), &owner(7, 1)));
        assert!(!is_gone(&owner(8, pid), &owner(7, 1)), "another node's pids mean nothing here");
        assert!(!is_gone(&owner(7, std::process::id()), &owner(7, 1)));
        assert!(!is_gone(&owner(7, 0), &owner(7, 1)));
        assert!(!is_gone(&owner(7, u32::MAX), &owner(7, 1)));
    }
}
