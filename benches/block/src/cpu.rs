//! CPU time of a process by its threads, to the nanosecond (`/proc/<pid>/task/<tid>/schedstat`, first field; kernel
//! documentation, scheduler/sched-stats). The figures of `stat` come in ticks of 10 ms, which is too coarse for a short run.

use std::fs;

use anyhow::Context as _;

/// CPU time used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// By every thread.
    pub all_ns: u64,
    /// By those that run vCPUs.
    pub vcpus_ns: u64,
}

impl CpuTime {
    /// What the threads of `pid` that live have used. Both VMMs keep theirs for as long as the guest runs.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let tasks = format!("/proc/{pid}/task");
        let mut time = Self::default();
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            let task = task?.path();
            // A thread may end between being listed and being read.
            let Ok(statistics) = fs::read_to_string(task.join("schedstat")) else { continue };
            let ns = statistics.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
            let ns = ns.context("this kernel keeps no scheduler statistics (CONFIG_SCHED_INFO)")?;
            let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
            time.all_ns += ns;
            time.vcpus_ns += if is_vcpu(name.trim()) { ns } else { 0 };
        }
        Ok(time)
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            all_ns: self.all_ns.saturating_sub(earlier.all_ns),
            vcpus_ns: self.vcpus_ns.saturating_sub(earlier.vcpus_ns),
        }
    }
}

/// Our name, Firecracker's, and QEMU's with `debug-threads=on`.
fn is_vcpu(name: &str) -> bool {
    name.starts_with("vcpu")
        || name.starts_with("fc_vcpu")
        || (name.starts_with("CPU ") && name.ends_with("/KVM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_told_by_their_names() {
        for (name, expect) in
            [("vcpu0", true), ("CPU 0/KVM", true), ("fc_vcpu 0", true), ("io0", false), ("virtio-blk", false)]
        {
            assert_eq!(is_vcpu(name), expect, "{name}");
        }
    }

    #[test]
    fn this_process_has_used_some_and_no_vcpu() {
        let time = CpuTime::of(std::process::id()).unwrap();
        assert!(time.all_ns > 0 && time.vcpus_ns == 0);
    }
}
