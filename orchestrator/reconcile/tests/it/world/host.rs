//! A host: its agent, the processes of its VMs, and their lease.

use std::collections::BTreeMap;

use drover_cluster_state::{
    BootTimes, Incarnation, MigrationPhase, MigrationReport, Moment, RunState, StopReason, VmReport,
};
use drover_ids::{MigrationId, NodeId, OperationId, OwnerEpoch, VmId, VolumeId};
use drover_reconcile::AgentAnswer;

#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) report: VmReport,
    pub(crate) volumes: Vec<VolumeId>,
    /// What the guest's memory knows of its writes.
    pub(crate) seen: u64,
    /// The target of its outgoing migration.
    pub(crate) peer: Option<(NodeId, OwnerEpoch)>,
}

impl Process {
    pub(crate) fn new(epoch: OwnerEpoch, state: RunState, volumes: Vec<VolumeId>) -> Self {
        let report = VmReport {
            epoch,
            state,
            stop_reason: StopReason::Unknown,
            detail: String::new(),
            revision: 1,
            pid: 1,
            boot: BootTimes::default(),
            migration: None,
            clients: Vec::new(),
            stalled: std::collections::BTreeSet::new(),
            exit: None,
            has_file: false,
        };
        Self { report, volumes, seen: 0, peer: None }
    }

    pub(crate) fn end(&mut self, reason: StopReason, exit: &str) {
        self.report.state = RunState::Stopped;
        self.report.stop_reason = reason;
        self.report.exit = Some(exit.to_owned());
        self.report.revision += 1;
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.report.exit.is_some()
    }

    pub(crate) fn set(&mut self, state: RunState, phase: Option<MigrationPhase>) {
        self.report.state = state;
        self.report.revision += 1;
        if let (Some(phase), Some(migration)) = (phase, &mut self.report.migration) {
            migration.phase = phase;
        }
    }

    pub(crate) fn begin_move(&mut self, migration: MigrationId, peer: (NodeId, OwnerEpoch)) {
        self.peer = Some(peer);
        self.report.migration = Some(MigrationReport {
            migration,
            phase: MigrationPhase::Reserved,
            rounds: 3,
            bytes_sent: 1 << 20,
            bytes_remaining: 0,
            total: std::time::Duration::from_millis(300),
            downtime: std::time::Duration::from_millis(20),
            error: String::new(),
        });
        self.set(RunState::MigratingOut, None);
    }

    pub(crate) fn abort_move(&mut self, error: &str) {
        self.set(RunState::Running, Some(MigrationPhase::Aborted));
        if let Some(migration) = &mut self.report.migration {
            migration.error = error.to_owned();
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) vcpus: u32,
    /// The machine runs.
    pub(crate) up: bool,
    /// The agent runs.
    pub(crate) agent: bool,
    /// The control plane can be reached.
    pub(crate) linked: bool,
    /// Its heartbeats do not arrive, though it can be called.
    pub(crate) mute: bool,
    pub(crate) registered: bool,
    pub(crate) start: u32,
    pub(crate) sequence: u64,
    /// When the newest heartbeat that was answered with a lease was sent.
    pub(crate) leased: Option<Moment>,
    pub(crate) processes: BTreeMap<VmId, Process>,
    /// The newest epoch at which a VM was ended here, as this agent remembers: nothing up to it starts again.
    pub(crate) floors: BTreeMap<VmId, OwnerEpoch>,
    /// Commands that have had their effect, by the id that makes a repetition recognisable.
    pub(crate) answered: BTreeMap<OperationId, AgentAnswer>,
    /// Starts that will fail.
    pub(crate) failing_starts: u32,
}

impl Host {
    pub(crate) fn new(n: u64, vcpus: u32) -> Self {
        Self {
            id: NodeId::from_u128(u128::from(n)),
            name: format!("n{n}"),
            vcpus,
            up: true,
            agent: true,
            linked: true,
            mute: false,
            registered: false,
            start: 1,
            sequence: 0,
            leased: None,
            processes: BTreeMap::new(),
            floors: BTreeMap::new(),
            answered: BTreeMap::new(),
            failing_starts: 0,
        }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation(format!("{}-{}", self.name, self.start))
    }

    pub(crate) fn serves(&self) -> bool {
        self.up && self.agent
    }

    pub(crate) fn floor(&self, vm: VmId) -> OwnerEpoch {
        self.floors.get(&vm).copied().unwrap_or_default()
    }

    pub(crate) fn raise_floor(&mut self, vm: VmId, epoch: OwnerEpoch) {
        let floor = self.floors.entry(vm).or_default();
        *floor = epoch.max(*floor);
    }
}
