//! A vmmd that misbehaves, and what becomes of it.
//!
//! This program is two. With `DROVER_MISBEHAVE` it is a vmmd, with its command line, that does what the variable says once
//! it is confined: `<role> <deed> <object>`. Without, it is the test: it starts itself as that vmmd, in one layer of the
//! jail or in all of them, and looks at how each deed fails.
#![allow(clippy::disallowed_methods, reason = "tests wait for processes, with deadlines")]
#![allow(clippy::print_stdout, reason = "a test says how it went, for whoever counts")]

mod deeds;

use std::{
    fs,
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use drover_test_prerequisites::skipped;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::Uid,
};

const VARIABLE: &str = "DROVER_MISBEHAVE";
const DEADLINE: Duration = Duration::from_secs(60);
/// A user that nobody is.
const UID: u32 = 0x7012_3456;

fn main() -> ExitCode {
    if let Some(deed) = std::env::var_os(VARIABLE) {
        return deeds::vmmd_that_does(deed.to_string_lossy().into_owned());
    }
    let tests: [(&str, fn()); 5] = [
        ("each_deed_ends_the_thread_that_tries_it", each_deed_ends_the_thread_that_tries_it),
        ("without_filters_landlock_refuses", without_filters_landlock_refuses),
        ("without_filters_there_is_nothing_to_find", without_filters_there_is_nothing_to_find),
        ("the_process_is_nobody_and_alone", the_process_is_nobody_and_alone),
        ("what_is_allowed_is_done", what_is_allowed_is_done),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let chosen =
        tests.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part)));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in chosen {
        let test = *test;
        // A skip is counted under the name of its thread.
        let run = thread::Builder::new().name((*name).to_owned()).spawn(move || catch_unwind(test).is_ok());
        let well = run.expect("a thread").join().unwrap_or(false);
        println!("test {name} ... {}", if well { "ok" } else { "FAILED" });
        if well { passed += 1 } else { failed += 1 }
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How much of the jail a vmmd is put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    /// All of it.
    All,
    /// All of it, for a VM that has sockets to the host.
    AllWithVsock,
    /// All but the filters of system calls.
    AllButFilters,
    /// What needs no rights, without those filters.
    Landlock,
}

/// A vmmd that is about to misbehave.
struct Misbehaving {
    dir: tempfile::TempDir,
    child: Child,
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Misbehaving {
    fn start(layers: Layers, deed: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let log = fs::File::create(dir.path().join("vmmd.log")).expect("a log");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env(VARIABLE, deed).stdin(Stdio::null()).stderr(log);
        command
            .arg("--socket")
            .arg(dir.path().join("vmmd.sock"))
            .arg("--run-dir")
            .arg(dir.path())
            .arg("--jail");
        match layers {
            Layers::All => {}
            Layers::AllWithVsock => _ = command.arg("--jail-vsock"),
            Layers::AllButFilters | Layers::Landlock => _ = command.arg("--seccomp=off"),
        }
        let mut namespaces = CloneFlags::empty();
        if layers != Layers::Landlock {
            command.arg(format!("--jail-uid={UID}")).arg("--jail-own-mounts");
            namespaces = CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET;
        }
        // A thread of its own: what it leaves, it does not come back to.
        let started = thread::spawn(move || {
            unshare(namespaces).expect("root may");
            command.spawn().expect("started")
        });
        Self { dir, child: started.join().expect("started") }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("vmmd.log")).unwrap_or_default()
    }

