//! Firecracker: its asynchronous engine (io_uring), one queue for each disk, virtio-mmio as ours.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use drover_bench_vmms::{Guest, Peer};
use drover_probe_record::bench::Wait;

use crate::{
    Contender,
    case::Case,
    figures::Figures,
    guest::{self, MEMORY_MIB, VCPUS},
    target::Target,
};

pub(crate) struct Firecracker<'a> {
    peer: Peer,
    disk: &'a Path,
    wait: Option<Wait>,
}

impl<'a> Firecracker<'a> {
    /// The one at this path, where the target is a file.
    pub(crate) fn find(path: Option<&Path>, target: &'a Target, wait: Option<Wait>) -> anyhow::Result<Self> {
        let path = path.context("its path is not given (--firecracker PATH)")?;
        ensure!(path.is_file(), "there is no {}", path.display());
        let disk = target.file().context("it has no disks in Ceph")?;
        Ok(Self { peer: Peer::Firecracker(path.canonicalize()?), disk, wait })
    }
}

impl Contender for Firecracker<'_> {
    fn name(&self) -> &str {
        "firecracker"
    }

    fn can(&self, case: &Case) -> bool {
        case.queues == 1
    }

    fn run(&self, case: &Case, length: Duration) -> anyhow::Result<Figures> {
        let guest = Guest {
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            cmdline: guest::command_line(case, length, self.wait),
            disk: Some(self.disk.to_owned()),
            limit: None,
        };
        let mut running = self.peer.prepare(&guest)?.spawn()?;
        let (log, pid) = (running.console.path().to_owned(), running.child.pid());
        let child = &mut running.child;
        let figures = guest::measure(&log, pid, length, || child.is_alive());
        figures.with_context(|| running.said())
    }
}
