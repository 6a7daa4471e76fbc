//! The console log as vmmd keeps it in two files, streamed; also of a VM that has ended.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use drover_wire::vm::v1::ConsoleOutput;
use rustix::fs::OFlags;
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{process::Process, state_dir::RunDir, vmmd::io_status};

/// Bytes of one message.
const CHUNK: usize = 64 << 10;
/// Messages read ahead of a slow reader.
const CHUNKS_AHEAD: usize = 4;
/// Between two looks for more. A person does not see the difference to zero.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

/// Streams the last `tail` bytes (0: all that is retained), and then, while `follow` lives, what is added.
pub(crate) async fn stream(
    dir: RunDir,
    tail: u64,
    follow: Option<Arc<Process>>,
) -> Result<ReceiverStream<Result<ConsoleOutput, Status>>, Status> {
    let opened =
        spawn_blocking(move || Log::open(&dir, tail)).await.map_err(|_| Status::internal("no answer"))?;
    let mut log = match opened {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Status::not_found("this VM has no console log on this node"));
        }
        Err(error) => return Err(io_status("cannot read the console log", &error)),
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        loop {
            // Looked at before the read: what was written before the end is read after it was noticed.
            let ended = match &follow {
                Some(process) => tokio::time::timeout(Duration::ZERO, process.ended()).await.is_ok(),
                None => true,
            };
            let (back, chunk) = match spawn_blocking(move || (log.next_chunk(), log)).await {
                Ok((chunk, back)) => (back, chunk),
                Err(_) => return,
            };
            log = back;
            let message = match chunk {
                Ok(data) if data.is_empty() && ended => return,
                Ok(data) if data.is_empty() => {
                    tokio::select! {
                        () = tokio::time::sleep(FOLLOW_PAUSE) => continue,
                        () = sender.closed() => return,
                    }
                }
                Ok(data) => Ok(ConsoleOutput { data, lost: 0 }),
                Err(error) => Err(io_status("cannot read the console log", &error)),
            };
            let failed = message.is_err();
            if sender.send(message).await.is_err() || failed {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// A position in the log, which survives its rotation.
#[derive(Debug)]
struct Log {
    dir: RunDir,
    /// Read up to its end, then on to the current file.
    file: File,
    inode: u64,
}

impl Log {
    fn open(dir: &RunDir, tail: u64) -> io::Result<Self> {
        let (current, rotated) = (dir.console_log(), dir.console_log_rotated());
        let older = open_if_present(&rotated)?;
        let newer = match open_if_present(&current)? {
            Some(newer) => newer,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let tail = if tail == 0 { u64::MAX } else { tail };
        let newer_length = newer.metadata()?.len();
        let start = |mut file: File, back: u64| -> io::Result<Self> {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(back)))?;
            let inode = file.metadata()?.ino();
            Ok(Self { dir: dir.clone(), file, inode })
        };
        match older {
            Some(older) if tail > newer_length => start(older, tail - newer_length),
            _ => start(newer, tail),
        }
    }

    /// The next bytes; empty at the present end.
    fn next_chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut data = Vec::with_capacity(CHUNK);
        (&mut self.file).take(CHUNK as u64).read_to_end(&mut data)?;
        if !data.is_empty() {
            return Ok(data);
        }
        // The end of this file. If it has been set aside since, the log goes on in a newer one; if it has become
        // shorter, it was begun anew.
        let Some(mut current) = open_if_present(&self.dir.console_log())? else { return Ok(data) };
        let meta = current.metadata()?;
        if meta.ino() == self.inode && self.file.stream_position()? <= meta.len() {
            return Ok(data);
        }
        (&mut current).take(CHUNK as u64).read_to_end(&mut data)?;
        self.inode = meta.ino();
        self.file = current;
        Ok(data)
    }
}

fn open_if_present(path: &Path) -> io::Result<Option<File>> {
    // A guest's process may have had this directory: what is not a plain file is not followed, and not waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    match OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the console log is not a plain file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use drover_ids::VmId;

    use super::*;
    use crate::state_dir::StateDir;

    struct Fixture {
        dir: RunDir,
        _folder: tempfile::TempDir,
    }

    fn fixture(rotated: Option<&str>, current: &str) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = StateDir::open(folder.path()).expect("a state directory").run_dir(VmId::from_u128(1));
        fs::create_dir_all(dir.path()).expect("a run directory");
        if let Some(text) = rotated {
            fs::write(dir.console_log_rotated(), text).expect("written");
        }
        fs::write(dir.console_log(), current).expect("written");
        Fixture { dir, _folder: folder }
    }

    fn read(log: &mut Log) -> String {
        let mut text = String::new();
        loop {
            let chunk = log.next_chunk().expect("readable");
            if chunk.is_empty() {
                return text;
            }
            text.push_str(&String::from_utf8(chunk).expect("text"));
        }
    }

    fn check(tail: u64, expect: &str) {
        let fixture = fixture(Some("older "), "newer");
        assert_eq!(read(&mut Log::open(&fixture.dir, tail).expect("opened")), expect, "tail {tail}");
    }

    #[test]
    fn the_tail_may_span_both_files() {
        check(0, "older newer");
        check(3, "wer");
        check(5, "newer");
        check(8, "er newer");
        check(1000, "older newer");
    }

    #[test]
    fn a_rotation_loses_nothing() {
        let fixture = fixture(None, "one ");
        let mut log = Log::open(&fixture.dir, 0).unwrap();
        assert_eq!(read(&mut log), "one ");
        fs::write(fixture.dir.console_log(), "one two ").unwrap();
        fs::rename(fixture.dir.console_log(), fixture.dir.console_log_rotated()).unwrap();
        fs::write(fixture.dir.console_log(), "three").unwrap();
        assert_eq!(read(&mut log), "two three");
    }

    #[test]
    fn a_log_that_was_begun_anew_is_read_from_its_start() {
        let fixture = fixture(None, "a long first life");
        let mut log = Log::open(&fixture.dir, 0).unwrap();
        read(&mut log);
        fs::write(fixture.dir.console_log(), "second").unwrap();
        assert_eq!(read(&mut log), "second");
    }

    #[test]
    fn a_vm_without_a_log_is_not_found() {
        let fixture = fixture(None, "");
        fs::remove_file(fixture.dir.console_log()).unwrap();
        assert_eq!(Log::open(&fixture.dir, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
