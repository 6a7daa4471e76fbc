//! The VM's thread with a machine that only remembers what was done to it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use drover_guest_memory::{DirtyPages, GuestMemory};
use drover_ids::{MigrationId, NodeId, OperationId, OwnerEpoch, VmId};
use drover_lifecycle::{BootTime, Command, Lease, StopReason};
use drover_machine::{CpuBaseline, DeviceBus, Reclaimed, ResetAction};
use drover_migration::{
    GuestError, MigratableGuest,
    shape::{CpuShape, MachineShape},
};
use drover_saved_state::Envelope;
use drover_units::{Bytes, VcpuCount};
use drover_wire::vm::v1 as wire;

use super::*;
use crate::{
    hosted::{EndSink, HostedVm, Owner},
    order::Change,
    order::{Incoming, Outgoing, Platform, StallAction, StallPolicy, Task, VmConfig},
};

const VM: VmId = VmId::from_u128(1);
const MIGRATION: MigrationId = MigrationId::from_u128(2);
const SECOND: Duration = Duration::from_secs(1);

/// What happened to the machines of one process, and what is to go wrong next.
#[derive(Clone, Default)]
struct Bench {
    done: Arc<Mutex<Vec<String>>>,
    fails: Arc<Mutex<Option<&'static str>>>,
    ended: Arc<Mutex<Option<EndSink>>>,
    /// A build waits here, where there is something to wait for.
    slow: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
}

impl Bench {
    fn note(&self, what: impl Into<String>) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(what.into());
    }

    fn done(&self) -> String {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).join(" ")
    }

    /// From now on this call fails.
    fn fail(&self, call: Option<&'static str>) {
        *self.fails.lock().unwrap_or_else(PoisonError::into_inner) = call;
    }

    fn attempt(&self, call: &'static str) -> Result<(), GuestError> {
        if *self.fails.lock().unwrap_or_else(PoisonError::into_inner) == Some(call) {
            return Err(GuestError::new(format!("no {call} today")));
        }
        self.note(call);
        Ok(())
    }
}

impl Hypervisor for Bench {
    type Machine = Remembering;

    fn build(&mut self, config: &VmConfig, owner: Owner, ended: EndSink) -> Result<Remembering, Refused> {
        self.attempt("build").map_err(|error| Refused::Precondition(error.to_string()))?;
        if let Some(slow) = self.slow.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = slow.recv_timeout(10 * SECOND);
        }
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        Ok(Remembering { bench: self.clone(), vm: owner.vm, memory: GuestMemory::anonymous(config.memory) })
    }

    fn build_incoming(
        &mut self,
        config: &VmConfig,
        owner: Owner,
        _: EndSink,
    ) -> Result<Remembering, Refused> {
        Ok(Remembering { bench: self.clone(), vm: owner.vm, memory: GuestMemory::anonymous(config.memory) })
    }

    fn change(&mut self, machine: &mut Remembering, _: &Change) -> Result<(), Refused> {
        machine.bench.attempt("change").map_err(|error| Refused::Precondition(error.to_string()))
    }
}

struct Remembering {
    bench: Bench,
    vm: VmId,
    memory: GuestMemory,
}

impl HostedVm for Remembering {
    fn start(&mut self) -> Result<(), GuestError> {
        self.bench.attempt("start")
    }

    fn last_owners(&self) -> Result<Vec<Option<drover_block::Owner>>, GuestError> {
        Ok(Vec::new())
    }

    fn reclaim(&mut self, _: Duration) -> Result<Reclaimed, GuestError> {
        self.bench.attempt("reclaim")?;
        Ok(Reclaimed::default())
    }

    fn end(self, _: Duration) -> Result<(), GuestError> {
        self.bench.attempt("end")
    }
}

