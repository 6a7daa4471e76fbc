//! The process: its signals, its exit status, and what it says when it cannot start.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn command(directory: &std::path::Path) -> Command {
    listening(directory, "127.0.0.1:0")
}

fn listening(directory: &std::path::Path, address: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover-control-plane"));
    command.arg("--state-dir").arg(directory.join("state")).args(["--listen", address]);
    command.arg("--pool").arg(format!("default=dir:{}", directory.display()));
    command.stderr(Stdio::piped()).env_remove("RUST_LOG");
    command
}

/// Waits until it serves.
fn serving(mut command: Command) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = command.spawn().expect("it is built");
    let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut line = String::new();
    while !line.contains("the control plane serves") {
        line.clear();
        assert!(log.read_line(&mut line).expect("text") > 0, "it ended before it served");
    }
    (child, log)
}

#[test]
fn it_ends_well_when_it_is_told_and_starts_again_after_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    for (signal, code) in [(Signal::SIGTERM, Some(0)), (Signal::SIGKILL, None), (Signal::SIGINT, Some(0))] {
        let (mut child, _log) = serving(command(directory.path()));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), code, "{signal}");
    }
}

#[test]
fn a_second_instance_is_refused_and_names_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let (mut first, _log) = serving(command(directory.path()));
    let second = command(directory.path()).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(said.contains(&format!("in use by process {}", first.id())), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn what_cannot_work_is_said_before_anything_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |command: &mut Command, status: i32, expect: &str| {
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("error: ") && said.contains(expect), "{said}");
    };
    let plain = || command(directory.path());
    refused(plain().args(["--t-fence-ms", "3500"]), 2, "timer t_fence is 3.5s, and must be more than 4s");
    refused(
        plain().args(["--pool", "gone=dir:/nonexistent/pool"]),
        1,
        "cannot open the pool /nonexistent/pool",
    );
    refused(&mut listening(directory.path(), "192.0.2.1:1"), 1, "--listen: cannot serve on 192.0.2.1:1");
}
