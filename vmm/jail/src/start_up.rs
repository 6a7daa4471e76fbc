//! What a process needs to start and never again.
#![expect(unsafe_code, reason = "tells the kernel about the program's own pages")]

use std::io;

use rustix::mm::{Advice, madvise};

/// Of this architecture.
const PAGE: usize = 4096;

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    /// The first byte of the program's file in memory, and the first behind its code: the linker defines both (ld(1),
    /// PROVIDE). Between them are its constants and its code, and nothing that is ever written.
    static __executable_start: u8;
    static etext: u8;
}

/// What this process's first thread may have used of its stack, bytes: the command line's parser goes deepest.
const STACK_USED_MAX: usize = 128 << 10;

/// Gives back what the allocator has in store: what the start has freed is spread over its heap, which does not shrink by itself.
pub fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer, and gives back nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Gives back what the process's first thread, which must call this, has used of its stack before and does not now.
///
/// # Errors
/// What the kernel says; nothing has changed then.
#[inline(never)]
pub fn give_back_stack() -> io::Result<()> {
    if rustix::process::getpid() != rustix::thread::gettid() {
        return Ok(());
    }
    let here = 0_u8;
    // The page below this one as well: what this function and those that it calls have there.
    let end = (&raw const here).addr() / PAGE * PAGE - PAGE;
    let start = std::ptr::without_provenance_mut::<core::ffi::c_void>(end - STACK_USED_MAX);
    // SAFETY: a stack grows downwards, and this thread's is at the top of the address space with nothing near below it: the kernel
    // keeps 256 pages there free (stack_guard_gap). So the range has nothing but frames of functions that have returned.
    let given_back = unsafe { madvise(start, STACK_USED_MAX, Advice::LinuxDontNeed) };
    match given_back {
        // Not all of it has ever been used. What has is given back.
        Err(rustix::io::Errno::NOMEM) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives back the program's constants and code, of which a process that runs a machine needs a fraction: command line, jail,
/// configuration and the machine's set-up have run. What is needed is mapped again as it is touched, from the host's page cache,
/// and counts for this process again.
///
/// # Errors
/// What the kernel says; nothing has changed then.
pub fn forget_start_up() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    {
        let start = (&raw const __executable_start).cast_mut();
        let length = (&raw const etext).addr().saturating_sub(start.addr()) / PAGE * PAGE;
        // SAFETY: the range begins with the program's first page and ends within its code. All of it is a private mapping of
        // the program's file that nobody may write, so that every page that is dropped is read from there again, the same.
        unsafe { madvise(start.cast(), length, Advice::LinuxDontNeed)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident kilobytes of this program's code.
    fn resident() -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let program = std::env::current_exe().unwrap();
        let program = program.to_str().unwrap();
        let mut in_code = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if line.split(' ').next().is_some_and(|first| first.contains('-')) {
                in_code = line.contains(" r-xp ") && line.ends_with(program);
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| in_code) {
                sum += rest.split_whitespace().next().unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn a_heap_and_a_stack_are_as_good_as_before() {
        let kept = vec![7_u8; 1 << 20];
        drop((0..1000).map(|n| vec![0_u8; 64 + n]).collect::<Vec<_>>());
        give_back_heap();
        give_back_stack().unwrap();
        assert!(kept.iter().all(|byte| *byte == 7));
        assert_eq!(vec![3_u8; 1 << 16].len(), 1 << 16);
    }

    #[test]
    fn what_is_forgotten_is_there_again_when_it_is_needed() {
        let before = resident();
        forget_start_up().unwrap();
        let after = resident();
        // Other tests may run meanwhile, and need some of it.
        assert!(after < before, "{after} of {before} KiB");
    }
}
