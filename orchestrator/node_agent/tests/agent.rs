//! The node agent with real processes: what it starts, adopts, loses and ends.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "waits for real processes")]

mod support;

use std::{fs, time::Duration};

use drover_wire::{
    node::v1::{
        ConsoleRequest, GrantEpochRequest, ListVmsRequest, LogsRequest, MigrateOutRequest, PauseVmRequest,
        StaleVm, Timers,
    },
    vm::v1::VmState,
};
use rustix::process::Signal;
use support::{CALM, Node, VM, command, pid, session, signal, state};
use tokio_stream::iter;
use tonic::Code;

#[tokio::test]
async fn a_vm_runs_in_a_session_of_its_own_and_is_reported() {
    let node = Node::start(CALM).await;
    let status = node.ensure(1).await.unwrap();
    assert_eq!(state(&status), VmState::Running);
    assert_eq!(node.vmmds(), [pid(&status)]);
    assert_eq!(session(pid(&status)), pid(&status));
    let reported = node.reports("a running VM", |vm| state(vm) == VmState::Running).await;
    assert!(!reported.process_ended);
    assert_eq!(pid(&node.ensure(1).await.unwrap()), pid(&status), "ensuring twice has the effect of once");
}

#[tokio::test]
async fn a_lease_reaches_vmmd_and_grows_with_each_heartbeat() {
    let node = Node::start(CALM).await;
    node.ensure(1).await.unwrap();
    let first = node.lease_of_vmmd().await;
    assert!(first > 0);
    node.leased().await;
    node.leased().await;
    assert!(node.lease_of_vmmd().await > first);
}

#[tokio::test]
async fn a_new_agent_adopts_what_a_killed_one_left() {
    let mut node = Node::start(CALM).await;
    let before = pid(&node.ensure(3).await.unwrap());
    node.kill_agent();
    node.start_agent();
    node.leased().await;
    let reported = node.reports("the adopted VM", |vm| state(vm) == VmState::Running).await;
    assert_eq!(pid(&reported), before);
    assert_eq!(node.ensure(2).await.unwrap_err().code(), Code::FailedPrecondition);
    // Its death is seen, though it is not a child.
    signal(before, Signal::KILL);
    let reported = node.reports("the death", |vm| vm.process_ended).await;
    assert_eq!(state(&reported), VmState::Stopped);
    let registrations = node.told.lock().unwrap().registrations.clone();
    assert_ne!(registrations[0].incarnation, registrations[1].incarnation);
    assert_eq!(registrations[0].node_id, registrations[1].node_id);
}

#[tokio::test]
async fn sigterm_ends_the_agent_and_not_its_vms() {
    let mut node = Node::start(CALM).await;
    let before = pid(&node.ensure(1).await.unwrap());
    assert!(node.terminate_agent());
    assert_eq!(node.vmmds(), [before]);
    node.start_agent();
    node.leased().await;
    assert!(node.stop(1).await.unwrap().ended);
    assert_eq!(node.vmmds(), [0; 0]);
}

#[tokio::test]
async fn a_death_is_reported_with_its_cause_until_stop_acknowledges_it() {
    let node = Node::start(CALM).await;
    let running = pid(&node.ensure(1).await.unwrap());
    signal(running, Signal::KILL);
    let reported = node.reports("the death", |vm| vm.process_ended).await;
    assert_eq!(reported.exit, "killed by signal 9");
    assert_eq!(reported.info.unwrap().owner_epoch, 1);
    assert_eq!(node.ensure(1).await.unwrap_err().code(), Code::FailedPrecondition);
    assert!(node.stop(1).await.unwrap().ended);
    node.reports_none().await;
    assert!(!node.stop(1).await.unwrap().ended);
    assert_eq!(state(&node.ensure(2).await.unwrap()), VmState::Running);
}

