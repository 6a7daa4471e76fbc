//! System calls by role, and the last words of a thread that made another one.
#![expect(unsafe_code, reason = "a handler of SIGSYS")]

use std::{io, sync::OnceLock};

use drover_thread_role::{Role, confine_with};
use seccompiler::{apply_filter, sock_filter};
use syscalls::Sysno;

use crate::{JailError, needs::Needs};

/// Programs by role, and the whole process's; of each one for every combination of needs.
mod programs {
    use seccompiler::sock_filter;

    include!(concat!(env!("OUT_DIR"), "/programs.rs"));
}

/// What becomes of a thread that makes a system call that is not in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The process ends by SIGSYS, after the call's name has been written to standard error.
    Kill,
    /// The kernel's log names it (`dmesg`, or the audit log), and it goes on: for whoever completes a list.
    Log,
    /// There are no filters.
    Off,
}

/// How every thread is confined, once that is decided.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    others: Others,
    needs: Needs,
}

/// What becomes of calls that no line allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Trap,
    Log,
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// Confines the process, and every thread that takes a role from now on. Must be called before there are threads.
pub(crate) fn confine(seccomp: Seccomp, needs: Needs) -> Result<(), JailError> {
    let others = match seccomp {
        Seccomp::Kill => Others::Trap,
        Seccomp::Log => Others::Log,
        Seccomp::Off => return Ok(()),
    };
    #[cfg(target_env = "gnu")]
    settle_allocator(needs);
    install_handler().map_err(|source| JailError::Io { attempt: "catch SIGSYS", source })?;
    let chosen = Chosen { others, needs };
    if CHOSEN.set(chosen).is_err() {
        return Err(JailError::Twice);
    }
    chosen.apply(&programs::PROCESS)?;
    confine_with(confine_thread);
    Ok(())
}

/// What a thread does when it takes its role. One that cannot be confined must not run.
fn confine_thread(role: Role) {
    let Some(chosen) = CHOSEN.get() else { return };
    if let Err(error) = chosen.apply(of_role(role)) {
        tracing::error!(role = role.name(), %error, "a thread cannot be confined: ending the process");
        std::process::exit(EXIT_NOT_CONFINED);
    }
}

/// Exit status of a process with a thread that could not be confined.
const EXIT_NOT_CONFINED: i32 = 5;

/// By needs.
type Programs = [&'static [sock_filter]; Needs::ALL.len()];

fn of_role(role: Role) -> &'static Programs {
    match role {
        Role::Main => &programs::MAIN,
        Role::Vm => &programs::VM,
        Role::Vcpu => &programs::VCPU,
        Role::Device => &programs::DEVICE,
        Role::Console => &programs::CONSOLE,
        Role::Lease => &programs::LEASE,
        Role::Migration => &programs::MIGRATION,
        Role::Watch => &programs::WATCH,
        Role::Load => &programs::LOAD,
    }
}

impl Chosen {
    /// Confines this thread. Allocates nothing unless it is debugged: each thread does it before anything else.
    fn apply(self, programs: &Programs) -> Result<(), JailError> {
        let program = programs[self.needs.index()];
        let applied = match self.others {
            Others::Trap => apply_filter(program),
            Others::Log => apply_filter(&logging(program)),
        };
        applied.map_err(|error| JailError::Seccomp(error.to_string()))
    }
}

/// The same program, but where it traps, the kernel's log has the call.
fn logging(program: &[sock_filter]) -> Vec<sock_filter> {
    const RETURN: u16 = 0x06;
    let instead = |one: &sock_filter| match (one.code, one.k) {
        (RETURN, libc::SECCOMP_RET_TRAP) => sock_filter { k: libc::SECCOMP_RET_LOG, ..one.clone() },
        _ => one.clone(),
    };
    program.iter().map(instead).collect()
}

/// Separate heaps of the allocator, for librbd's threads: they allocate for every request.
#[cfg(target_env = "gnu")]
const HEAPS_WITH_RBD: libc::c_int = 8;
/// Without them nobody allocates once a machine runs, and what is free in one heap is given back ([`crate::give_back_heap`]).
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 1;

/// glibc opens files when it allocates: from /sys it learns how many processors there are, to decide whether threads get
/// another heap, and from /proc whether memory is overcommitted, to decide how a heap shrinks. What is set it does not look
/// for, and heaps that do not shrink need no answer: what is large is mapped, and given back, on its own.
#[cfg(target_env = "gnu")]
fn settle_allocator(needs: Needs) {
    let heaps = if needs.rbd { HEAPS_WITH_RBD } else { HEAPS };
    for (parameter, value) in [(libc::M_ARENA_MAX, heaps), (libc::M_TRIM_THRESHOLD, libc::c_int::MAX)] {
        // SAFETY: mallopt takes two integers.
        unsafe { libc::mallopt(parameter, value) };
    }
}

fn install_handler() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refused as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the action is initialised, its handler has the signature of SA_SIGINFO, and nothing is read back.
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Offset of `si_syscall` in siginfo_t on x86-64, in units of an int: after signo, errno, code, padding and an address.
const SI_SYSCALL: usize = 6;

/// Names the call and ends the process. Only async-signal-safe calls are made here, and only such as every list allows.
extern "C" fn refused(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole siginfo_t, whose seventh int is the number of the system call for SIGSYS.
    let number = unsafe { info.cast::<libc::c_int>().wrapping_add(SI_SYSCALL).read() };
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, its NUL included.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut line = Line::default();
    line.add(b"seccomp: thread '");
    line.add(name.split(|byte| *byte == 0).next().unwrap_or_default());
    line.add(b"' made the system call ");
    match usize::try_from(number).ok().and_then(Sysno::new) {
        Some(call) => line.add(call.name().as_bytes()),
        None => line.add(b"of a number that is unknown"),
    }
    line.add(b", which its list does not allow: ending the process\n");
    // SAFETY: the buffer is as long as is said.
    unsafe { libc::write(libc::STDERR_FILENO, line.text.as_ptr().cast(), line.length) };
    // SIGSYS is blocked while its handler runs: another one ends the process as if there were no handler, which is how its
    // parent learns why. No list has this call.
    // SAFETY: the call takes no pointer, and is not carried out.
    unsafe { libc::syscall(libc::SYS_ptrace, u64::MAX, 0, 0, 0) };
    // SAFETY: ends the process.
    unsafe { libc::_exit(128 + libc::SIGSYS) };
}

/// A line without an allocation.
struct Line {
    text: [u8; 256],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { text: [0; 256], length: 0 }
    }
}

impl Line {
    fn add(&mut self, bytes: &[u8]) {
        let room = &mut self.text[self.length..];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.length += taken;
    }
}
