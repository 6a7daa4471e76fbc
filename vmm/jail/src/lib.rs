//! What a VM's process gives up before a guest can speak to it.
//!
//! The guest's requests are served by this process; whoever breaks out of the guest is in it, and finds:
//!
//! | layer | what is left |
//! |---|---|
//! | namespaces (made by whoever starts the process) | no other process, no network, no shared memory of others |
//! | an empty root ([`Plan::root`]) | the run directory |
//! | identity ([`Plan::uid`]) | a user who owns nothing else; no capability, no way back to one |
//! | landlock | no file but the run directory's, no TCP connection, no signal to another process |
//! | seccomp, by the thread's role | the calls in `filters/<role>` |
//!
//! A layer that this kernel does not have is left out and reported; one that was asked for and fails is an error. The
//! process calls [`confine`] once, while it has one thread and nothing untrusted has been read.
#![deny(unsafe_code)]

mod files;
#[cfg(test)]
mod lists;
mod needs;
mod privileges;
#[cfg(test)]
mod program;
mod root;
mod seccomp;
mod start_up;

use std::{io, path::PathBuf};

pub use files::{Enforced, Grant};
use needs::Needs;
pub use seccomp::Seccomp;
pub use start_up::{forget_start_up, give_back_heap, give_back_stack};

/// Why the process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The system refused a step.
    #[error("cannot {attempt}")]
    Io {
        /// The step.
        attempt: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Landlock refused, though the kernel has it.
    #[error("landlock: {0}")]
    Landlock(String),
    /// A filter was refused.
    #[error("seccomp: {0}")]
    Seccomp(String),
    /// The process is confined already.
    #[error("the process is confined already")]
    Twice,
}

/// How to confine this process.
#[derive(Debug)]
pub struct Plan {
    /// An existing directory to build an empty root on, for a process with a mount namespace of its own.
    pub root: Option<PathBuf>,
    /// The user and group to become; needs the privilege to.
    pub uid: Option<u32>,
    /// All that may be opened.
    pub grants: Vec<(PathBuf, Grant)>,
    /// The process has disks in Ceph: librbd makes connections and threads by itself.
    pub rbd: bool,
    /// The VM has sockets to the host: one of its devices connects to local sockets.
    pub vsock: bool,
    /// Whether landlock is used.
    pub landlock: bool,
    /// What becomes of calls that are in no list.
    pub seccomp: Seccomp,
}

/// Which layers are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The file system is empty but for what was granted.
    pub root: bool,
    /// The process is nobody.
    pub identity: bool,
    /// What this kernel knows of landlock.
    pub landlock: Enforced,
    /// Whether calls are filtered, and what becomes of others.
    pub seccomp: Seccomp,
}

/// What librbd reads: itself and its plug-ins, how to find them, names of hosts, Ceph's settings.
pub fn rbd_grants() -> Vec<(PathBuf, Grant)> {
    const READ: [&str; 14] = [
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/etc/ld.so.cache",
        "/etc/ceph",
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/host.conf",
        "/etc/gai.conf",
        "/etc/localtime",
        "/dev/urandom",
        "/sys/devices/system",
    ];
    READ.iter().map(|path| (PathBuf::from(path), Grant::Read)).collect()
}

/// Confines this process for good. Must be called while it has one thread.
///
/// # Errors
/// [`JailError`]: what was asked for cannot be had, and the process must end.
pub fn confine(plan: &Plan) -> Result<Confinement, JailError> {
    let failed = |attempt| move |source| JailError::Io { attempt, source };
    if let Some(at) = &plan.root {
        root::enter(at, &plan.grants)?;
    }
    // Looked up as whoever we still are.
    let rules = plan.landlock.then(|| files::prepare(&plan.grants, plan.rbd)).transpose()?;
    if let Some(uid) = plan.uid {
        privileges::become_nobody(uid).map_err(failed("become nobody"))?;
    }
    privileges::harden().map_err(failed("give privileges up"))?;
    let landlock = rules.map_or(Ok(Enforced::Not), files::Rules::enforce)?;
    seccomp::confine(plan.seccomp, Needs { rbd: plan.rbd, vsock: plan.vsock })?;
    Ok(Confinement {
        root: plan.root.is_some(),
        identity: plan.uid.is_some(),
        landlock,
        seccomp: plan.seccomp,
    })
}
