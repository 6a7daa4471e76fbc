//! What vmmd can do on this host. vmmd is asked, since it is the one that loads the libraries.

use std::{path::Path, time::Duration};

use tokio::{process::Command, time::timeout};
use tracing::{info, warn};

/// Loading libraries takes tens of milliseconds, on a busy host a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The version of librbd on this host, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Librbd(String);

impl Librbd {
    pub(crate) fn is_there(&self) -> bool {
        !self.0.is_empty()
    }

    /// Empty where there is none.
    pub(crate) fn version(&self) -> &str {
        &self.0
    }

    /// Asks vmmd. A vmmd that does not answer has none: its VMs with disks in Ceph would fail as well.
    pub(crate) async fn of(vmmd: &Path) -> Self {
        let mut command = Command::new(vmmd);
        command.arg("--capabilities").kill_on_drop(true).stdin(std::process::Stdio::null());
        match timeout(ANSWER_WITHIN, command.output()).await {
            Ok(Ok(output)) if output.status.success() => {
                let found = Self(value(&String::from_utf8_lossy(&output.stdout), "librbd"));
                info!(librbd = found.0, "asked vmmd what this host can do");
                found
            }
            Ok(Ok(output)) => {
                warn!(status = %output.status, "vmmd does not say what this host can do");
                Self::default()
            }
            Ok(Err(error)) => {
                warn!(%error, "vmmd cannot be asked what this host can do");
                Self::default()
            }
            Err(_) => {
                warn!("vmmd does not answer what this host can do");
                Self::default()
            }
        }
    }
}

/// The value of `name` among lines of `name: value`; empty where it is missing.
fn value(lines: &str, name: &str) -> String {
    let found = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    found.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_a_line_of_its_own() {
        assert_eq!(value("kvm: yes\nlibrbd: 1.16.0\n", "librbd"), "1.16.0");
        assert_eq!(value("no librbd: x\n", "librbd"), "");
        assert_eq!(value("", "librbd"), "");
    }
}
