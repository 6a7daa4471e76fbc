//! `console.log`: what the guest said, kept across processes in two files of bounded size.
//!
//! A VM may leave a host and come back to it: a line of the log's own says with which owner epoch the following was said, so
//! that the logs of several hosts can be put in order. What follows it continues, to the byte, what the epoch before it left
//! unfinished on another host.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use drover_ids::OwnerEpoch;
use nix::fcntl::OFlag;

use super::Chunk;

/// Size at which `console.log` becomes `console.log.1`, bytes. Both together are the most that is kept (B9).
pub(super) const LOG_BYTES_MAX: u64 = 1 << 20;

/// Room for the log's own lines before one chunk.
const OWN_LINES_MAX: u64 = 160;

/// The open log.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// The epoch that the last line of the log's own in this file names.
    named: Option<OwnerEpoch>,
}

impl LogFile {
    /// Opens the log in `run_dir` and goes on where an earlier process has left it.
    pub(crate) fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join("console.log");
        let file = open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, file, length, named: None })
    }

    /// The file that is written.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where the older part is.
    pub(crate) fn older(&self) -> PathBuf {
        self.path.with_added_extension("1")
    }

    /// Adds what the guest said under an owner; where some of it was lost, a line says how much.
    pub(super) fn append(&mut self, owner: OwnerEpoch, chunk: &Chunk) -> io::Result<()> {
        self.make_room(chunk.bytes.len())?;
        if self.named != Some(owner) {
            // Its own line break belongs to the mark, not to the guest.
            let start = if self.length > 0 { "\n" } else { "" };
            self.write(format!("{start}[drover: owner epoch {owner}]\n").as_bytes())?;
            self.named = Some(owner);
        }
        if chunk.lost > 0 {
            self.write(format!("\n[drover: {} bytes of console output lost]\n", chunk.lost).as_bytes())?;
        }
        self.write(&chunk.bytes)
    }

    /// Sets the file aside if it would grow too large.
    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        if self.length + bytes as u64 + OWN_LINES_MAX > LOG_BYTES_MAX {
            fs::rename(&self.path, self.older())?;
            self.file = open(&self.path)?;
            (self.length, self.named) = (0, None);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Opens a plain file. An earlier process in this directory may have been a guest's, and have left anything there.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "console.log is not a plain file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: OwnerEpoch = OwnerEpoch::new(1);

    fn line(byte: u8) -> Chunk {
        Chunk { bytes: vec![byte; 400 << 10], lost: 0, next: 0 }
    }

    #[test]
    fn the_log_rotates_and_stays_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = LogFile::open(dir.path()).expect("opened");
        for byte in b'a'..=b'g' {
            log.append(EPOCH, &line(byte)).expect("written");
        }
        let newest = fs::read(dir.path().join("console.log")).expect("there");
        let older = fs::read(dir.path().join("console.log.1")).expect("there");
        assert_eq!((newest.last(), older.last()), (Some(&b'g'), Some(&b'f')));
        assert!(newest.starts_with(b"[drover: owner epoch 1]\n"), "each file says whose it is");
        assert!(newest.len() as u64 <= LOG_BYTES_MAX && older.len() as u64 <= LOG_BYTES_MAX);
    }

    #[test]
    fn a_later_process_goes_on_in_the_same_log() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["first\n", "second\n"] {
            let chunk = Chunk { bytes: text.into(), ..Chunk::default() };
            LogFile::open(dir.path()).expect("opened").append(EPOCH, &chunk).expect("written");
        }
        assert_eq!(
            fs::read_to_string(dir.path().join("console.log")).expect("there"),
            "[drover: owner epoch 1]\nfirst\n\n[drover: owner epoch 1]\nsecond\n"
        );
    }

    #[test]
    fn what_one_epoch_left_unfinished_the_next_one_continues_after_a_mark() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = LogFile::open(dir.path()).expect("opened");
        for (epoch, text) in [(1, "be"), (1, "gin"), (3, "end\n")] {
            let chunk = Chunk { bytes: text.into(), ..Chunk::default() };
            log.append(OwnerEpoch::new(epoch), &chunk).expect("written");
        }
        let kept = fs::read_to_string(dir.path().join("console.log")).expect("there");
        assert_eq!(kept, "[drover: owner epoch 1]\nbegin\n[drover: owner epoch 3]\nend\n");
    }

    #[test]
    fn lost_output_leaves_a_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = LogFile::open(dir.path()).expect("opened");
        log.append(EPOCH, &Chunk { bytes: b"x\n".into(), lost: 7, next: 9 }).expect("written");
        let kept = fs::read_to_string(dir.path().join("console.log")).expect("there");
        assert_eq!(kept, "[drover: owner epoch 1]\n\n[drover: 7 bytes of console output lost]\nx\n");
    }
}
