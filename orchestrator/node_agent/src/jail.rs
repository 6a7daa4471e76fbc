//! What a vmmd is started in, so that whoever breaks out of a guest finds nothing.
//!
//! The agent makes what takes its rights: namespaces, a user, a cgroup. vmmd gives up the rest itself (`--jail`), and gets
//! what it would have to open from [`crate::handover`]. A host that does not let the agent do all of it still runs VMs,
//! with a warning and less around them, unless the jail is required.

use std::{ffi::OsString, fmt, io, thread};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use drover_ids::VmId;
use nix::{sched::CloneFlags, unistd::Uid};
use tracing::{info, warn};

/// The first of the users that VMs are. Nobody hands out these numbers: systemd keeps off them (UIDS-GIDS), and no
/// distribution has users there.
const UID_BASE: u32 = 0x7000_0000;
/// Users there are. Two VMs of one host share one once in ten thousand hosts with forty VMs each; each of them sees only its
/// own files even then.
const UIDS: u32 = 1 << 24;

/// See [`JailArgs::jail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wanted {
    /// As much of it as this host allows.
    Auto,
    /// All of it, or no agent.
    Required,
    Off,
}

/// See [`JailArgs::vmmd_seccomp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Seccomp {
    Kill,
    Log,
    Off,
}

impl fmt::Display for Seccomp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

/// What can be said about the jail on the command line.
#[derive(Clone, Debug, Args)]
pub(crate) struct JailArgs {
    /// Whether VMs run in a jail: auto takes what this host allows and warns about the rest, required refuses to start where
    /// something is missing
    #[arg(long, value_name = "HOW", default_value = "auto")]
    jail: Wanted,
    /// First of the 16,777,216 users and groups that VMs' processes become, one for each VM
    #[arg(long, value_name = "UID", default_value_t = UID_BASE, value_parser = clap::value_parser!(u32).range(1..=(u32::MAX - UIDS) as i64))]
    jail_uid_base: u32,
    /// What becomes of a vmmd that makes a system call that is not in its list: kill, log (for debugging) or off
    #[arg(long, value_name = "ACTION", default_value = "kill")]
    vmmd_seccomp: Seccomp,
}

/// How vmmds are started here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jail {
    /// vmmd gives up what it can.
    on: bool,
    /// The agent may make namespaces and users.
    privileged: bool,
    uid_base: u32,
    seccomp: Seccomp,
}

/// What only some VMs are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Disks in Ceph.
    pub(crate) rbd: bool,
    /// Sockets to the host.
    pub(crate) vsock: bool,
    /// To be resumed from a file.
    pub(crate) resume: bool,
}

/// What there is one of for each VM.
const NAMESPACES: CloneFlags =
    CloneFlags::CLONE_NEWPID.union(CloneFlags::CLONE_NEWNS).union(CloneFlags::CLONE_NEWIPC);

impl Jail {
    /// Finds out what this host allows.
    pub(crate) fn probe(args: &JailArgs) -> anyhow::Result<Self> {
        let allowed = may_make_namespaces();
        let jail = Self {
            on: args.jail != Wanted::Off,
            privileged: allowed.is_ok() && Uid::effective().is_root(),
            uid_base: args.jail_uid_base,
            seccomp: args.vmmd_seccomp,
        };
        let why = match &allowed {
            _ if jail.privileged => String::new(),
            Ok(()) => "the agent is not root".to_owned(),
            Err(error) => format!("this host does not let the agent make namespaces: {error}"),
        };
        ensure!(args.jail != Wanted::Required || jail.privileged, "--jail=required: {why}");
        match (jail.on, jail.privileged) {
            (false, _) => {
                warn!("VMs run without a jail (--jail=off): who breaks out of a guest has this host")
            }
            (true, false) => warn!(why, "VMs run in half a jail: no namespaces, no users of their own"),
            (true, true) => info!(uids_from = jail.uid_base, "VMs run in jails"),
        }
        Ok(jail)
    }

