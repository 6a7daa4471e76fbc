//! An empty file system with nothing in it but what is granted, for a process that has a mount namespace of its own.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};

use crate::{JailError, files::Grant};

/// Enough for a few directories; nothing is ever written there.
const OPTIONS: &str = "size=64k,nr_inodes=256,mode=0755";

/// Makes the granted paths, under the names they have, the whole world. `at`: a directory to build it on.
pub(crate) fn enter(at: &Path, grants: &[(PathBuf, Grant)]) -> Result<(), JailError> {
    let failed = |attempt| move |source: io::Error| JailError::Io { attempt, source };
    let none: Option<&str> = None;
    // What happens here stays here.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| failed("make the mounts private")(errno.into()))?;
    mount(
        Some("drover-jail"),
        at,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(OPTIONS),
    )
    .map_err(|errno| failed("mount an empty root")(errno.into()))?;
    for (path, grant) in grants {
        show(at, path, *grant).map_err(failed("show a path in the empty root"))?;
    }
    let sealed = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    mount(none, at, none, sealed, none).map_err(|errno| failed("seal the empty root")(errno.into()))?;
    // The old root ends up below the new one, at the same place, and is then let go (pivot_root(2)).
    chdir(at)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .and_then(|()| chdir("/"))
        .map_err(|errno| failed("leave the host's root")(errno.into()))
}

/// Makes a path visible below `at`. One that the host does not have is left out.
fn show(at: &Path, path: &Path, grant: Grant) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let Ok(inside) = path.strip_prefix("/") else { return Err(io::ErrorKind::InvalidInput.into()) };
    let place = at.join(inside);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if found.is_symlink() {
        return symlink(fs::read_link(path)?, place);
    }
    if found.is_dir() {
        fs::create_dir_all(&place)?;
    } else {
        fs::write(&place, [])?;
    }
    let none: Option<&str> = None;
    mount(Some(path), &place, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID;
    if grant == Grant::Read {
        flags |= MsFlags::MS_RDONLY;
    } else {
        flags |= MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    }
    Ok(mount(none, &place, none, flags, none)?)
}
