//! A cluster of fakes around a real driver: virtual time, scripted agents that beat, a store in memory.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_cluster_state::{
    BootTimes, Change, ClusterState, Image, Incarnation, Moment, Name, Now, Operation, OperationState,
    Record, RunState, StopReason, Txn, Vm, VmReport, VmSpec, WallTime,
};
use drover_driver::{Cluster, Driver, DriverError, Ports, SubmitError, View};
use drover_ids::{NodeId, OperationId, OwnerEpoch, VmId};
use drover_ports::{
    Clock, Store,
    fakes::{FakeFence, FakeNodeAgents, MemoryStore},
};
use drover_reconcile::{
    AgentAnswer, AgentCall, AgentCommand, CallError, Heartbeat, HeartbeatAnswer, NoStopwatch, Timers,
    admission::{self, AdmissionError, CreateVm, Registration, RequestIdentity},
};
use drover_units::Bytes;
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

/// A driver that has got nowhere after this much virtual time never will.
const PATIENCE: Duration = Duration::from_secs(120);

/// tokio's clock: it stands still while there is work, and jumps when there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now(&self) -> Now {
        let millis = u64::try_from(self.0.elapsed().as_millis()).expect("a test is short");
        Now { moment: Moment::from_millis(millis), wall: WallTime::from_unix_millis(millis) }
    }
}

/// What runs on the nodes. Shared by the agents' script and the tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Arc<Mutex<HostsState>>);

#[derive(Debug, Default)]
struct HostsState {
    /// The epoch each VM runs with, on each node.
    running: BTreeMap<NodeId, BTreeMap<VmId, OwnerEpoch>>,
    dead: BTreeSet<NodeId>,
    /// Names of VMs whose start is never answered.
    stuck: BTreeSet<String>,
}

impl Hosts {
    fn state(&self) -> MutexGuard<'_, HostsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who runs a VM.
    pub(crate) fn runners(&self, vm: VmId) -> Vec<(NodeId, OwnerEpoch)> {
        let state = self.state();
        state.running.iter().filter_map(|(node, vms)| Some((*node, *vms.get(&vm)?))).collect()
    }

    /// Power off: nothing runs there any more, and nobody answers.
    pub(crate) fn kill(&self, node: NodeId) {
        let mut state = self.state();
        state.dead.insert(node);
        state.running.remove(&node);
    }

    /// The start of the VM with this name is never answered from now on.
    pub(crate) fn never_answer(&self, vm: &str) {
        self.state().stuck.insert(vm.to_owned());
    }

    fn answer(&self, call: &AgentCall) -> Option<Result<AgentAnswer, CallError>> {
        let mut state = self.state();
        let is_stuck = |vm: &VmSpec| state.stuck.contains(vm.name.as_str());
        if state.dead.contains(&call.node)
            || matches!(&call.command, AgentCommand::EnsureVm { spec, .. } if is_stuck(spec))
        {
            return None;
        }
        let vms = state.running.entry(call.node).or_default();
        Some(match &call.command {
            AgentCommand::EnsureVm { .. } => match vms.get(&call.vm) {
                Some(epoch) if *epoch > call.epoch => {
                    Err(CallError::Refused("a newer epoch runs".to_owned()))
                }
                _ => {
                    vms.insert(call.vm, call.epoch);
                    Ok(AgentAnswer::Status(report(call.epoch)))
                }
            },
            AgentCommand::StopVm => {
                if vms.get(&call.vm).is_some_and(|epoch| *epoch <= call.epoch) {
                    vms.remove(&call.vm);
                }
                Ok(AgentAnswer::Stopped)
            }
            other => Err(CallError::Refused(format!("{} is not played by this fake", other.name()))),
        })
    }
}

fn report(epoch: OwnerEpoch) -> VmReport {
    VmReport {
        epoch,
        state: RunState::Running,
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
    }
}

/// A driver that runs, with its nodes.
#[derive(Debug)]
pub(crate) struct World<S: Store> {
    pub(crate) cluster: Cluster<S>,
    pub(crate) agents: FakeNodeAgents,
    pub(crate) hosts: Hosts,
    stop: Option<oneshot::Sender<()>>,
    driver: JoinHandle<Result<(), DriverError>>,
    beating: Vec<AbortHandle>,
}

impl<S: Store + Clone> World<S> {
    /// Starts a driver on `store`, with the nodes that `hosts` had before.
    pub(crate) async fn start(store: S, hosts: Hosts, clock: VirtualClock) -> Self {
        let script = hosts.clone();
        let (agents, _) = FakeNodeAgents::new(move |call| script.answer(call));
        let ports = Ports { store, agents: agents.clone(), fence: FakeFence::default(), clock };
        let (driver, cluster) = Driver::load(ports, Timers::default(), Box::new(NoStopwatch), 7)
            .await
            .expect("the store is sound");
        let (stop, stopped) = oneshot::channel();
        let driver = tokio::spawn(driver.run(async move {
            // A dropped sender stops it too.
            let _stopped = stopped.await;
        }));
        Self { cluster, agents, hosts, stop: Some(stop), driver, beating: Vec::new() }
    }

    /// Lets a node register and beat from now on.
    pub(crate) fn add_node(&mut self, node: NodeId) {
        let (cluster, hosts) = (self.cluster.clone(), self.hosts.clone());
        self.beating.push(tokio::spawn(async move { beat(cluster, hosts, node).await }).abort_handle());
    }

    /// Ends the driver as SIGKILL would: whatever it was doing is not finished.
    pub(crate) fn kill(self) {
        self.driver.abort();
        self.beating.iter().for_each(AbortHandle::abort);
    }

