//! The terminal as a serial console: raw while attached, as it was afterwards on every way out.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    thread,
};

use anyhow::Context as _;
use drover_client::{Client, Console, Error, Streaming, vm_api::ConsoleOutput};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Ctrl-], as telnet and virsh have it.
const DETACH: u8 = 0x1d;
/// Keystrokes read ahead of the network.
const INPUT_DEPTH: usize = 64;

/// Makes the terminal raw until it is dropped.
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(&input).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&input, SetArg::TCSANOW, &raw).context("cannot make the terminal raw")?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody left to tell if this fails.
            tcsetattr(io::stdin(), SetArg::TCSANOW, before).ok();
        }
    }
}

/// Why an attached console came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Detached,
    ByTheVm,
    BySignal,
}

/// Connects the terminal to a console until it ends or Ctrl-] is typed.
pub(crate) async fn attach(client: &Client, mut console: Console) -> anyhow::Result<Ended> {
    // These would end the process with the terminal still raw.
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hung_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let raw = RawTerminal::enter()?;
    let interactive = raw.before.is_some();
    if interactive {
        eprint!("attached; Ctrl-] detaches\r\n");
    }
    let mut keys = keyboard();
    let mut typing = true;
    loop {
        tokio::select! {
            output = next(client, &mut console.output) => match output? {
                None => return Ok(Ended::ByTheVm),
                Some(output) => show(&output.data, output.lost)?,
            },
            key = keys.recv(), if typing => match key {
                None => typing = false,
                Some(keys) => {
                    // What a script pipes in is the guest's, whatever it contains.
                    let (before, detach) = if interactive { until_detach(&keys) } else { (&keys[..], false) };
                    if !before.is_empty() && !console.send(before.to_vec()).await {
                        return Ok(Ended::ByTheVm);
                    }
                    if detach {
                        return Ok(Ended::Detached);
                    }
                }
            },
            _ = terminated.recv() => return Ok(Ended::BySignal),
            _ = hung_up.recv() => return Ok(Ended::BySignal),
        }
    }
}

/// The next part of a console's output; `None` at its end.
pub(crate) async fn next(
    client: &Client,
    output: &mut Streaming<ConsoleOutput>,
) -> Result<Option<ConsoleOutput>, Error> {
    output.message().await.map_err(|status| Error::from_stream(client, &status))
}

/// Writes console bytes as they are; says how many were lost before them.
pub(crate) fn show(data: &[u8], lost: u64) -> anyhow::Result<()> {
    if lost > 0 {
        eprint!("\r\n[{lost} bytes lost: this reader was too slow]\r\n");
    }
    let mut out = io::stdout().lock();
    out.write_all(data).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// What was typed before a Ctrl-], and whether there was one.
fn until_detach(keys: &[u8]) -> (&[u8], bool) {
    match keys.iter().position(|key| *key == DETACH) {
        Some(position) => (&keys[..position], true),
        None => (keys, false),
    }
}

/// Reads standard input in a thread of its own: a read that waits for a key cannot be cancelled. The thread ends with the
/// process.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUT_DEPTH);
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(read @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_before_the_detach_key_still_goes_out() {
        assert_eq!(until_detach(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_detach(b"ls\x1dmore"), (&b"ls"[..], true));
        assert_eq!(until_detach(b"\x1d"), (&b""[..], true));
    }
}
