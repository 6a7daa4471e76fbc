//! What a vmmd does that a guest has taken over.

use std::{
    ffi::CString,
    fs::File,
    io,
    net::TcpStream,
    path::Path,
    process::ExitCode,
    sync::OnceLock,
    thread::{self, Builder},
    time::Duration,
};

use drover_thread_role::{Role, spawn};
use nix::{
    sys::{ptrace, signal::kill},
    unistd::{Pid, execv},
};

/// It did it.
pub(crate) const DONE: &str = "misbehaved: done";
/// It is where it should be, and waits.
pub(crate) const STAYS: &str = "misbehaved: stays";

/// What it says when it could not.
pub(crate) fn refused(errno: i32) -> String {
    format!("misbehaved: errno {errno};")
}

static DEED: OnceLock<String> = OnceLock::new();

/// Is vmmd, with one deed.
pub(crate) fn vmmd_that_does(deed: String) -> ExitCode {
    let _ = DEED.set(deed);
    drover_vmmd::main_that_misbehaves(misbehave)
}

/// Does it on a thread of the role that it names, and ends the process.
fn misbehave() {
    let words: Vec<&str> = DEED.get().map(|deed| deed.split(' ').collect()).unwrap_or_default();
    let [role, deed, object] = words[..] else { panic!("a role, a deed and an object, not {words:?}") };
    let role = Role::ALL.into_iter().find(|known| known.name() == role).expect("a role");
    let (deed, object) = (deed.to_owned(), object.to_owned());
    let done = spawn(role, Builder::new().name("misbehaves".to_owned()), move || perform(&deed, &object));
    match done.expect("a thread").join().expect("no panic") {
        Ok(()) => say(DONE),
        Err(error) => say(&format!("{} {error}", refused(error.raw_os_error().unwrap_or(0)))),
    }
    std::process::exit(0);
}

fn perform(deed: &str, object: &str) -> io::Result<()> {
    let pid = || Pid::from_raw(object.parse().expect("a process id"));
    match deed {
        "open" if !object.starts_with('/') => {
            let run_dir =
                std::env::args_os().skip_while(|word| word != "--run-dir").nth(1).expect("a run dir");
            File::open(Path::new(&run_dir).join(object)).map(drop)
        }
        "open" => File::open(object).map(drop),
        "connect" => TcpStream::connect(object).map(drop),
        "ptrace" => Ok(ptrace::attach(pid())?),
        "kill" => Ok(kill(pid(), None)?),
        "exec" => {
            let path = CString::new(object).expect("a path");
            execv(&path, &[&path]).map(|never| match never {}).map_err(io::Error::from)
        }
        "stay" => {
            say(STAYS);
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        }
        _ => panic!("no such deed: {deed}"),
    }
}

fn say(text: &str) {
    eprintln!("{text}");
}
