//! What a guest says on its serial port, and when it can be read outside of the VMM.
//!
//! Every VMM writes its serial port to a file of its own, in a folder that the kernel watches for us (inotify(7)): a wait ends
//! with the write itself, whoever made it.

use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use crate::ensure_uninterrupted;

/// Longest wait between two looks at whether the VMM lives, milliseconds.
const LOOK_MS: u8 = 100;

/// A serial port's file, watched from before it is written.
#[derive(Debug)]
pub struct Console {
    changes: Inotify,
    path: PathBuf,
}

impl Console {
    /// Watches a file, which need not be there yet. Its folder is.
    ///
    /// # Errors
    /// If the kernel does not watch it.
    pub fn watch(path: &Path) -> anyhow::Result<Self> {
        let changes = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let folder = path.parent().context("a console's file is in a folder")?;
        changes
            .add_watch(folder, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY)
            .with_context(|| format!("cannot watch {}", folder.display()))?;
        Ok(Self { changes, path: path.to_owned() })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has been said so far.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// Waits until what has been said is as `wanted`, and returns when that was seen.
    ///
    /// # Errors
    /// If the VMM ends, the limit is over, or the bench is interrupted, before that.
    pub fn wait(
        &self,
        limit: Duration,
        mut alive: impl FnMut() -> bool,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + limit;
        loop {
            ensure_uninterrupted()?;
            let lives = alive();
            if wanted(&self.text()) {
                return Ok(Instant::now());
            }
            if !lives {
                bail!("the VMM has ended; its guest said: {}", self.text());
            }
            if Instant::now() > deadline {
                bail!("not within {limit:?}; the guest said: {}", self.text());
            }
            poll(&mut [PollFd::new(self.changes.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK_MS))?;
            match self.changes.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_written_is_seen_and_what_is_not_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let console = Console::watch(&path).unwrap();
        let writer = thread::spawn(move || fs::write(path, "{hello").unwrap());
        console.wait(LIMIT, || true, |text| text.contains('{')).unwrap();
        writer.join().unwrap();
        let why = console.wait(LIMIT, || false, |text| text.contains('}')).unwrap_err().to_string();
        assert!(why.contains("{hello"), "{why}");
        assert!(console.wait(Duration::ZERO, || true, |text| text.contains('}')).is_err());
    }
}
