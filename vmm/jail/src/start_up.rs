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
    fn what_is_forgotten_is_there_again_when_it_is_needed() {
        let before = resident();
        forget_start_up().unwrap();
        let after = resident();
        // Other tests may run meanwhile, and need some of it.
        assert!(after < before, "{after} of {before} KiB");
    }
}