#[tokio::test]
async fn a_vm_that_ended_unseen_is_reported_by_the_next_agent() {
    let mut node = Node::start(CALM).await;
    let running = pid(&node.ensure(1).await.unwrap());
    node.kill_agent();
    signal(running, Signal::KILL);
    node.until("the process to be gone", || node.vmmds().is_empty().then_some(())).await;
    node.start_agent();
    node.reports("the end", |vm| vm.process_ended).await;
}

#[tokio::test]
async fn stop_is_answered_when_no_process_is_left() {
    let node = Node::start(CALM).await;
    node.ensure(1).await.unwrap();
    assert!(node.stop(1).await.unwrap().ended);
    assert_eq!(node.vmmds(), [0; 0]);
    // A late command of the past finds a closed door, also after a restart of the agent.
    node.ensure(2).await.unwrap();
    node.stop(3).await.unwrap();
    let refused = node.ensure(2).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test]
async fn retired_epochs_survive_the_agent() {
    let mut node = Node::start(CALM).await;
    node.ensure(4).await.unwrap();
    node.stop(5).await.unwrap();
    let retired =
        || fs::read_to_string(node.run_dir().join("spec.json")).ok().filter(|text| text.contains("true"));
    node.until("the record", retired).await;
    node.kill_agent();
    node.start_agent();
    node.leased().await;
    assert_eq!(node.ensure(4).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(state(&node.ensure(6).await.unwrap()), VmState::Running);
}

#[tokio::test]
async fn a_vmmd_that_does_not_stop_is_killed() {
    let node = Node::start(CALM).await;
    node.misbehave("hang-in-stop");
    node.ensure(1).await.unwrap();
    assert!(node.stop(1).await.unwrap().ended);
    assert_eq!(node.vmmds(), [0; 0]);
}

#[tokio::test]
async fn a_stopped_process_that_cannot_answer_is_killed_too() {
    let node = Node::start(CALM).await;
    let running = pid(&node.ensure(1).await.unwrap());
    signal(running, Signal::STOP);
    assert!(node.stop(1).await.unwrap().ended);
    assert_eq!(node.vmmds(), [0; 0]);
}

#[tokio::test]
async fn a_vmmd_that_dies_at_once_says_why() {
    let node = Node::start(CALM).await;
    node.misbehave("die-at-once");
    let error = node.ensure(1).await.unwrap_err();
    assert!(error.message().contains("exit status 2"), "{error}");
    assert!(error.message().contains("cannot open /dev/kvm"), "{error}");
}

#[tokio::test]
async fn a_vmmd_that_never_listens_is_cleared_away() {
    let node = Node::start(CALM).await;
    node.misbehave("never-listen");
    let error = node.ensure(1).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    node.until("the process to be gone", || node.vmmds().is_empty().then_some(())).await;
    // It may have run, unheard: it was told to. So another epoch may try, and this one may not again.
    node.misbehave("");
    node.reports("the end", |vm| vm.process_ended).await;
    assert_eq!(node.ensure(1).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(state(&node.ensure(2).await.unwrap()), VmState::Running);
}

#[tokio::test]
async fn a_refusal_of_vmmd_reaches_the_caller_and_leaves_nothing() {
    let node = Node::start(CALM).await;
    node.misbehave("refuse-create");
    let error = node.ensure(1).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "the volume is locked"));
    node.until("the process to be gone", || node.vmmds().is_empty().then_some(())).await;
    // It never ran, so the same epoch may try again.
    node.misbehave("");
    node.reports("the end", |vm| vm.process_ended).await;
    assert_eq!(state(&node.ensure(1).await.unwrap()), VmState::Running);
}

#[tokio::test]
async fn a_half_started_vm_is_cleared_away_by_the_next_agent() {
    let mut node = Node::start(CALM).await;
    node.misbehave("hang-in-create");
    let mut agent = node.agent().await;
    let spec = Some(support::spec());
    let request = drover_wire::node::v1::EnsureVmRequest { command: command(1), spec, resume: false };
    let asking = tokio::spawn(async move { agent.ensure_vm(request).await });
    node.until("the process", || node.run_dir().join("vmmd.sock").exists().then_some(())).await;
    node.kill_agent();
    assert!(asking.await.unwrap().is_err());
    assert_eq!(node.vmmds().len(), 1);
    node.start_agent();
    node.reports("the end", |vm| vm.process_ended).await;
    assert_eq!(node.vmmds(), [0; 0]);
}

