//! What a thread is for.
//!
//! The crates that start threads know what each one does; what a thread may ask of the kernel is the business of the
//! process it runs in. So a thread is started with a [`Role`], and a process that confines its threads says once how
//! ([`confine_with`]). Where nobody has said so, a role is a word and nothing else.
#![forbid(unsafe_code)]

use std::{
    io,
    sync::OnceLock,
    thread::{Builder, JoinHandle},
};

/// The kinds of threads in a virtual machine's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Serves the agent's calls.
    Main,
    /// Builds the machine, opens what it is told to open, and starts every other thread. It and librbd's threads, which are
    /// its children, may do whatever any thread of the process may.
    Vm,
    /// Runs a virtual processor, and the devices it touches.
    Vcpu,
    /// Serves one queue of a device.
    Device,
    /// Writes the console's log.
    Console,
    /// Watches the lease, and ends the process when it is over.
    Lease,
    /// Moves the machine to another host, or receives it.
    Migration,
    /// Watches for storage that does not answer.
    Watch,
    /// Brings a suspended machine's memory from its file.
    Load,
}

impl Role {
    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::Main,
        Self::Vm,
        Self::Vcpu,
        Self::Device,
        Self::Console,
        Self::Lease,
        Self::Migration,
        Self::Watch,
        Self::Load,
    ];

    /// Its name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vm => "vm",
            Self::Vcpu => "vcpu",
            Self::Device => "device",
            Self::Console => "console",
            Self::Lease => "lease",
            Self::Migration => "migration",
            Self::Watch => "watch",
            Self::Load => "load",
        }
    }
}

type Confine = fn(Role);

static CONFINE: OnceLock<Confine> = OnceLock::new();

/// Has every thread that takes a role from now on call this first, on itself. Only the first call counts.
pub fn confine_with(confine: fn(Role)) {
    let _ = CONFINE.set(confine);
}

/// Takes the role for the thread that calls this, for as long as it lives.
pub fn enter(role: Role) {
    if let Some(confine) = CONFINE.get() {
        confine(role);
    }
}

/// Starts a thread that has the role before its first own step.
///
/// # Errors
/// As [`Builder::spawn`].
pub fn spawn<T: Send + 'static>(
    role: Role,
    builder: Builder,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    builder.spawn(move || {
        enter(role);
        body()
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static TAKEN: Cell<Option<Role>> = const { Cell::new(None) });

    #[test]
    fn a_thread_has_its_role_before_its_first_step_and_its_parent_has_not() {
        confine_with(|role| TAKEN.set(Some(role)));
        let child = spawn(Role::Vcpu, Builder::new(), || TAKEN.get()).expect("started");
        assert_eq!(child.join().expect("no panic"), Some(Role::Vcpu));
        assert_eq!(TAKEN.get(), None);
    }
}
