//! A program that runs until it ends or is no longer wanted.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead as _, BufReader, Read},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{BuildError, Order, error::io_error};

/// Between two looks at whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// For a program that is told to end: mmdebstrap unmounts and removes what it has made.
const END_WITHIN: Duration = Duration::from_secs(20);
/// Lines of output that an error repeats.
const LAST_WORDS: usize = 15;

/// Whether `program` can be run.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(sbin).any(|folder| folder.join(program).is_file())
}

/// Runs a program and passes on each line that it says to `line`.
pub(crate) fn run(
    command: &mut Command,
    order: &Order<'_>,
    mut line: impl FnMut(&str),
) -> Result<(), BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    // A group of its own: an interrupt at the terminal reaches us alone, and we end all of it in order.
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(io_error(format!("cannot run {program}")))?;
    let mut child = EndedWithUs(child);
    let (sender, lines) = mpsc::channel();
    let readers = [
        child.0.stdout.take().map(|pipe| forward(pipe, sender.clone())),
        child.0.stderr.take().map(|pipe| forward(pipe, sender)),
    ];
    let mut words = VecDeque::new();
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(said) => {
                line(&said);
                words.push_back(said);
                if words.len() > LAST_WORDS {
                    words.pop_front();
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if order.cancelled.load(Ordering::Relaxed) {
            return Err(BuildError::Cancelled);
        }
    }
    for reader in readers.into_iter().flatten() {
        reader.join().ok();
    }
    let status = child.0.wait().map_err(io_error(format!("cannot wait for {program}")))?;
    if status.success() {
        return Ok(());
    }
    let words = words.into_iter().collect::<Vec<_>>().join("\n");
    Err(BuildError::Failed { program, status: status.to_string(), words })
}

fn forward(pipe: impl Read + Send + 'static, to: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            // A progress bar writes over itself: its last state is the line.
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().to_owned();
            if to.send(line).is_err() {
                return;
            }
        }
    })
}

/// Ends the program and everything that it started, first by asking.
struct EndedWithUs(Child);

impl Drop for EndedWithUs {
    fn drop(&mut self) {
        let Ok(group) = i32::try_from(self.0.id()) else { return };
        let end = Instant::now() + END_WITHIN;
        if matches!(self.0.try_wait(), Ok(None)) {
            killpg(Pid::from_raw(group), Signal::SIGTERM).ok();
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
                thread::sleep(LOOK);
            }
            // Whatever is left of the group; nothing, if it ended well.
            killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
            self.0.wait().ok();
        }
    }
}
