//! The lists of system calls in `filters/`, one for each role. The build script reads them, and makes the programs of them.
//!
//! ```text
//! # a comment
//! @common               everything in another list
//! read                  always
//! prctl arg0=15         where the argument is this
//! mmap arg2&4=0         where these bits of the argument are so
//! ```
//!
//! A call that is in a list several times is allowed where one of its lines says so.

use std::collections::BTreeMap;

use drover_thread_role::Role;

use crate::needs::Needs;
use syscalls::Sysno;

/// What is wrong with a list.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ListError {
    /// There is no such list.
    #[error("there is no list '{0}'")]
    NoList(String),
    /// A line means nothing.
    #[error("list {list}: '{line}' {what}")]
    Line {
        /// Where.
        list: String,
        /// What stands there.
        line: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

const LISTS: [(&str, &str); 12] = [
    ("common", include_str!("../filters/common")),
    ("main", include_str!("../filters/main")),
    ("vm", include_str!("../filters/vm")),
    ("vcpu", include_str!("../filters/vcpu")),
    ("device", include_str!("../filters/device")),
    ("console", include_str!("../filters/console")),
    ("lease", include_str!("../filters/lease")),
    ("migration", include_str!("../filters/migration")),
    ("watch", include_str!("../filters/watch")),
    ("load", include_str!("../filters/load")),
    ("rbd", include_str!("../filters/rbd")),
    ("vsock", include_str!("../filters/vsock")),
];

/// When an argument is as it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) argument: u8,
    /// The bits that count; all of them where the line names none. Of an argument the lower 32 count.
    pub(crate) mask: Option<u32>,
    pub(crate) value: u32,
}

/// Calls, and when each is allowed: always where there is no condition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed(pub(crate) BTreeMap<Sysno, Vec<Condition>>);

impl Allowed {
    /// What threads of this role may do. The machine's builder inherits librbd's calls to librbd's threads.
    pub(crate) fn of(role: Role, Needs { rbd, vsock }: Needs) -> Result<Self, ListError> {
        let mut allowed = Self::default();
        allowed.add_list(role.name())?;
        // A change of an image is looked at, and its lock taken, on whatever thread asks for it.
        if rbd && role != Role::Main && role != Role::Console {
            allowed.add_list("rbd")?;
        }
        // The device's thread, and those that start it.
        if vsock && matches!(role, Role::Vm | Role::Vcpu | Role::Device | Role::Migration) {
            allowed.add_list("vsock")?;
        }
        Ok(allowed)
    }

    /// What any thread of the process may do.
    pub(crate) fn of_process(needs: Needs) -> Result<Self, ListError> {
        let mut allowed = Self::default();
        for role in Role::ALL {
            allowed.add_list(role.name())?;
        }
        for (name, needed) in [("rbd", needs.rbd), ("vsock", needs.vsock)] {
            if needed {
                allowed.add_list(name)?;
            }
        }
        Ok(allowed)
    }

    fn add_list(&mut self, name: &str) -> Result<(), ListError> {
        let text = LISTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
        let text = text.ok_or_else(|| ListError::NoList(name.to_owned()))?;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            match line.strip_prefix('@') {
                Some(other) => self.add_list(other)?,
                None if line.is_empty() => {}
                None => self.add_line(name, line)?,
            }
        }
        Ok(())
    }

    fn add_line(&mut self, list: &str, line: &str) -> Result<(), ListError> {
        let wrong = |what| ListError::Line { list: list.to_owned(), line: line.to_owned(), what };
        let mut words = line.split_whitespace();
        let call: Sysno = words
            .next()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| wrong("is no system call of this architecture"))?;
        let condition = words.next().map(condition).transpose().map_err(wrong)?;
        if words.next().is_some() {
            return Err(wrong("has more than one condition"));
        }
        match (self.0.get_mut(&call), condition) {
            // Always, from now on or already.
            (_, None) => {
                self.0.insert(call, Vec::new());
            }
            (Some(conditions), Some(_)) if conditions.is_empty() => {}
            (Some(conditions), Some(more)) if conditions.contains(&more) => {}
            (Some(conditions), Some(more)) => conditions.push(more),
            (None, Some(first)) => {
                self.0.insert(call, vec![first]);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn has(&self, call: Sysno) -> bool {
        self.0.contains_key(&call)
    }
}

/// `argN=value` or `argN&mask=value`.
fn condition(text: &str) -> Result<Condition, &'static str> {
    let (left, value) = text.split_once('=').ok_or("has a condition without '='")?;
    let (argument, mask) = match left.split_once('&') {
        Some((argument, mask)) => (argument, Some(number(mask)?)),
        None => (left, None),
    };
    let argument = argument.strip_prefix("arg").and_then(|digit| digit.parse().ok());
    let argument = argument.filter(|argument| *argument < 6).ok_or("has a condition on no argument")?;
    Ok(Condition { argument, mask, value: number(value)? })
}

