//! Running Ceph's programs with a deadline: without a manager or an OSD some of them wait for ever.

use std::{
    io::Read as _,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::error::CephError;

/// Longest a command of a healthy cluster may take on a busy machine.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at a child or a state: short against starting a daemon, long against the cost of a look.
const POLL: Duration = Duration::from_millis(5);

/// Runs `command` to its end and returns its standard output.
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<String, CephError> {
    let line = describe(command);
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(
            |source| CephError::Run { program: command.get_program().display().to_string(), source },
        )?;
    let output = wait(child, deadline, &line)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(CephError::Failed { command: line, output: text.trim().to_owned() });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Collects both streams while it waits, so that a full pipe blocks nobody.
fn wait(mut child: Child, deadline: Duration, line: &str) -> Result<Output, CephError> {
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // A stream that breaks off gives what came before.
                stream.read_to_end(&mut bytes).ok();
            }
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let ended = wait_until(line, deadline, || match child.try_wait() {
        Ok(status) => Ok(status),
        Err(source) => Err(CephError::Run { program: line.to_owned(), source }),
    });
    if ended.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match ended {
        Ok(status) => Ok(Output { status, stdout, stderr }),
        Err(CephError::Deadline { what, deadline, .. }) => Err(CephError::Deadline {
            what: format!("'{what}' to end"),
            deadline,
            seen: String::from_utf8_lossy(&stderr).trim().to_owned(),
        }),
        Err(error) => Err(error),
    }
}

/// Looks until `look` gives a value or fails.
pub(crate) fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>, CephError>,
) -> Result<T, CephError> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            let seen = "it did not come".to_owned();
            return Err(CephError::Deadline { what: what.to_owned(), deadline, seen });
        }
        thread::sleep(POLL);
    }
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().display().to_string();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended_at_its_deadline() {
        let error = run(Command::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(&error, CephError::Deadline { what, .. } if what.contains("sleep 600")), "{error}");
    }

    #[test]
    fn a_command_that_fails_tells_what_it_said() {
        let error =
            run(Command::new("sh").args(["-c", "echo no >&2; exit 3"]), COMMAND_DEADLINE).unwrap_err();
        assert!(matches!(&error, CephError::Failed { output, .. } if output == "no"), "{error}");
    }
}