#[tokio::test]
async fn stop_during_a_start_ends_it() {
    let node = Node::start(CALM).await;
    node.misbehave("hang-in-create");
    let mut agent = node.agent().await;
    let spec = Some(support::spec());
    let request = drover_wire::node::v1::EnsureVmRequest { command: command(1), spec, resume: false };
    let asking = tokio::spawn(async move { agent.ensure_vm(request).await });
    node.until("the process", || node.run_dir().join("vmmd.sock").exists().then_some(())).await;
    assert!(node.stop(1).await.unwrap().ended);
    assert_eq!(asking.await.unwrap().unwrap_err().code(), Code::Aborted);
    assert_eq!(node.vmmds(), [0; 0]);
}

#[tokio::test]
async fn a_newer_epoch_replaces_the_process() {
    let node = Node::start(CALM).await;
    let first = pid(&node.ensure(1).await.unwrap());
    let second = pid(&node.ensure(2).await.unwrap());
    assert_ne!(first, second);
    assert_eq!(node.vmmds(), [second]);
}

#[tokio::test]
async fn a_node_without_a_lease_kills_its_vms() {
    let timers = Timers { heartbeat_interval_ms: 50, pause_after_ms: 1_000, kill_after_ms: 1_500 };
    let node = Node::start(timers).await;
    node.ensure(1).await.unwrap();
    node.told.lock().unwrap().refuse_lease = true;
    // This vmmd knows nothing of leases: the agent is the last resort.
    let reported = node.reports("the end", |vm| vm.process_ended).await;
    assert_eq!(reported.exit, "killed by signal 9");
    assert_eq!(node.ensure(2).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_stale_vm_is_reaped_before_work_is_taken() {
    let node = Node::start(CALM).await;
    node.ensure(1).await.unwrap();
    node.told.lock().unwrap().reap = vec![StaleVm { vm_id: VM.into(), epoch: 1 }];
    node.reports_none().await;
    assert_eq!(node.vmmds(), [0; 0]);
    assert_eq!(node.ensure(2).await.unwrap_err().code(), Code::Unavailable);
    node.told.lock().unwrap().reap.clear();
    node.leased().await;
    assert_eq!(state(&node.ensure(2).await.unwrap()), VmState::Running);
}

#[tokio::test]
async fn two_agents_on_one_directory_are_refused() {
    let node = Node::start(CALM).await;
    let (success, words) = node.second_agent();
    assert!(!success);
    assert!(words.contains("in use by another agent"), "{words}");
}

#[tokio::test]
async fn a_migration_leaves_a_report_and_no_process() {
    let node = Node::start(CALM).await;
    node.ensure(1).await.unwrap();
    let request = MigrateOutRequest {
        command: command(1),
        vm_id: VM.into(),
        migration_id: VM.into(),
        target_address: "127.0.0.1:9".into(),
        target_epoch: 2,
        downtime_target_ms: 0,
    };
    let status = node.agent().await.migrate_out(request).await.unwrap().into_inner();
    assert_eq!(status.info.unwrap().detail, "127.0.0.1:9");
    node.reports("the source's end", |vm| vm.process_ended).await;
    assert_eq!(node.vmmds(), [0; 0]);
}

#[tokio::test]
async fn a_grant_lets_a_committed_source_run_under_its_new_epoch() {
    let mut node = Node::start(CALM).await;
    node.misbehave("stay-committed");
    node.ensure(1).await.unwrap();
    let request = MigrateOutRequest {
        command: command(1),
        vm_id: VM.into(),
        migration_id: VM.into(),
        target_address: "127.0.0.1:9".into(),
        target_epoch: 2,
        downtime_target_ms: 0,
    };
    node.agent().await.migrate_out(request).await.unwrap();
    node.reports("the committed source", |vm| state(vm) == VmState::Committed).await;
    let grant = GrantEpochRequest { command: command(3), vm_id: VM.into() };
    let status = node.agent().await.grant_epoch(grant).await.unwrap().into_inner();
    assert_eq!((state(&status), status.info.unwrap().owner_epoch), (VmState::Running, 3));
    node.kill_agent();
    node.start_agent();
    node.leased().await;
    let pause = PauseVmRequest { command: command(2), vm_id: VM.into() };
    assert_eq!(node.agent().await.pause_vm(pause).await.unwrap_err().code(), Code::FailedPrecondition);
    let pause = PauseVmRequest { command: command(3), vm_id: VM.into() };
    assert_eq!(state(&node.agent().await.pause_vm(pause).await.unwrap().into_inner()), VmState::Paused);
}

#[tokio::test]
async fn an_incoming_vm_keeps_its_address_across_agents() {
    let mut node = Node::start(CALM).await;
    let address = node.prepare_incoming(2).await.unwrap();
    assert!(address.starts_with("127.0.0.1:0#"), "{address}");
    assert_eq!(node.prepare_incoming(2).await.unwrap(), address);
    node.kill_agent();
    node.start_agent();
    node.leased().await;
    assert_eq!(node.prepare_incoming(2).await.unwrap(), address);
}

#[tokio::test]
async fn the_console_is_live_and_the_log_outlives_the_vm() {
    let node = Node::start(CALM).await;
    node.ensure(1).await.unwrap();
    let typed = [
        ConsoleRequest { vm_id: VM.into(), data: Vec::new() },
        ConsoleRequest { vm_id: String::new(), data: b"root".to_vec() },
    ];
    let mut output = node.agent().await.console(iter(typed)).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < 11 {
        seen.extend(output.message().await.unwrap().unwrap().data);
    }
    assert_eq!(seen, b"login: ROOT");
    drop(output);

    let follow = LogsRequest { vm_id: VM.into(), follow: true, tail_bytes: 0 };
    let mut following = node.agent().await.logs(follow).await.unwrap().into_inner();
    assert_eq!(following.message().await.unwrap().unwrap().data, b"hello from the guest\n");
    node.stop(1).await.unwrap();
    assert_eq!(following.message().await.unwrap().unwrap().data, b"goodbye\n");
    assert!(following.message().await.unwrap().is_none(), "the log ends with the VM");
    let tail = LogsRequest { vm_id: VM.into(), follow: false, tail_bytes: 8 };
    let mut ended = node.agent().await.logs(tail).await.unwrap().into_inner();
    assert_eq!(ended.message().await.unwrap().unwrap().data, b"goodbye\n");
}

#[tokio::test]
async fn malformed_commands_are_refused_by_field() {
    let node = Node::start(CALM).await;
    let mut agent = node.agent().await;
    let bad_epoch = node.ensure(0).await.unwrap_err();
    assert_eq!(bad_epoch.code(), Code::InvalidArgument);
    let request = PauseVmRequest { command: command(1), vm_id: "x".into() };
    let bad_id = agent.pause_vm(request).await.unwrap_err();
    assert!(bad_id.message().starts_with("vm_id: 'x'"), "{bad_id}");
    let request = PauseVmRequest { command: None, vm_id: VM.into() };
    assert!(agent.pause_vm(request).await.unwrap_err().message().contains("command"));
    let request = PauseVmRequest { command: command(1), vm_id: VM.into() };
    assert_eq!(agent.pause_vm(request).await.unwrap_err().code(), Code::NotFound);
    assert!(agent.list_vms(ListVmsRequest {}).await.unwrap().into_inner().vms.is_empty());
    assert!(node.reported().is_none());
    tokio::time::timeout(Duration::from_secs(5), node.leased()).await.unwrap();
}