fn number(text: &str) -> Result<u32, &'static str> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "has a condition with no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_thread_may_become_another_program_or_look_into_another_process() {
        let never = [
            Sysno::execve,
            Sysno::execveat,
            Sysno::ptrace,
            Sysno::process_vm_readv,
            Sysno::process_vm_writev,
            Sysno::pidfd_getfd,
            Sysno::kill,
            Sysno::mount,
            Sysno::setns,
            Sysno::unshare,
            Sysno::bpf,
            Sysno::chroot,
            Sysno::symlink,
            Sysno::symlinkat,
            Sysno::link,
            Sysno::linkat,
            Sysno::setuid,
            Sysno::init_module,
            Sysno::open_by_handle_at,
            Sysno::keyctl,
        ];
        let process = Allowed::of_process(Needs { rbd: true, vsock: true }).expect("readable");
        for call in never {
            assert!(!process.has(call), "{call}");
        }
    }

    #[test]
    fn only_the_console_opens_files_and_nobody_connects_where_nothing_asks_for_it() {
        for role in Role::ALL {
            let allowed = Allowed::of(role, Needs::default()).expect("readable");
            assert_eq!(allowed.has(Sysno::openat), role == Role::Console, "{role:?}");
            for call in [Sysno::socket, Sysno::connect, Sysno::bind] {
                assert!(!allowed.has(call), "{role:?} {call}");
            }
        }
    }

    #[test]
    fn sockets_to_the_host_are_local_and_connect_to_one_that_listens() {
        let needs = Needs { vsock: true, ..Needs::default() };
        let local = Condition { argument: 0, mask: None, value: 1 };
        for role in Role::ALL {
            let allowed = Allowed::of(role, needs).expect("readable");
            let connects = matches!(role, Role::Vm | Role::Vcpu | Role::Device | Role::Migration);
            assert_eq!(allowed.0.get(&Sysno::socket), connects.then(|| vec![local]).as_ref(), "{role:?}");
            assert_eq!(allowed.has(Sysno::connect), connects, "{role:?}");
            for call in [Sysno::bind, Sysno::listen, Sysno::openat] {
                assert_eq!(allowed.has(call), call == Sysno::openat && role == Role::Console, "{role:?}");
            }
        }
    }

    #[test]
    fn a_child_of_the_builder_may_do_nothing_that_the_builder_may_not() {
        for vsock in [false, true] {
            let needs = Needs { vsock, ..Needs::default() };
            let builder = Allowed::of(Role::Vm, needs).expect("readable");
            for role in [Role::Vcpu, Role::Device, Role::Migration, Role::Watch, Role::Load] {
                for call in Allowed::of(role, needs).expect("readable").0.keys() {
                    assert!(builder.has(*call), "{role:?} {call}");
                }
            }
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        let check = |line: &str, what| {
            let error = Allowed::default().add_line("x", line).expect_err("refused");
            assert_eq!(error, ListError::Line { list: "x".to_owned(), line: line.to_owned(), what });
        };
        check("no_such_call", "is no system call of this architecture");
        check("read arg0", "has a condition without '='");
        check("read arg6=1", "has a condition on no argument");
        check("read arg0=x", "has a condition with no number");
        check("read arg0=1 arg1=2", "has more than one condition");
    }
}
