//! A child that never outlives whoever started it.

use std::{
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// What a VMM may take to end after its guest has, on a busy machine.
const END: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// A child that is killed if it is not waited for.
#[derive(Debug)]
pub struct Ended(pub Child);

impl Ended {
    /// The child's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it does not in time, or fails.
    pub fn wait(mut self, what: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.0.try_wait().with_context(|| format!("cannot wait for {what}"))? {
                if !status.success() {
                    bail!("{what} ended with {status}");
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{what} did not end within {END:?}");
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Nothing is left to do about a child that cannot be killed.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_that_fails_is_an_error_and_one_that_is_dropped_is_gone() {
        let child = |program: &str| Ended(Command::new(program).arg("1000").spawn().unwrap());
        assert!(child("false").wait("it").unwrap_err().to_string().starts_with("it ended with"));
        assert!(child("true").wait("it").is_ok());
        let mut sleeper = child("sleep");
        assert!(sleeper.is_alive());
        let pid = sleeper.pid();
        drop(sleeper);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