    /// What vmmd is told.
    pub(crate) fn arguments(&self, vm: VmId, needs: Needs) -> Vec<OsString> {
        if !self.on {
            return Vec::new();
        }
        let mut arguments = vec!["--jail".to_owned(), format!("--seccomp={}", self.seccomp)];
        let flags =
            [(needs.rbd, "--jail-rbd"), (needs.vsock, "--jail-vsock"), (needs.resume, "--jail-resume")];
        arguments.extend(flags.iter().filter(|(needed, _)| *needed).map(|(_, flag)| (*flag).to_owned()));
        if self.privileged {
            arguments.push(format!("--jail-uid={}", self.uid(vm)));
            arguments.push("--jail-own-mounts".to_owned());
        }
        arguments.into_iter().map(OsString::from).collect()
    }

    /// The namespaces that it is started in. librbd connects to Ceph whenever it likes: a VM with disks there stays in the
    /// host's network (ADR 13).
    pub(crate) fn namespaces(&self, rbd: bool) -> CloneFlags {
        match (self.on && self.privileged, rbd) {
            (false, _) => CloneFlags::empty(),
            (true, true) => NAMESPACES,
            (true, false) => NAMESPACES.union(CloneFlags::CLONE_NEWNET),
        }
    }

    /// Whether each VM has a cgroup.
    pub(crate) const fn is_on(&self) -> bool {
        self.on
    }

    /// One user per VM, the same on every start.
    fn uid(&self, vm: VmId) -> u32 {
        // The ids' last bits are random.
        let low = u32::try_from(vm.as_u128() & u128::from(UIDS - 1)).unwrap_or(0);
        self.uid_base + low
    }
}

fn may_make_namespaces() -> io::Result<()> {
    in_namespaces(NAMESPACES.union(CloneFlags::CLONE_NEWNET), || Ok(()))
}

/// Runs `work` on a thread whose children are born in new namespaces. The thread itself ends, and they with it where no child
/// was born.
pub(crate) fn in_namespaces<T: Send>(
    namespaces: CloneFlags,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    if namespaces.is_empty() {
        return work();
    }
    let body = move || {
        nix::sched::unshare(namespaces)?;
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespaces".to_owned()).spawn_scoped(scope, body)?;
        thread.join().map_err(|_| io::Error::other("the thread that makes namespaces has panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Jail = Jail { on: true, privileged: true, uid_base: UID_BASE, seccomp: Seccomp::Kill };

    fn arguments(jail: Jail, needs: Needs) -> String {
        let vm = VmId::from_u128(0xabcd_0000_0000_0000_0000_0000_0123_4567);
        let words = jail.arguments(vm, needs);
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn vmmd_is_told_what_the_host_allows() {
        let uid = UID_BASE + 0x23_4567;
        let whole = format!("--jail --seccomp=kill --jail-uid={uid} --jail-own-mounts");
        let nothing = Needs::default();
        assert_eq!(arguments(WHOLE, nothing), whole);
        let half = Jail { privileged: false, seccomp: Seccomp::Log, ..WHOLE };
        assert_eq!(arguments(half, Needs { rbd: true, ..nothing }), "--jail --seccomp=log --jail-rbd");
        let all = Needs { rbd: true, vsock: true, resume: true };
        assert!(arguments(half, all).ends_with("--jail-rbd --jail-vsock --jail-resume"));
        assert_eq!(arguments(Jail { on: false, ..WHOLE }, all), "");
    }

    #[test]
    fn only_a_vm_on_ceph_shares_the_hosts_network() {
        assert!(WHOLE.namespaces(false).contains(CloneFlags::CLONE_NEWNET));
        assert!(!WHOLE.namespaces(true).contains(CloneFlags::CLONE_NEWNET));
        assert!(WHOLE.namespaces(true).contains(NAMESPACES));
        assert!(Jail { privileged: false, ..WHOLE }.namespaces(false).is_empty());
    }

    #[test]
    fn a_child_of_the_thread_is_in_a_namespace_of_its_own_and_its_parent_is_not() {
        let id = || std::fs::read_link("/proc/thread-self/ns/ipc");
        let before = id().expect("a namespace");
        match in_namespaces(NAMESPACES, id) {
            Ok(inside) => assert_ne!(inside, before),
            // Nobody lets this test do it.
            Err(error) => assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM)),
        }
        assert_eq!(id().expect("a namespace"), before);
    }
}