impl MigratableGuest for Remembering {
    fn shape(&self) -> MachineShape {
        MachineShape {
            vm: self.vm,
            vcpus: VcpuCount::new(1),
            memory: self.memory.layout().ranges().iter().map(Into::into).collect(),
            page_size: 4096,
            devices: Vec::new(),
            cpu: CpuShape::default(),
        }
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn start_dirty_log(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn take_dirty(&mut self) -> Result<DirtyPages, GuestError> {
        Ok(DirtyPages::default())
    }

    fn mark_dirty(&mut self, _: &DirtyPages) {}

    fn stop_dirty_log(&mut self) {}

    fn pause(&mut self, _: Duration) -> Result<(), GuestError> {
        self.bench.attempt("pause")
    }

    fn save(&mut self) -> Result<Vec<Envelope>, GuestError> {
        Ok(Vec::new())
    }

    fn release_volumes(&mut self) -> Result<(), GuestError> {
        self.bench.attempt("release")
    }

    fn acquire_volumes(&mut self, epoch: OwnerEpoch) -> Result<(), GuestError> {
        self.bench.attempt("acquire")?;
        self.bench.note(epoch.to_string());
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.bench.attempt("resume")
    }

    fn restore(&mut self, _: &[Envelope]) -> Result<(), GuestError> {
        Ok(())
    }

    fn retire(&mut self) {
        self.bench.note("retire");
    }

    fn discard(&mut self) {
        self.bench.note("discard");
    }
}

/// A process without its socket.
struct Process {
    bench: Bench,
    vm: VmHandle<Remembering>,
    _log: crate::console::ConsoleLog,
    _dir: tempfile::TempDir,
}

impl Process {
    fn empty() -> Self {
        Self::told(Bench::default(), Vec::new())
    }

    /// One whose first calls came ahead.
    fn told(bench: Bench, ahead: Vec<Order>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let console = Console::new(|_| {});
        let log =
            console.log_to(crate::console::LogFile::open(dir.path()).expect("a log")).expect("a thread");
        let status = Arc::new(Status::new(None));
        let vm = start(bench.clone(), status, console, (Files::default(), ahead)).expect("a thread");
        Self { bench, vm, _log: log, _dir: dir }
    }

    async fn running(epoch: u64) -> Self {
        let process = Self::empty();
        process.ok(1, epoch, Task::Create { config: config(), lease: None, resume: None }).await;
        process.ok(1, epoch, Task::Start).await;
        process
    }

    async fn ask(&self, operation: u128, epoch: u64, task: Task) -> Answer {
        let answer = self.vm.order(order(operation, epoch, task));
        tokio::time::timeout(10 * SECOND, answer).await.expect("every order is answered")
    }

    async fn ok(&self, operation: u128, epoch: u64, task: Task) -> Reply {
        self.ask(operation, epoch, task).await.expect("carried out")
    }

    async fn reaches(&self, state: wire::VmState) -> wire::VmInfo {
        let mut info = self.vm.status().subscribe();
        let reached = info.wait_for(|info| info.state() == state);
        let reached = tokio::time::timeout(10 * SECOND, reached).await;
        reached.unwrap_or_else(|_| panic!("{state:?} is never reached")).expect("the status lives").clone()
    }
}

fn order(operation: u128, epoch: u64, task: Task) -> Order {
    let command = Command { operation: OperationId::from_u128(operation), epoch: OwnerEpoch::new(epoch) };
    Order { command, task }
}

fn create() -> Task {
    Task::Create { config: config(), lease: None, resume: None }
}

fn config() -> VmConfig {
    VmConfig {
        vm: VM,
        name: "web".to_owned(),
        node: NodeId::from_u128(3),
        vcpus: VcpuCount::new(1),
        memory: Bytes::mib(4),
        kernel: "/kernel".into(),
        cmdline: String::new(),
        disks: Vec::new(),
        stall: StallPolicy { deadline: 5 * SECOND, action: StallAction::Wait },
        initrd: None,
        platform: Platform {
            bus: DeviceBus::VirtioMmio,
            cpu: CpuBaseline::HOST,
            on_reset: ResetAction::Restart,
        },
        nics: Vec::new(),
        devices: Default::default(),
    }
}

fn lease_for(pause_in: Duration, kill_in: Duration) -> Lease {
    let at = |duration: Duration| BootTime::from_ns(boottime::now().as_ns() + duration.as_nanos() as u64);
    Lease::new(at(pause_in), at(kill_in)).expect("a valid lease")
}

fn outgoing(target: SocketAddr, target_epoch: u64) -> Task {
    let target_epoch = OwnerEpoch::new(target_epoch);
    Task::MigrateOut(Outgoing { migration: MIGRATION, target, target_epoch, downtime_target: None })
}

async fn incoming(target: &Process, epoch: u64) -> SocketAddr {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let task = Task::MigrateIn(Incoming { migration: MIGRATION, config: config(), listen, lease: None });
    target.ok(2, epoch, task).await.listening.expect("an address")
}

#[tokio::test]
async fn a_vm_lives_from_create_to_stop() {
    let process = Process::running(5).await;
    let info = process.vm.status().info();
    assert_eq!((info.state(), info.owner_epoch, info.name.as_str()), (wire::VmState::Running, 5, "web"));
    process.ok(2, 5, Task::Pause).await;
    process.ok(3, 5, Task::Resume).await;
    let info = process.ok(4, 5, Task::Stop).await.info;
    assert_eq!((info.state(), info.stop_reason()), (wire::VmState::Stopped, wire::StopReason::Command));
    assert_eq!(process.bench.done(), "build start pause resume end");
}

#[tokio::test]
async fn a_repeated_command_reaches_the_machine_once() {
    let process = Process::running(5).await;
    process.ok(2, 5, Task::Pause).await;
    process.ok(2, 5, Task::Pause).await;
    process.ok(1, 5, Task::Create { config: config(), lease: None, resume: None }).await;
    assert_eq!(process.bench.done(), "build start pause");
}

#[tokio::test]
async fn a_machine_that_cannot_be_built_leaves_the_process_empty() {
    let process = Process::empty();
    process.bench.fail(Some("build"));
    let create = Task::Create { config: config(), lease: None, resume: None };
    let refused = process.ask(1, 5, create.clone()).await.expect_err("refused");
    assert_eq!(refused.to_string(), "no build today");
    assert_eq!(process.vm.status().info().state(), wire::VmState::Empty);
    process.bench.fail(None);
    process.ok(1, 5, create).await;
}

#[tokio::test]
async fn calls_that_come_ahead_are_carried_out_once_and_their_callers_hear_so() {
    let process = Process::told(Bench::default(), vec![order(1, 5, create()), order(1, 5, Task::Start)]);
    process.reaches(wire::VmState::Running).await;
    process.ok(1, 5, create()).await;
    process.ok(1, 5, Task::Start).await;
    assert_eq!(process.bench.done(), "build start");
}

#[tokio::test]
async fn who_makes_a_call_that_was_refused_ahead_hears_why_once() {
    let bench = Bench::default();
    bench.fail(Some("build"));
    let process = Process::told(bench, vec![order(1, 5, create()), order(1, 5, Task::Start)]);
    let other = process.ask(2, 5, Task::Pause).await.expect_err("there is no VM");
    process.bench.fail(None);
    assert!(!other.to_string().contains("no build today"), "{other}");
    let refused = process.ask(1, 5, create()).await.expect_err("refused ahead");
    assert_eq!(refused.to_string(), "no build today");
    process.ok(1, 5, create()).await;
    process.ok(1, 5, Task::Start).await;
    assert_eq!(process.bench.done(), "build start");
}

#[tokio::test]
async fn the_end_of_the_guest_ends_the_vm() {
    let process = Process::running(5).await;
    let ended = process.bench.ended.lock().unwrap().clone().expect("built");
    ended(StopReason::GuestShutdown, "the guest powered off".to_owned());
    let info = process.reaches(wire::VmState::Stopped).await;
    assert_eq!(info.stop_reason(), wire::StopReason::GuestShutdown);
    assert_eq!(process.bench.done(), "build start end");
}

#[tokio::test]
async fn an_overdue_lease_pauses_until_it_is_renewed() {
    let process = Process::running(5).await;
    let renewal = |pause_in| Renewal { epoch: OwnerEpoch::new(5), lease: lease_for(pause_in, 3600 * SECOND) };
    process.vm.renew(renewal(SECOND / 20)).expect("leased");
    process.reaches(wire::VmState::Paused).await;
    process.vm.renew(renewal(1800 * SECOND)).expect("renewed");
    process.reaches(wire::VmState::Running).await;
    assert_eq!(process.bench.done(), "build start pause resume");
}

#[tokio::test]
async fn a_lease_is_renewed_while_slow_storage_holds_the_vms_thread() {
    let process = Process::empty();
    let (storage_answers, slow) = mpsc::channel();
    *process.bench.slow.lock().unwrap() = Some(slow);
    let hour = 3600 * SECOND;
    let lease = Some(lease_for(SECOND / 2, hour));
    let built = process.ok(1, 5, Task::Create { config: config(), lease, resume: None });
    let renewed = async {
        while process.bench.done() != "build" {
            tokio::task::yield_now().await;
        }
        let renewal = Renewal { epoch: OwnerEpoch::new(5), lease: lease_for(hour, hour * 2) };
        process.vm.renew(renewal).expect("renewed although the thread is busy");
        // Longer than the lease that the VM was created with.
        tokio::time::sleep(SECOND / 2).await;
        storage_answers.send(()).expect("the build waits");
    };
    tokio::join!(built, renewed);
    process.ok(1, 5, Task::Start).await;
    assert_eq!(process.vm.status().info().state(), wire::VmState::Running);
}

#[tokio::test]
async fn a_pause_that_fails_lets_the_guest_go_on() {
    let process = Process::running(5).await;
    process.bench.fail(Some("pause"));
    let refused = process.ask(2, 5, Task::Pause).await.expect_err("refused");
    assert_eq!(refused.to_string(), "pausing the machine failed: no pause today");
    assert_eq!(process.vm.status().info().state(), wire::VmState::Running);
    assert_eq!(process.bench.done(), "build start resume");
}

#[tokio::test]
async fn a_vm_moves_from_one_process_to_another() {
    let (source, target) = (Process::running(5).await, Process::empty());
    let address = incoming(&target, 6).await;
    source.ok(2, 5, outgoing(address, 6)).await;
    let info = source.reaches(wire::VmState::Migrated).await;
    let migration = info.migration.expect("published");
    assert_eq!(migration.phase(), wire::MigrationPhase::SourceRetired);
    assert!(migration.downtime_us > 0 && migration.rounds > 0, "{migration:?}");
    assert_eq!(target.reaches(wire::VmState::Running).await.owner_epoch, 6);
    assert_eq!(source.bench.done(), "build start pause release retire");
    assert_eq!(target.bench.done(), "acquire 6 resume");
}

#[tokio::test]
async fn a_migration_to_nowhere_leaves_the_vm_running() {
    let source = Process::running(5).await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    source.ok(2, 5, outgoing(nowhere, 6)).await;
    let mut info = source.vm.status().subscribe();
    let aborted = |info: &wire::VmInfo| {
        info.state() == wire::VmState::Running
            && info.migration.as_ref().is_some_and(|m| m.phase() == wire::MigrationPhase::Aborted)
    };
    tokio::time::timeout(10 * SECOND, info.wait_for(aborted)).await.expect("aborted").expect("alive");
    source.ok(3, 5, Task::Pause).await;
}

#[tokio::test]
async fn a_target_that_is_stopped_discards_its_machine() {
    let target = Process::empty();
    incoming(&target, 6).await;
    let info = target.ok(3, 6, Task::Stop).await.info;
    assert_eq!((info.state(), info.stop_reason()), (wire::VmState::Stopped, wire::StopReason::Command));
    assert_eq!(target.bench.done(), "discard");
}

#[tokio::test]
async fn a_target_that_cannot_take_the_volumes_leaves_the_vm_to_the_next_grant() {
    let (source, target) = (Process::running(5).await, Process::empty());
    target.bench.fail(Some("acquire"));
    let address = incoming(&target, 6).await;
    source.ok(2, 5, outgoing(address, 6)).await;
    let info = target.reaches(wire::VmState::Stopped).await;
    assert_eq!(info.stop_reason(), wire::StopReason::MigrationFailed);
    source.reaches(wire::VmState::Committed).await;

    source.bench.fail(Some("acquire"));
    let refused = source.ask(3, 7, Task::Resume).await.expect_err("the volumes are not to be had");
    assert!(refused.to_string().contains("no acquire today"), "{refused}");
    source.bench.fail(None);
    let info = source.ok(3, 7, Task::Resume).await.info;
    assert_eq!((info.state(), info.owner_epoch), (wire::VmState::Running, 7));
    assert_eq!(source.bench.done(), "build start pause release acquire 7 resume");
}

#[tokio::test]
async fn a_committed_vm_can_be_stopped() {
    let (source, target) = (Process::running(5).await, Process::empty());
    target.bench.fail(Some("acquire"));
    let address = incoming(&target, 6).await;
    source.ok(2, 5, outgoing(address, 6)).await;
    source.reaches(wire::VmState::Committed).await;
    let info = source.ok(3, 5, Task::Stop).await.info;
    assert_eq!(info.state(), wire::VmState::Stopped);
}

#[tokio::test]
async fn a_vm_that_cannot_be_suspended_goes_on_and_one_that_can_has_ended() {
    let process = Process::running(5).await;
    let path = process._dir.path().join("suspended");
    process.bench.fail(Some("release"));
    let refused = process.ask(2, 5, Task::Suspend { path: path.clone() }).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("no release today")));
    assert!(process.bench.done().ends_with("pause acquire 5 resume"), "{}", process.bench.done());
    assert_eq!(process.vm.status().info().state(), wire::VmState::Running);
    assert!(drover_suspend::SuspendFile::open(&path).is_err(), "and the file holds nothing");

    process.bench.fail(None);
    let info = process.ok(3, 5, Task::Suspend { path: path.clone() }).await.info;
    assert_eq!((info.state(), info.stop_reason()), (wire::VmState::Stopped, wire::StopReason::Suspended));
    assert!(process.bench.done().ends_with("pause release"), "{}", process.bench.done());
    let file = drover_suspend::SuspendFile::open(&path).expect("whole");
    assert_eq!(file.identity().epoch, OwnerEpoch::new(5));
}
