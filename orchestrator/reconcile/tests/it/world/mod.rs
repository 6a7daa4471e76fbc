//! The world: one clock, one queue of what happens when, a store, hosts, disks, and the planner that runs now.

mod agent;
mod disk;
mod host;
mod moves;
mod network;
mod rng;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use drover_cluster_state::{
    ClusterState, Image, Moment, Name, Now, Operation, OperationState, Record, RunState, Stored, Txn, Vm,
    WallTime,
};
use drover_ids::{NodeId, OperationId, VolumeId};
use drover_invariants::{History, Runner, check, check_runners};
use drover_reconcile::{
    Book, Event, HeartbeatAnswer, NoStopwatch, Planner, Timers,
    admission::{
        self, AdmissionError, Admitted, CreateVm, CreateVolume, MigrateVm, Registration, RequestIdentity,
    },
};
use drover_units::Bytes;

use self::{disk::Disk, network::Happening};
pub(crate) use self::{host::Host, network::Weather, rng::Rng};

const TICK: u64 = 100;
/// How often the guests write.
const GUEST: u64 = 50;

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) weather: Weather,
    pub(crate) store: ClusterState,
    revision: u64,
    pub(crate) planner: Option<Planner>,
    /// Tells apart answers to a planner that is gone.
    life: u64,
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    pub(crate) disks: BTreeMap<VolumeId, Disk>,
    queue: BTreeMap<(u64, u64), Happening>,
    queued: u64,
    history: History,
    pub(crate) events: Vec<String>,
    requests: u128,
    watch_busy_until: u64,
    heartbeat_answer: Option<HeartbeatAnswer>,
    /// VMs whose power button has been pressed.
    pub(crate) pressed: Vec<drover_ids::VmId>,
    /// A move's Commit is lost on its way.
    pub(crate) lose_commits: bool,
    /// The answers to StopVm are lost.
    pub(crate) lose_stops: bool,
    /// A target's word that it runs is lost on its way.
    pub(crate) lose_resumed: bool,
    /// Where VMs were brought up, and whether that was to be from their memory.
    pub(crate) ensured: Vec<(NodeId, bool)>,
}

impl World {
    /// Nodes n1.. with so many CPUs each, registered and heard, in good weather.
    pub(crate) fn new(seed: u64, cpus: &[u32]) -> Self {
        let mut world = Self {
            now: 1_000,
            rng: Rng::new(seed),
            weather: Weather::good(),
            store: ClusterState::new(),
            revision: 0,
            planner: None,
            life: 0,
            hosts: BTreeMap::new(),
            disks: BTreeMap::new(),
            queue: BTreeMap::new(),
            queued: 0,
            history: History::new(),
            events: Vec::new(),
            pressed: Vec::new(),
            requests: 1 << 64,
            watch_busy_until: 0,
            heartbeat_answer: None,
            lose_commits: false,
            lose_stops: false,
            lose_resumed: false,
            ensured: Vec::new(),
        };
        let mut txn = Txn::new();
        txn.create(Record::Image(Image {
            name: Name::new("probe").unwrap(),
            pool: Name::new("default").unwrap(),
            size: Bytes::kib(64),
            sha256: "0".repeat(64),
            min_memory: Bytes::mib(16),
            created_at: WallTime::default(),
        }));
        world.accept(txn).unwrap();
        world.start_planner();
        for (index, vcpus) in cpus.iter().enumerate() {
            let host = Host::new(index as u64 + 1, *vcpus);
            let id = host.id;
            world.hosts.insert(id, host);
            world.after(1, Happening::Heartbeat { node: id, start: 1, again: true });
        }
        world.after(GUEST, Happening::Guests);
        world.run(1_000);
        world
    }

    pub(crate) fn instant(&self) -> Now {
        Now {
            moment: Moment::from_millis(self.now),
            wall: WallTime::from_unix_millis(1_700_000_000_000 + self.now),
        }
    }

    pub(crate) fn timers() -> Timers {
        Timers::default()
    }

    pub(crate) fn start_planner(&mut self) {
        self.life += 1;
        self.planner =
            Some(Planner::new(Self::timers(), self.store.clone(), self.instant(), Box::new(NoStopwatch)));
        let life = self.life;
        self.after(1, Happening::Tick { life });
    }

    pub(crate) fn kill_planner(&mut self) {
        self.planner = None;
    }

