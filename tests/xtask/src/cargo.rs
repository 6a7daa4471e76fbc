//! The cargo that runs this program, for what it has to build and run.

use std::{env, process::Command};

/// A command of it, as if it were typed.
///
/// Cargo tells whom it runs (`CARGO_PKG_…`, `CARGO_MANIFEST_…`: us), and some packages are built again when that changes: after
/// each command that somebody types, and after each of ours.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_about_us) {
            command.env_remove(name);
        }
    }
    command
}

fn is_about_us(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_of_this_package_is_kept_from_the_next() {
        for (variable, expect) in [
            ("CARGO_PKG_NAME", true),
            ("CARGO_MANIFEST_DIR", true),
            ("CARGO_TARGET_DIR", false),
            ("CARGO_HOME", false),
        ] {
            assert_eq!(is_about_us(variable), expect, "{variable}");
        }
        let removed = command();
        assert!(removed.get_envs().any(|(name, value)| name == "CARGO_PKG_NAME" && value.is_none()));
    }
}
