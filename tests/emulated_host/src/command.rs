//! Running one of this machine's programs to its end.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Runs `command` without input and returns what it printed.
///
/// # Errors
/// If it cannot be started or fails: what it wrote to its standard error.
pub(crate) fn output_of(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed ({}): {}", words.join(" "), output.status, said.trim());
    }
    Ok(output.stdout)
}