    /// Ends the driver and returns what it returns.
    pub(crate) async fn stop(mut self) -> Result<(), DriverError> {
        drop(self.stop.take());
        self.driver.await.expect("the driver does not panic")
    }

    /// What the driver returns by itself.
    pub(crate) async fn ended(self) -> Result<(), DriverError> {
        let _keep_running = self.stop;
        let ended = tokio::time::timeout(PATIENCE, self.driver).await.expect("it runs for ever");
        ended.expect("the driver does not panic")
    }

    /// Waits until `look` finds something.
    pub(crate) async fn until<T: Send + 'static>(
        &self,
        what: &str,
        look: impl Fn(View<'_>) -> Option<T> + Clone + Send + 'static,
    ) -> T {
        let mut changes = self.cluster.changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                let look = look.clone();
                if let Some(found) = self.cluster.read(look).await.expect("the driver runs") {
                    return found;
                }
                changes.changed().await.expect("the driver runs");
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => {
                let state = self.cluster.read(|view| format!("{:#?}", view.state)).await;
                panic!("never happened: {what}; {}", state.unwrap_or_default());
            }
        }
    }

    /// Adds the image that every VM boots.
    pub(crate) async fn add_image(&self) {
        let image = Image {
            name: name("probe"),
            pool: name("default"),
            size: Bytes::mib(1),
            sha256: String::new(),
            min_memory: Bytes::mib(2),
            created_at: WallTime::default(),
        };
        let added = self.cluster.submit(move |view| {
            let known = view.state.images.contains_key(&image.name);
            let mut txn = Txn::new();
            txn.create(Record::Image(image.clone()));
            Ok::<_, AdmissionError>(((), (!known).then_some(txn)))
        });
        added.await.expect("nothing is in the way");
    }

    /// Asks for a VM. The request id is its name.
    pub(crate) async fn create_vm(&self, text: &str) -> Result<OperationId, SubmitError<AdmissionError>> {
        let request = CreateVm {
            name: text.to_owned(),
            vcpus: 1,
            memory_bytes: 64 << 20,
            image: "probe".to_owned(),
            cmdline: String::new(),
            volumes: vec![],
            anti_affinity_group: String::new(),
            priority: 0,
            cloud_init: None,
            devices: Default::default(),
            constraints: Default::default(),
            stall: None,
            start: true,
        };
        let identity = RequestIdentity { request_id: text.to_owned(), random: 0 };
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::create_vm(view.state, &request, &identity, view.now.wall)?;
            Ok((admitted.operation, admitted.txn))
        });
        admitted.await
    }

    /// Waits for the end of an operation.
    pub(crate) async fn ended_operation(&self, id: OperationId) -> Operation {
        let ended = move |view: View<'_>| {
            let operation = view.state.operations.get(&id)?;
            (operation.state != OperationState::Running).then(|| operation.value.clone())
        };
        self.until("the operation ends", ended).await
    }

    /// Creates a VM and waits until it runs.
    pub(crate) async fn running_vm(&self, text: &str) -> Vm {
        let operation = self.create_vm(text).await.expect("it is admitted");
        let operation = self.ended_operation(operation).await;
        assert_eq!(operation.state, OperationState::Done, "{operation:?}");
        let text = text.to_owned();
        self.until("the VM is there", move |view| view.state.vm_named(&text).map(|vm| vm.value.clone())).await
    }
}

/// Registers, then beats for as long as the node is powered.
async fn beat<S: Store>(cluster: Cluster<S>, hosts: Hosts, node: NodeId) {
    let registration = Registration {
        node,
        name: format!("n{}", node.as_u128()),
        address: "127.0.0.1:1".to_owned(),
        vcpus: 64,
        memory_bytes: 64 << 30,
        incarnation: "first".to_owned(),
        pools: vec!["default".to_owned()],
        version: "test".to_owned(),
        facts: Default::default(),
        librbd: String::new(),
    };
    let mut sequence = 0;
    let mut interval = tokio::time::interval(Timers::default().get().heartbeat);
    loop {
        interval.tick().await;
        let vms = {
            let state = hosts.state();
            if state.dead.contains(&node) {
                return;
            }
            let running = state.running.get(&node).cloned().unwrap_or_default();
            running.into_iter().map(|(vm, epoch)| (vm, report(epoch))).collect()
        };
        sequence += 1;
        let heartbeat = Heartbeat { node, incarnation: Incarnation("first".to_owned()), sequence, vms };
        match cluster.heartbeat(heartbeat).await {
            Err(_) => return,
            Ok(HeartbeatAnswer::Known { .. }) => {}
            Ok(HeartbeatAnswer::Unknown { .. }) => {
                let registration = registration.clone();
                let registered = cluster.submit(move |view| {
                    let txn = admission::register_node(view.state, &registration, view.now.wall)?;
                    Ok::<_, AdmissionError>(((), txn))
                });
                if registered.await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A fresh clock.
pub(crate) fn clock() -> VirtualClock {
    VirtualClock(Instant::now())
}

/// A store with plenty of history.
pub(crate) fn store() -> MemoryStore {
    MemoryStore::default()
}

/// A valid name.
pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("the tests' names are valid")
}

/// The state that a store holds, as a new driver would read it.
pub(crate) async fn stored(store: &impl Store) -> ClusterState {
    let mut state = ClusterState::new();
    let listing = store.list("", None, usize::MAX).await.expect("reading works");
    assert!(!listing.more, "a test stores little");
    for entry in listing.entries {
        let key: drover_records::StoredKey = entry.key.as_str().parse().expect("a key of ours");
        if let drover_records::Value::Record(record) =
            drover_records::decode(&key, &entry.value).expect("sound")
        {
            state.apply(Change::Put { revision: entry.revision, record });
        }
    }
    state
}
