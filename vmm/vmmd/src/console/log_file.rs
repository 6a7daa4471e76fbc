//! `console.log`: what the guest said, kept across processes in two files of bounded size.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::Chunk;

/// Size at which `console.log` becomes `console.log.1`, bytes. Both together are the most that is kept (B9).
pub(super) const LOG_BYTES_MAX: u64 = 1 << 20;

/// The open log.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl LogFile {
    /// Opens the log in `run_dir` and goes on where an earlier process has left it.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join("console.log");
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, file, length })
    }

    /// Adds what the guest said; where some of it was lost, a line says how much.
    pub(super) fn append(&mut self, chunk: &Chunk) -> io::Result<()> {
        if chunk.lost > 0 {
            self.write(format!("\n[drover: {} bytes of console output lost]\n", chunk.lost).as_bytes())?;
        }
        self.write(&chunk.bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > LOG_BYTES_MAX {
            fs::rename(&self.path, self.path.with_added_extension("1"))?;
            self.file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            self.length = 0;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(byte: u8) -> Chunk {
        Chunk { bytes: vec![byte; 400 << 10], lost: 0, next: 0 }
    }

    #[test]
    fn the_log_rotates_and_stays_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = LogFile::open(dir.path()).expect("opened");
        for byte in b'a'..=b'g' {
            log.append(&line(byte)).expect("written");
        }
        let newest = fs::read(dir.path().join("console.log")).expect("there");
        let older = fs::read(dir.path().join("console.log.1")).expect("there");
        assert_eq!((newest.first(), older.first()), (Some(&b'g'), Some(&b'e')));
        assert!(newest.len() as u64 <= LOG_BYTES_MAX && older.len() as u64 <= LOG_BYTES_MAX);
    }

    #[test]
    fn a_later_process_goes_on_in_the_same_log() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["first\n", "second\n"] {
            let chunk = Chunk { bytes: text.into(), ..Chunk::default() };
            LogFile::open(dir.path()).expect("opened").append(&chunk).expect("written");
        }
        assert_eq!(fs::read_to_string(dir.path().join("console.log")).expect("there"), "first\nsecond\n");
    }

    #[test]
    fn lost_output_leaves_a_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = LogFile::open(dir.path()).expect("opened");
        log.append(&Chunk { bytes: b"x\n".into(), lost: 7, next: 9 }).expect("written");
        let kept = fs::read_to_string(dir.path().join("console.log")).expect("there");
        assert_eq!(kept, "\n[drover: 7 bytes of console output lost]\nx\n");
    }
}
