//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use drover_jail::Seccomp;
use drover_lifecycle::BootTime;
use tracing::level_filters::LevelFilter;

/// Runs one virtual machine. Started by the node agent, and controlled through gRPC (drover.vm.v1) on a unix socket.
#[derive(Clone, Debug, Parser)]
#[command(name = "drover-vmmd", version)]
pub(crate) struct Arguments {
    /// Where to serve; created with mode 0600, removed on exit
    #[arg(long, value_name = "PATH", required_unless_present = "capabilities")]
    pub socket: Option<PathBuf>,

    /// Existing directory for console.log (kept below 2 MiB, in two files)
    #[arg(long, value_name = "DIR", required_unless_present = "capabilities")]
    pub run_dir: Option<PathBuf>,

    /// Print what this host's libraries allow, one `name: value` per line, and exit
    #[arg(long)]
    pub capabilities: bool,

    /// When the spawner started this process (CLOCK_BOOTTIME); boot times are measured from here
    #[arg(long, value_name = "N", value_parser = boot_time)]
    pub spawned_at_boottime_ns: Option<BootTime>,

    /// Standard input is a socket on which the spawner hands over what the VM is made of, and the calls Create and Start
    /// themselves: they are carried out before anybody can call
    #[arg(long)]
    pub calls_ahead: bool,

    /// Give up everything that a VM does not need: files are handed over by the agent, system calls are filtered by the
    /// purpose of each thread
    #[arg(long)]
    pub jail: bool,

    /// In the jail, become this user and group, and give every privilege up (needs root)
    #[arg(long, value_name = "UID", requires = "jail", value_parser = clap::value_parser!(u32).range(1..))]
    pub jail_uid: Option<u32>,

    /// In the jail, leave the host's file system: the process was started in a mount namespace of its own (needs root)
    #[arg(long, requires = "jail")]
    pub jail_own_mounts: bool,

    /// In the jail, leave librbd what it needs: its libraries and settings, connections, threads
    #[arg(long, requires = "jail")]
    pub jail_rbd: bool,

    /// In the jail, leave the VM's socket device its connections to sockets in the run directory
    #[arg(long, requires = "jail")]
    pub jail_vsock: bool,

    /// In the jail, keep what is needed to resume a suspended VM: to load its memory as it is touched takes a privilege
    #[arg(long, requires = "jail")]
    pub jail_resume: bool,

    /// In the jail, what becomes of a thread that makes a system call that is not in its list: kill ends the process and names
    /// the call, log lets it through and has the kernel's log name it
    #[arg(long, value_name = "ACTION", default_value = "kill")]
    pub seccomp: SeccompAction,

    /// Least severe messages to write to stderr: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,
}

/// See [`Arguments::seccomp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SeccompAction {
    Kill,
    Log,
    Off,
}

impl From<SeccompAction> for Seccomp {
    fn from(action: SeccompAction) -> Self {
        match action {
            SeccompAction::Kill => Self::Kill,
            SeccompAction::Log => Self::Log,
            SeccompAction::Off => Self::Off,
        }
    }
}

fn boot_time(text: &str) -> Result<BootTime, String> {
    match text.parse() {
        Ok(ns) if ns > 0 => Ok(BootTime::from_ns(ns)),
        _ => Err("expected nanoseconds since boot, a number from 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_boot_time_of_zero_is_refused() {
        let parse = |at| Arguments::try_parse_from(["drover-vmmd", "--socket=s", "--run-dir=d", at]);
        assert!(parse("--spawned-at-boottime-ns=0").is_err());
        let arguments = parse("--spawned-at-boottime-ns=7").expect("valid");
        assert_eq!(arguments.spawned_at_boottime_ns, Some(BootTime::from_ns(7)));
    }
}