    /// How it ended, and what it said.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return (status, self.log());
            }
            assert!(Instant::now() < deadline, "it goes on: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has done what it should and stays.
    fn stays(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.log().contains(deeds::STAYS) {
            assert!(Instant::now() < deadline, "it does not come so far: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn root() -> bool {
    let is = Uid::effective().is_root();
    if !is {
        skipped("namespaces and users of VMs need root");
    }
    is
}

/// A listener to connect to, and its address.
fn outside() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

/// What another VM would have: a file that anybody may read.
fn another_vm() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("console.log");
    fs::write(&file, "private").expect("written");
    (dir, file)
}

fn killed_by_filter(layers: Layers, deed: &str, call: &str) {
    let (status, log) = Misbehaving::start(layers, deed).end();
    assert_eq!(status.signal(), Some(Signal::SIGSYS as i32), "{deed}: {status}: {log}");
    assert!(log.contains(&format!("made the system call {call},")), "{deed}: {log}");
}

fn each_deed_ends_the_thread_that_tries_it() {
    if !root() {
        return;
    }
    let (_listener, address) = outside();
    let us = std::process::id();
    for role in ["main", "vm", "vcpu", "device", "lease", "migration", "watch"] {
        killed_by_filter(Layers::All, &format!("{role} open /etc/passwd"), "openat");
    }
    for role in ["vm", "vcpu", "console"] {
        killed_by_filter(Layers::All, &format!("{role} connect {address}"), "socket");
    }
    // Sockets to the host are local ones.
    for role in ["main", "device", "vcpu"] {
        killed_by_filter(Layers::AllWithVsock, &format!("{role} connect {address}"), "socket");
    }
    killed_by_filter(Layers::All, &format!("vcpu ptrace {us}"), "ptrace");
    killed_by_filter(Layers::All, "vm exec /bin/true", "execve");
    killed_by_filter(Layers::All, &format!("device kill {us}"), "kill");
    // The console opens files, and only its own.
    refused(Layers::All, "console open /etc/passwd", Errno::ENOENT);
}

fn refused(layers: Layers, deed: &str, why: Errno) {
    let (status, log) = Misbehaving::start(layers, deed).end();
    assert!(log.contains(&deeds::refused(why as i32)), "{layers:?}, {deed}: {status}: not {why}: {log}");
}

fn without_filters_landlock_refuses() {
    let (_listener, address) = outside();
    let (_dir, other) = another_vm();
    if !has_landlock() {
        return skipped("this kernel has no landlock");
    }
    refused(Layers::Landlock, "vm open /etc/passwd", Errno::EACCES);
    refused(Layers::Landlock, &format!("vm open {}", other.display()), Errno::EACCES);
    refused(Layers::Landlock, &format!("vm connect {address}"), Errno::EACCES);
    refused(Layers::Landlock, "vm exec /bin/true", Errno::EACCES);
    refused(Layers::Landlock, &format!("vm kill {}", std::process::id()), Errno::EPERM);
    refused(Layers::Landlock, &format!("vm ptrace {}", std::process::id()), Errno::EPERM);
}

fn without_filters_there_is_nothing_to_find() {
    if !root() {
        return;
    }
    let (_listener, address) = outside();
    let (_dir, other) = another_vm();
    refused(Layers::AllButFilters, "vm open /etc/passwd", Errno::ENOENT);
    refused(Layers::AllButFilters, &format!("vm open {}", other.display()), Errno::ENOENT);
    refused(Layers::AllButFilters, "vm exec /bin/true", Errno::ENOENT);
    refused(Layers::AllButFilters, &format!("vm kill {}", std::process::id()), Errno::ESRCH);
    refused(Layers::AllButFilters, &format!("vm ptrace {}", std::process::id()), Errno::ESRCH);
    let no_network = if has_landlock() { Errno::EACCES } else { Errno::ENETUNREACH };
    refused(Layers::AllButFilters, &format!("vm connect {address}"), no_network);
}

fn has_landlock() -> bool {
    let (_, log) = Misbehaving::start(Layers::Landlock, "vm open /etc/passwd").end();
    !log.contains("landlock: Not")
}

fn the_process_is_nobody_and_alone() {
    if !root() {
        return;
    }
    let vmmd = Misbehaving::start(Layers::All, "vm stay -");
    vmmd.stays();
    let proc = PathBuf::from(format!("/proc/{}", vmmd.child.id()));
    let status = fs::read_to_string(proc.join("status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid"), format!("{UID} {UID} {UID} {UID}"));
    assert_eq!(field("Gid"), format!("{UID} {UID} {UID} {UID}"));
    assert_eq!(field("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    for thread in fs::read_dir(proc.join("task")).expect("threads") {
        let thread = fs::read_to_string(thread.expect("a thread").path().join("status")).expect("it runs");
        assert!(thread.contains("Seccomp:\t2"), "{thread}");
    }
    for namespace in ["pid", "mnt", "ipc", "net"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).expect("a namespace");
        assert_ne!(of(&proc), of(Path::new("/proc/self")), "{namespace}");
    }
    let mounts = fs::read_to_string(proc.join("mounts")).expect("mounts");
    let run_dir = vmmd.dir.path().to_string_lossy().into_owned();
    for mount in mounts.lines() {
        let mut words = mount.split(' ');
        let (what, place) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        assert!(what == "drover-jail" || place == run_dir, "{mounts}");
    }
}

fn what_is_allowed_is_done() {
    let vmmd = Misbehaving::start(Layers::Landlock, "console open console.log");
    let (_, log) = vmmd.end();
    assert!(log.contains(deeds::DONE), "{log}");
}