    /// Lets time pass, and everything happen that is due.
    pub(crate) fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(((at, _), _)) = self.queue.first_key_value() {
            if *at > until {
                break;
            }
            let ((at, _), happening) = self.queue.pop_first().expect("it was there");
            self.now = at;
            self.happen(happening);
            self.check();
        }
        self.now = until;
    }

    /// Lets time pass until something is so, and panics when it never is.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, limit: Duration, mut so: impl FnMut(&Self) -> bool) -> u64 {
        let (start, deadline) = (self.now, self.now + limit.as_millis() as u64);
        while !so(self) {
            assert!(self.now < deadline, "not within {limit:?}: {what}\n{}", self.describe());
            self.run(10);
        }
        self.now - start
    }

    pub(crate) fn after(&mut self, ms: u64, happening: Happening) {
        self.queued += 1;
        self.queue.insert((self.now + ms, self.queued), happening);
    }

    /// Gives the planner an event, and its effects to the world.
    fn feed(&mut self, event: Event) {
        let now = self.instant();
        let Some(planner) = &mut self.planner else { return };
        for effect in planner.step(now, event) {
            self.carry_out(effect);
        }
    }

    /// The invariants, and what really runs.
    fn check(&self) {
        let runners: Vec<Runner> = self.hosts.values().flat_map(|host| self.runners(host)).collect();
        let granted = |vm| self.store.vms.get(&vm).map(|vm| vm.ownership.highest());
        let violations = check_runners(runners, granted);
        assert!(violations.is_empty(), "{violations:?}\n{}", self.describe());
        // What placement keeps step by step is what a fresh look at the state would give.
        // Looks at everything: not after each of the many happenings of a millisecond.
        let due = self.now.is_multiple_of(250);
        if let Some(Err(differs)) = self.planner.as_ref().filter(|_| due).map(Planner::verify_book) {
            panic!("{differs}\n{}", self.describe());
        }
    }

    fn runners(&self, host: &Host) -> Vec<Runner> {
        if !self.may_run(host) {
            return Vec::new();
        }
        let executing = host.processes.iter().filter(|(_, p)| {
            !p.has_ended() && matches!(p.report.state, RunState::Running | RunState::MigratingOut)
        });
        executing.map(|(vm, p)| Runner { vm: *vm, node: host.id, epoch: p.report.epoch }).collect()
    }

    /// Whether the lease lets its VMs execute now.
    fn may_run(&self, host: &Host) -> bool {
        let pause = Self::timers().get().pause_after;
        host.up && host.leased.is_some_and(|at| Moment::from_millis(self.now).since(at) < pause)
    }

    fn observe_store(&mut self) {
        let mut violations = check(&self.store);
        violations.extend(self.history.observe(&self.store));
        assert!(violations.is_empty(), "{violations:?}\n{}", self.describe());
    }

    // What clients do.

    pub(crate) fn identity(&mut self) -> RequestIdentity {
        self.requests += 1;
        RequestIdentity { request_id: String::new(), random: self.requests }
    }

    /// What a control plane answers from: what is stored, so that clients read their own writes, and what its planner
    /// has observed.
    pub(crate) fn view(&self) -> ClusterState {
        let mut view = self.store.clone();
        if let Some(planner) = &self.planner {
            view.sessions = planner.state().sessions.clone();
            view.progress = planner.state().progress.clone();
        }
        view
    }

    fn admit(&mut self, result: Result<Admitted, AdmissionError>) -> Result<OperationId, AdmissionError> {
        let admitted = result?;
        if let Some(txn) = admitted.txn {
            // A conflict is the client's to repeat; in this world it just does not happen.
            let _ = self.accept(txn);
        }
        Ok(admitted.operation)
    }

    pub(crate) fn create(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut CreateVm),
    ) -> Result<OperationId, AdmissionError> {
        let mut request = CreateVm {
            name: name.to_owned(),
            vcpus: 1,
            memory_bytes: 256 << 20,
            image: "probe".to_owned(),
            cmdline: String::new(),
            volumes: Vec::new(),
            anti_affinity_group: String::new(),
            priority: 0,
            cloud_init: None,
            devices: Default::default(),
            constraints: Default::default(),
            stall: None,
            start: true,
        };
        change(&mut request);
        let identity = self.identity();
        let result = admission::create_vm(&self.view(), &request, &identity, self.instant().wall);
        self.admit(result)
    }

    /// Asks for several VMs at once.
    pub(crate) fn create_group(
        &mut self,
        name: &str,
        count: u32,
        change: impl FnOnce(&mut CreateVm),
    ) -> Result<OperationId, AdmissionError> {
        let mut request = CreateVm {
            name: name.to_owned(),
            vcpus: 1,
            memory_bytes: 256 << 20,
            image: "probe".to_owned(),
            cmdline: String::new(),
            volumes: Vec::new(),
            anti_affinity_group: String::new(),
            priority: 0,
            cloud_init: None,
            devices: Default::default(),
            constraints: Default::default(),
            stall: None,
            start: true,
        };
        change(&mut request);
        let identity = self.identity();
        let result =
            admission::create_vm_group(&self.view(), &request, count, &identity, self.instant().wall);
        self.admit(result)
    }

    pub(crate) fn start(&mut self, vm: &str) -> Result<OperationId, AdmissionError> {
        let identity = self.identity();
        let result = admission::start_vm(&self.view(), vm, &identity, self.instant().wall);
        self.admit(result)
    }

    pub(crate) fn stop(&mut self, vm: &str) -> Result<OperationId, AdmissionError> {
        self.stop_within(vm, 0)
    }

    /// By its power button first.
    pub(crate) fn stop_within(&mut self, vm: &str, graceful_ms: u32) -> Result<OperationId, AdmissionError> {
        let identity = self.identity();
        let result = admission::stop_vm(&self.view(), (vm, graceful_ms), &identity, self.instant().wall);
        self.admit(result)
    }

    pub(crate) fn delete(&mut self, vm: &str) -> Result<OperationId, AdmissionError> {
        let identity = self.identity();
        let result = admission::delete_vm(&self.view(), vm, &identity, self.instant().wall);
        self.admit(result)
    }

    pub(crate) fn migrate(&mut self, vm: &str, target: &str) -> Result<OperationId, AdmissionError> {
        let identity = self.identity();
        let request = MigrateVm { vm: vm.to_owned(), target_node: target.to_owned(), downtime_target_ms: 0 };
        let view = self.view();
        let result = admission::migrate_vm(&view, &Book::of(&view), &request, &identity, self.instant().wall);
        self.admit(result)
    }

    pub(crate) fn cancel(&mut self, operation: OperationId) -> Result<OperationId, AdmissionError> {
        let result = admission::cancel_operation(&self.view(), &operation.to_string());
        self.admit(result)
    }

    pub(crate) fn volume(&mut self, name: &str) -> VolumeId {
        let identity = self.identity();
        let pools = BTreeSet::from([Name::new("default").unwrap()]);
        let request = CreateVolume { name: name.to_owned(), pool: String::new(), size_bytes: 1 << 20 };
        let admitted =
            admission::create_volume(&self.store, &pools, &request, &identity, self.instant().wall).unwrap();
        self.accept(admitted.txn.unwrap()).unwrap();
        let ready = admission::ready_volume(&self.store, admitted.volume).unwrap();
        self.accept(ready).unwrap();
        self.disks.insert(admitted.volume, Disk::default());
        admitted.volume
    }

    fn register(&mut self, node: NodeId) {
        let host = &self.hosts[&node];
        let request = Registration {
            node,
            name: host.name.clone(),
            address: format!("{}:1", host.name),
            vcpus: host.vcpus,
            memory_bytes: 64 << 30,
            incarnation: host.incarnation().0,
            pools: vec!["default".to_owned()],
            librbd: String::new(),
            version: "1".to_owned(),
            facts: Default::default(),
        };
        if let Some(txn) = admission::register_node(&self.store, &request, self.instant().wall).unwrap() {
            self.accept(txn).unwrap();
        }
        self.hosts.get_mut(&node).unwrap().registered = true;
    }

    // What there is to see.

    pub(crate) fn vm(&self, name: &str) -> &Stored<Vm> {
        self.store.vm_named(name).unwrap_or_else(|| panic!("no VM {name}"))
    }

    pub(crate) fn operation(&self, id: OperationId) -> &Operation {
        &self.store.operations[&id].value
    }

    pub(crate) fn ended(&self, id: OperationId) -> Option<OperationState> {
        self.store.operations.get(&id).filter(|o| !o.is_running()).map(|o| o.state)
    }

    /// The node on which a VM executes now.
    pub(crate) fn runs_on(&self, name: &str) -> Option<String> {
        let vm = self.store.vm_named(name)?.id;
        let on = |host: &&Host| self.runners(host).iter().any(|runner| runner.vm == vm);
        self.hosts.values().find(on).map(|host| host.name.clone())
    }

    pub(crate) fn owner(&self, name: &str) -> Option<String> {
        let node = self.vm(name).ownership.node()?;
        Some(self.hosts[&node].name.clone())
    }

    pub(crate) fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.values_mut().find(|host| host.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    pub(crate) fn has_event(&self, kind: &str) -> bool {
        self.events.iter().any(|event| event.contains(&format!("{kind} ")))
    }

    /// Everything, for a failed test.
    pub(crate) fn describe(&self) -> String {
        let view = self.view();
        let mut text = format!("at {} ms\n", self.now);
        for vm in self.store.vms.values() {
            let progress = view.progress.get(&vm.id);
            text += &format!(
                "  VM {} {:?} {:?} highest {} restarts {:?} progress {progress:?}\n",
                vm.spec.name,
                vm.desired,
                vm.ownership.right(),
                vm.ownership.highest(),
                vm.restarts
            );
        }
        for host in self.hosts.values() {
            let state = view.node_state(host.id);
            text += &format!(
                "  node {} {state:?} up {} agent {} linked {} leased {:?}\n",
                host.name, host.up, host.agent, host.linked, host.leased
            );
            for (vm, process) in &host.processes {
                let r = &process.report;
                let migration = r.migration.as_ref().map(|m| m.phase);
                text += &format!("    {vm} epoch {} {:?} {:?} {migration:?}\n", r.epoch, r.state, r.exit);
            }
        }
        for operation in self.store.operations.values().filter(|o| o.is_running()) {
            text += &format!("  running: {} {} {}\n", operation.kind, operation.subject_name, operation.step);
        }
        let tail = self.events.len().saturating_sub(60);
        text + &self.events[tail..].join("\n")
    }

    /// The end of a process by a signal from outside.
    pub(crate) fn kill_process(&mut self, node: &str, vm: &str) {
        let id = self.vm(vm).id;
        let node = self.host(node).id;
        self.end_process(node, id, drover_cluster_state::StopReason::Unknown, "killed by signal 9");
    }

    /// The guest's own end.
    pub(crate) fn shut_down_guest(&mut self, node: &str, vm: &str) {
        let id = self.vm(vm).id;
        let node = self.host(node).id;
        self.end_process(node, id, drover_cluster_state::StopReason::GuestShutdown, "exit status 0");
    }

    /// Its memory is written into a file.
    pub(crate) fn suspend(&mut self, node: &str, vm: &str) {
        let id = self.vm(vm).id;
        let node = self.host(node).id;
        self.end_process(node, id, drover_cluster_state::StopReason::Suspended, "exit status 0");
    }

    /// The same, and nobody was there to see it.
    pub(crate) fn suspend_unseen(&mut self, node: &str, vm: &str) {
        let id = self.vm(vm).id;
        let host = self.host(node);
        host.processes.get_mut(&id).expect("it is there").report.has_file = true;
        let node = host.id;
        self.end_process(
            node,
            id,
            drover_cluster_state::StopReason::Unknown,
            "ended while no agent was watching",
        );
    }

    /// The same, said by a process that is still there.
    pub(crate) fn say_suspended(&mut self, node: &str, vm: &str) {
        self.say_ended(node, vm, drover_cluster_state::StopReason::Suspended);
    }

    /// The guest's shut-down, said by a process that is still there.
    pub(crate) fn say_shut_down(&mut self, node: &str, vm: &str) {
        self.say_ended(node, vm, drover_cluster_state::StopReason::GuestShutdown);
    }

    fn say_ended(&mut self, node: &str, vm: &str, reason: drover_cluster_state::StopReason) {
        let id = self.vm(vm).id;
        let host = self.host(node);
        let process = host.processes.get_mut(&id).expect("it is there");
        process.end(reason, "");
        process.report.exit = None;
        let node = host.id;
        self.free_volumes(node, id);
        self.nudge(node);
    }

    /// The power goes off.
    pub(crate) fn kill_node(&mut self, name: &str) {
        let host = self.host(name);
        host.up = false;
        host.processes.clear();
        let id = host.id;
        self.disks.values_mut().for_each(|disk| disk.release_node(id));
    }

    /// The power comes back; nothing of what ran is there.
    pub(crate) fn boot_node(&mut self, name: &str) {
        let host = self.host(name);
        host.up = true;
        host.leased = None;
        let node = host.id;
        self.restart_agent(node);
    }

    /// The agent is killed and started: the VMs run on, what it remembered is gone.
    pub(crate) fn restart_agent(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).unwrap();
        host.agent = true;
        host.start += 1;
        host.sequence = 0;
        host.registered = false;
        host.floors.clear();
        host.answered.clear();
        let start = host.start;
        self.after(5, Happening::Heartbeat { node, start, again: true });
    }
}
