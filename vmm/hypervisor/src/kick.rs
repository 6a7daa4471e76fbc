//! Ending a vCPU's run from another thread.
//!
//! Two things together leave no gap: `immediate_exit` in the page shared with KVM makes the next entry return at once,
//! a signal makes the current one return. The signal alone could come just before entry and be lost.
#![expect(unsafe_code, reason = "writes one byte of the page shared with KVM; sends a signal to one thread")]

use std::{
    ptr::NonNull,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use kvm_bindings::kvm_run;
use libc::{c_int, c_void, pid_t, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::HypervisorError;

/// The signal that kicks. The first real-time signal that libc leaves to programs; nothing else here uses one.
fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn kicked(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // The signal's work is done by arriving: KVM_RUN returns with EINTR.
}

/// Makes sure that the signal interrupts instead of killing.
pub(crate) fn install_handler() -> Result<(), HypervisorError> {
    static INSTALL: Once = Once::new();
    let mut result = Ok(());
    INSTALL.call_once(|| result = register_signal_handler(kick_signal(), kicked));
    result.map_err(HypervisorError::call("prepare the signal that interrupts vCPUs"))
}

/// Ends a vCPU's run: the current one, or the next if it is not running. Clones kick the same vCPU.
///
/// The kicker first says elsewhere what it wants (a flag, a message), then kicks; the vCPU thread looks for it at every
/// [`Exit::Interrupted`](crate::Exit::Interrupted), of which some come without a kick.
#[derive(Clone, Debug)]
pub struct Kicker {
    target: Arc<Mutex<Target>>,
}

#[derive(Debug)]
struct Target {
    /// `immediate_exit` in the shared page, while the vCPU lives.
    immediate_exit: Option<NonNull<u8>>,
    /// The thread that has bound the vCPU, while it has.
    thread: Option<pid_t>,
}

// SAFETY: the pointer is used only under the mutex around `Target`, and only while the page is mapped: `Kicker::detach`
// takes it out before the vCPU unmaps the page.
unsafe impl Send for Target {}

impl Kicker {
    /// For the vCPU whose shared page this is; that vCPU calls [`detach`](Self::detach) before the page goes.
    pub(crate) fn new(run: &mut kvm_run) -> Self {
        let immediate_exit = Some(NonNull::from(&mut run.immediate_exit));
        Self { target: Arc::new(Mutex::new(Target { immediate_exit, thread: None })) }
    }

    /// Ends the vCPU's current or next run. Nothing happens once the vCPU is gone.
    pub fn kick(&self) {
        let target = self.lock();
        target.set_immediate_exit(1);
        if let Some(thread) = target.thread {
            // SAFETY: tgkill takes three integers. The thread exists: it unbinds under this lock before it ends.
            let _ = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, kick_signal()) };
        }
    }

    /// Lets runs happen again, after one was interrupted.
    pub(crate) fn rearm(&self) {
        self.lock().set_immediate_exit(0);
    }

    pub(crate) fn bind_to_this_thread(&self) -> Result<(), HypervisorError> {
        unblock_signal(kick_signal()).map_err(|error| HypervisorError::Call {
            attempt: "unblock the signal that interrupts vCPUs",
            source: std::io::Error::other(error.to_string()),
        })?;
        // SAFETY: gettid has no preconditions.
        self.lock().thread = Some(unsafe { libc::gettid() });
        Ok(())
    }

    pub(crate) fn unbind(&self) {
        self.lock().thread = None;
    }

    pub(crate) fn detach(&self) {
        let mut target = self.lock();
        target.immediate_exit = None;
        target.thread = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target {
    fn set_immediate_exit(&self, value: u8) {
        if let Some(flag) = self.immediate_exit {
            // SAFETY: the page is mapped (see `Send` above) and aligned for bytes; Rust code touches this byte only
            // through atomics.
            unsafe { AtomicU8::from_ptr(flag.as_ptr()) }.store(value, Ordering::SeqCst);
        }
    }
}
