//! The thread that looks at images whose headers have changed.
//!
//! librbd tells of a change on one of its own threads, which must not be kept and must not ask it anything. So that
//! thread only names the disk here. One thread serves all disks of the process; a disk waits in its list at most once.

use std::{
    io,
    sync::{
        OnceLock, Weak,
        atomic::Ordering,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use crate::disk::Disk;

/// Where to name disks.
pub(crate) fn changes() -> io::Result<&'static Sender<Weak<Disk>>> {
    static CHANGES: OnceLock<Result<Sender<Weak<Disk>>, io::ErrorKind>> = OnceLock::new();
    CHANGES.get_or_init(|| start().map_err(|error| error.kind())).as_ref().map_err(|kind| (*kind).into())
}

/// Names a disk, once until it has been looked at. Where this drops the last reference to it, the image still does not
/// close here: the watch that calls this keeps it open.
pub(crate) fn report(disk: &Weak<Disk>, changes: &Sender<Weak<Disk>>) {
    let Some(alive) = disk.upgrade() else { return };
    if !alive.look_wanted.swap(true, Ordering::AcqRel) {
        // The thread ends with the process.
        let _ = changes.send(Weak::clone(disk));
    }
}

fn start() -> io::Result<Sender<Weak<Disk>>> {
    let (changes, changed) = channel();
    thread::Builder::new().name("rbd-changes".to_owned()).spawn(move || look_at(&changed))?;
    Ok(changes)
}

fn look_at(changed: &Receiver<Weak<Disk>>) {
    for disk in changed {
        let Some(disk) = disk.upgrade() else { continue };
        if let Err(error) = disk.look_at_size() {
            tracing::warn!(image = disk.image.name(), %error, "cannot read the size of a disk that has changed");
        }
    }
}
