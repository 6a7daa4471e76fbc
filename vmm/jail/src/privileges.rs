//! Identity and privileges.

use std::io;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::{
    process::{
        DumpableBehavior, Resource, Rlimit, getpriority_process, getrlimit, set_dumpable_behavior, setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// Niceness runs from 19 down to -20; the limit counts the other way round, from 1 to 40 (getrlimit(2)).
const NICENESS_TO_LIMIT: i32 = 20;

/// Files that the process may have open: a few hundred are used by a machine with many disks.
const FILES_MAX: u64 = 4096;

/// Becomes a user who owns nothing else, and gives every privilege up, for good.
pub(crate) fn become_nobody(uid: u32) -> io::Result<()> {
    // Where even this is not allowed, migrations are not nice (vmmd's courtesy).
    let _ = leave_niceness();
    for capability in CapabilitySet::all().iter() {
        // A kernel that does not know it does not grant it.
        let _ = remove_capability_from_bounding_set(capability);
    }
    setgroups(&[])?;
    setresgid(Gid::from_raw(uid), Gid::from_raw(uid), Gid::from_raw(uid))?;
    setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid))?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

/// What anybody can give up: programs with privileges of their own, core files with a guest's memory in them.
pub(crate) fn harden() -> io::Result<()> {
    set_no_new_privs(true)?;
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, nothing)?;
    let now = getrlimit(Resource::Nofile);
    let files = Some(now.maximum.map_or(FILES_MAX, |maximum| maximum.min(FILES_MAX)));
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// A migration's thread is nice while it copies and must be able to stop being so: up to the niceness that the process
/// has now, nobody needs a privilege.
fn leave_niceness() -> io::Result<()> {
    let own = getpriority_process(None)?;
    let limit = u64::try_from(NICENESS_TO_LIMIT - own).unwrap_or(0);
    Ok(setrlimit(Resource::Nice, Rlimit { current: Some(limit), maximum: Some(limit) })?)
}
