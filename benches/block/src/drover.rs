//! Our vmmd, spoken to as the node agent does.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use drover_bench_vmms::Launcher;
use drover_ids::{NodeId, VmId};
use drover_probe_record::bench::Wait;
use drover_test_prerequisites::probe_image;
use drover_wire::vm::v1 as wire;
use tokio::runtime::{Builder, Runtime};

use crate::{
    Contender,
    case::Case,
    figures::Figures,
    guest::{self, MEMORY_MIB, VCPUS},
    target::Target,
};

const EPOCH: u64 = 1;
const VM: u128 = 0xbe;
const NODE: u128 = 0x0d;

pub(crate) struct Drover<'a> {
    name: String,
    launcher: Launcher,
    runtime: Runtime,
    target: &'a Target,
    wait: Option<Wait>,
}

impl<'a> Drover<'a> {
    pub(crate) fn new(
        name: String,
        vmmd: PathBuf,
        target: &'a Target,
        wait: Option<Wait>,
    ) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { name, launcher: Launcher::new(vmmd)?, runtime, target, wait })
    }

    fn config(&self, case: &Case, length: Duration) -> wire::VmConfig {
        wire::VmConfig {
            vm_id: VmId::from_u128(VM).to_string(),
            name: "bench".to_owned(),
            vcpus: VCPUS,
            memory_bytes: MEMORY_MIB << 20,
            kernel_path: probe_image().to_string_lossy().into_owned(),
            cmdline: guest::command_line(case, length, self.wait),
            disks: vec![self.target.disk(case.queues)],
            node_id: NodeId::from_u128(NODE).to_string(),
            ..wire::VmConfig::default()
        }
    }
}

impl Contender for Drover<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, case: &Case, length: Duration) -> anyhow::Result<Figures> {
        let mut vmmd = self.runtime.block_on(self.launcher.spawn())?;
        let log = vmmd.log();
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let started = self.runtime.block_on(async {
            vmmd.create(EPOCH, self.config(case, length)).await?;
            vmmd.start(EPOCH).await
        });
        started.with_context(said)?;
        let (console, pid) = (vmmd.console(), vmmd.pid());
        let figures = guest::measure(&console, pid, length, || vmmd.is_alive()).with_context(said)?;
        self.runtime.block_on(vmmd.stop(EPOCH))?;
        Ok(figures)
    }
}
