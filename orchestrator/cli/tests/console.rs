//! The console on a real (pseudo-)terminal: raw while attached, as it was on every way out.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    pty::openpty,
    sys::termios::{LocalFlags, Termios, tcgetattr},
};
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(30);

struct Session {
    child: Child,
    /// Where the test types.
    keyboard: File,
    /// The terminal that the command reads.
    terminal: File,
    before: Termios,
}

impl Session {
    fn start(server: &str) -> Self {
        let pty = openpty(None, None).unwrap();
        let (keyboard, terminal) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&terminal).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_drover"))
            .args(["vm", "console", "web"])
            .env("DROVER_SERVER", server)
            .stdin(Stdio::from(terminal.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, keyboard, terminal, before }
    }

    fn expect(&mut self, text: &str) {
        let mut seen = vec![0; text.len()];
        self.child.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(String::from_utf8_lossy(&seen), text);
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    fn end(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let mut words = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        assert_eq!(tcgetattr(&self.terminal).unwrap(), self.before, "the terminal is as it was");
        (status, words)
    }
}

async fn session(
    talk: impl FnOnce(Session) -> (ExitStatus, String) + Send + 'static,
) -> (ExitStatus, String) {
    let server = support::start().await;
    tokio::task::spawn_blocking(move || talk(Session::start(&server))).await.unwrap()
}

#[tokio::test]
async fn keys_reach_the_guest_and_the_detach_key_does_not() {
    let (status, words) = session(|mut session| {
        session.expect("login: ");
        assert!(session.is_raw());
        // Ctrl-C is the guest's as well.
        session.type_keys(b"root\x03");
        session.expect("ROOT\x03");
        session.type_keys(b"\x1d");
        session.end()
    })
    .await;
    assert!(status.success());
    assert!(words.contains("Ctrl-]") && words.contains("detached from web"), "{words}");
}

#[tokio::test]
async fn the_end_of_the_vm_ends_the_session() {
    let (status, words) = session(|mut session| {
        session.expect("login: ");
        session.type_keys(b"bye");
        session.expect("BYE");
        session.end()
    })
    .await;
    assert!(status.success());
    assert!(words.contains("the console of web has ended"), "{words}");
}

#[tokio::test]
async fn signals_leave_the_terminal_as_it_was() {
    for signal in [Signal::TERM, Signal::HUP] {
        session(move |mut session| {
            session.expect("login: ");
            assert!(session.is_raw());
            let pid = Pid::from_raw(session.child.id().try_into().unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
            session.end()
        })
        .await;
    }
}

#[tokio::test]
async fn ctrl_c_while_waiting_says_how_to_go_on_watching() {
    let server = support::start().await;
    let child = Command::new(env!("CARGO_BIN_EXE_drover"))
        .args(["operation", "watch", "op-slow"])
        .env("DROVER_SERVER", server)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until its handler is there, SIGINT would simply kill it: the kernel says which signals are caught.
    let caught = tokio::time::timeout(DEADLINE, async {
        while !catches_sigint(child.id()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    caught.await.unwrap();
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("drover operation watch op-slow"), "{words}");
}

fn catches_sigint(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
    u64::from_str_radix(&mask, 16).unwrap() & (1 << 1) != 0
}
