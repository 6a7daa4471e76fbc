//! One situation each, in good weather, and what must come of it.

use std::time::Duration;

use drover_cluster_state::{Desired, Evidence, NodeState, OperationState, RunState, StopCause, VmPhase};

use crate::world::World;

pub(crate) const SOON: Duration = Duration::from_secs(5);
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Three nodes, and a VM that runs on n1 with a disk.
pub(crate) fn one_vm() -> World {
    let mut world = World::new(1, &[4, 4, 4]);
    world.volume("data");
    let operation = world.create("web", |vm| vm.volumes = vec!["data".to_owned()]).unwrap();
    world.until("the VM runs", SOON, |w| w.ended(operation).is_some());
    assert_eq!(world.ended(operation), Some(OperationState::Done), "{}", world.operation(operation).reason);
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
    world
}

pub(crate) fn runs_on(node: &'static str) -> impl FnMut(&World) -> bool {
    move |world| world.runs_on("web").as_deref() == Some(node)
}

#[test]
fn a_new_vm_runs_on_the_tightest_node_and_its_operation_is_done() {
    let mut world = World::new(1, &[8, 2, 8]);
    let operation = world.create("web", |_| {}).unwrap();
    world.until("done", SOON, |w| w.ended(operation).is_some());
    let done = world.operation(operation);
    assert_eq!((done.state, done.percent), (OperationState::Done, 100));
    assert!(done.placement.is_some());
    assert_eq!(world.runs_on("web").as_deref(), Some("n2"));
}

#[test]
fn a_vm_that_fits_nowhere_fails_with_every_reason_and_is_kept_stopped() {
    let mut world = World::new(1, &[2, 2]);
    let operation = world.create("big", |vm| vm.vcpus = 3).unwrap();
    world.until("failed", SOON, |w| w.ended(operation).is_some());
    let failed = world.operation(operation);
    assert_eq!(failed.state, OperationState::Failed);
    assert_eq!(failed.rejections.len(), 2);
    assert!(failed.reason.contains("n1: needs 3 vCPU(s), 2 of 2 free"), "{}", failed.reason);
    assert_eq!(world.vm("big").desired, Desired::Stopped);
}

#[test]
fn a_process_that_dies_is_restarted_on_its_node_with_the_death_as_evidence() {
    let mut world = one_vm();
    world.kill_process("n1", "web");
    let took = world.until("it runs again", SOON, |w| w.vm("web").restarts.count == 1 && runs_on("n1")(w));
    assert!((200..1_000).contains(&took), "the first restart waits 200 ms: {took}");
    let ownership = &world.vm("web").ownership;
    assert!(
        matches!(ownership.evidence(), [Evidence::ProcessDeath { exit, .. }] if exit == "killed by signal 9")
    );
    assert_eq!(ownership.highest().get(), 2);
}

#[test]
fn a_vm_that_keeps_dying_is_restarted_ever_more_slowly() {
    let mut world = one_vm();
    let mut pauses = Vec::new();
    for restarts in 1..=5 {
        let at = world.runs_on("web").unwrap();
        world.kill_process(&at, "web");
        pauses.push(world.until("it runs again", LONG, |w| {
            w.vm("web").restarts.count == restarts && w.runs_on("web").is_some()
        }));
    }
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0]), "{pauses:?}");
    assert!(pauses[4] >= 3_200, "{pauses:?}");
    world.run(61_000);
    assert_eq!(world.vm("web").restarts.failures, 0, "a stable run wipes out the failures");
}

#[test]
fn a_dead_node_is_fenced_with_evidence_and_its_vm_restarts_elsewhere() {
    let mut world = one_vm();
    world.kill_node("n1");
    let took = world.until("it runs elsewhere", LONG, |w| w.runs_on("web").is_some());
    let t_fence = World::timers().get().t_fence.as_millis() as u64;
    assert!((t_fence..8_000).contains(&took), "{took}");
    let vm = world.vm("web");
    match vm.ownership.evidence() {
        [Evidence::SelfFenceLeaseExpired { silent, volumes, .. }] => {
            assert!(*silent >= World::timers().get().t_fence);
            assert_eq!(volumes.len(), 1);
            assert!(volumes[0].epoch >= vm.ownership.highest());
        }
        other => panic!("{other:?}"),
    }
    let n1 = world.host("n1").id;
    let state = |w: &World| w.planner.as_ref().and_then(|p| p.state().node_state(n1));
    world.until("the node is fenced", SOON, |w| state(w) == Some(NodeState::Fenced));
    assert!(
        world.has_event("node.suspect") && world.has_event("node.fencing") && world.has_event("vm.restarted")
    );
}

#[test]
fn a_volume_that_is_still_held_delays_the_restart() {
    let mut world = one_vm();
    let n1 = world.host("n1").id;
    // Cut off, and its watchdog does not work: the process keeps the lock.
    world.host("n1").linked = false;
    let id = world.vm("web").id;
    let process = world.host("n1").processes.remove(&id).unwrap();
    world.run(12_000);
    let planner = world.planner.as_ref().unwrap();
    assert_eq!(planner.state().vm_phase(world.vm("web")), VmPhase::Fencing);
    assert!(planner.state().progress[&id].detail.contains("held by"), "{:?}", planner.state().progress[&id]);
    assert_eq!(world.runs_on("web"), None);
    drop(process);
    world.disks.values_mut().for_each(|disk| disk.release_node(n1));
    world.until("it restarts once the lock is free", SOON, |w| w.runs_on("web").is_some());
}

#[test]
fn a_node_that_comes_back_takes_work_only_when_nothing_stale_is_left() {
    let mut world = one_vm();
    let n1 = world.host("n1").id;
    world.host("n1").linked = false;
    world.until("it runs elsewhere", LONG, |w| w.runs_on("web").is_some_and(|node| node != "n1"));
    // A process of the old epoch that did not end itself.
    let id = world.vm("web").id;
    let process = world.host("n1").processes.get_mut(&id).unwrap();
    (process.report.exit, process.report.state) = (None, RunState::Paused);
    world.host("n1").linked = true;
    let state = |w: &World| w.planner.as_ref().and_then(|p| p.state().node_state(n1));
    world.until("the node is ready", SOON, |w| state(w) == Some(NodeState::Ready));
    assert!(
        world.host("n1").processes.get(&id).is_none_or(|p| p.report.exit.is_some()),
        "reaped before it was ready"
    );
    world.until("the end is acknowledged", SOON, |w| w.hosts[&n1].processes.is_empty());
    assert_ne!(world.owner("web").as_deref(), Some("n1"));
}

#[test]
fn a_guest_that_shuts_itself_down_stays_down_until_somebody_starts_it() {
    let mut world = one_vm();
    world.shut_down_guest("n1", "web");
    world.run(5_000);
    let vm = world.vm("web");
    assert_eq!((vm.desired, vm.stop_cause.clone()), (Desired::Stopped, Some(StopCause::GuestShutdown)));
    assert_eq!(vm.restarts.count, 0);
    let start = world.start("web").unwrap();
    world.until("it runs", SOON, |w| w.ended(start).is_some());
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
}

#[test]
fn a_guest_that_is_asked_to_shut_itself_down_is_waited_for_and_not_for_ever() {
    let asked = |world: &World| world.pressed.len();
    let mut world = one_vm();
    let stop = world.stop_within("web", 3_000).unwrap();
    world.until("it is asked", SOON, |w| asked(w) == 1);
    world.run(500);
    assert_eq!((world.ended(stop), asked(&world)), (None, 1), "once, and it has time");
    world.shut_down_guest("n1", "web");
    world.until("stopped", SOON, |w| w.ended(stop) == Some(OperationState::Done));
    assert_eq!(world.vm("web").restarts.count, 0);

    // One that does not listen, while the control plane dies: its time begins anew, and ends.
    let start = world.start("web").unwrap();
    world.until("it runs", SOON, |w| w.ended(start).is_some());
    let stop = world.stop_within("web", 3_000).unwrap();
    world.until("it is asked", SOON, |w| asked(w) == 2);
    world.kill_planner();
    world.run(500);
    world.start_planner();
    world.run(1_000);
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
    let took = world.until("stopped", SOON, |w| w.ended(stop) == Some(OperationState::Done));
    assert!(took >= 1_000 && world.runs_on("web").is_none(), "{took} ms");

    // Whoever loses patience has it stopped at once.
    let start = world.start("web").unwrap();
    world.until("it runs", SOON, |w| w.ended(start).is_some());
    let patient = world.stop_within("web", 600_000).unwrap();
    world.run(2_000);
    assert!(world.stop_within("web", 1).is_err(), "that would change nothing");
    let stop = world.stop("web").unwrap();
    world.until("stopped", SOON, |w| w.ended(stop) == Some(OperationState::Done));
    assert_eq!(world.ended(patient), Some(OperationState::Cancelled));
}

#[test]
fn stop_and_delete_end_the_process_and_free_the_volume() {
    let mut world = one_vm();
    let stop = world.stop("web").unwrap();
    world.until("stopped", SOON, |w| w.ended(stop) == Some(OperationState::Done));
    assert_eq!(world.runs_on("web"), None);
    let delete = world.delete("web").unwrap();
    world.until("deleted", SOON, |w| w.ended(delete) == Some(OperationState::Done));
    assert!(world.store.vms.is_empty());
    assert!(world.store.volumes.values().all(|volume| volume.attached.is_none()));
    let again = world.create("web", |vm| vm.volumes = vec!["data".to_owned()]).unwrap();
    world.until("the name and the volume are free", SOON, |w| w.ended(again) == Some(OperationState::Done));
}

#[test]
fn a_running_vm_is_deleted_in_one_go() {
    let mut world = one_vm();
    let delete = world.delete("web").unwrap();
    world.until("deleted", SOON, |w| w.ended(delete) == Some(OperationState::Done));
    assert!(world.store.vms.is_empty());
    world.run(3_000);
    assert!(world.hosts.values().all(|host| host.processes.is_empty()));
}

#[test]
fn a_start_that_fails_three_times_fails_the_operation_and_leaves_the_vm_stopped() {
    let mut world = World::new(1, &[4]);
    world.host("n1").failing_starts = 3;
    let operation = world.create("web", |_| {}).unwrap();
    world.until("failed", LONG, |w| w.ended(operation).is_some());
    let failed = world.operation(operation);
    assert_eq!(failed.state, OperationState::Failed);
    assert!(failed.reason.contains("the kernel image is damaged"), "{}", failed.reason);
    assert_eq!(world.vm("web").desired, Desired::Stopped);
}

#[test]
fn a_start_that_fails_once_is_repeated_with_a_newer_epoch() {
    let mut world = World::new(1, &[4]);
    world.host("n1").failing_starts = 1;
    let operation = world.create("web", |_| {}).unwrap();
    world.until("done", SOON, |w| w.ended(operation) == Some(OperationState::Done));
    assert_eq!(world.vm("web").ownership.highest().get(), 2);
}

#[test]
fn a_start_that_is_cancelled_leaves_the_vm_stopped() {
    let mut world = one_vm();
    world.stop("web").unwrap();
    world.run(2_000);
    world.host("n1").failing_starts = 100;
    world.host("n2").failing_starts = 100;
    world.host("n3").failing_starts = 100;
    let start = world.start("web").unwrap();
    world.run(150);
    world.cancel(start).unwrap();
    world.until("cancelled", SOON, |w| w.ended(start).is_some());
    assert_eq!(world.ended(start), Some(OperationState::Cancelled));
    assert_eq!(world.vm("web").desired, Desired::Stopped);
}

#[test]
fn a_vm_moves_live_and_the_operation_says_what_it_cost() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n3").unwrap();
    world.until("done", SOON, |w| w.ended(migrate).is_some());
    let done = world.operation(migrate);
    assert_eq!(done.state, OperationState::Done, "{}", done.reason);
    let result = done.migration.as_ref().unwrap();
    assert_eq!((result.rounds, result.downtime.as_millis()), (3, 20));
    assert_eq!(world.runs_on("web").as_deref(), Some("n3"));
    assert_eq!(world.vm("web").restarts.count, 0);
    world.run(4_000);
    assert!(world.host("n1").processes.is_empty(), "nothing is left at the source");
}

#[test]
fn a_move_that_is_quicker_than_the_targets_reports_is_not_taken_for_a_loss() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.host("n2").mute = true;
    world.until("it has moved", SOON, |w| w.owner("web").as_deref() == Some("n2"));
    world.run(100);
    world.host("n2").mute = false;
    world.until("done", SOON, |w| w.ended(migrate) == Some(OperationState::Done));
    world.run(5_000);
    assert_eq!(world.runs_on("web").as_deref(), Some("n2"));
    assert_eq!(world.vm("web").restarts.count, 0);
}

#[test]
fn a_migration_that_is_cancelled_leaves_the_vm_where_it_was() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 15);
    world.cancel(migrate).unwrap();
    world.until("cancelled", SOON, |w| w.ended(migrate) == Some(OperationState::Cancelled));
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
    world.run(3_000);
    assert!(world.host("n2").processes.is_empty(), "nothing is left at the target");
    assert_eq!(world.vm("web").ownership.next_epoch().get(), 3, "the target's epoch is spent");
}

#[test]
fn a_target_that_refuses_fails_the_migration_and_nothing_else() {
    let mut world = one_vm();
    world.host("n2").failing_starts = 1;
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("failed", SOON, |w| w.ended(migrate).is_some());
    let failed = world.operation(migrate);
    assert_eq!(failed.state, OperationState::Failed);
    assert!(failed.reason.contains("node n2 refused: no memory"), "{}", failed.reason);
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
}

#[test]
fn a_target_process_that_dies_while_copying_fails_the_migration() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 20);
    world.kill_process("n2", "web");
    world.until("failed", SOON, |w| w.ended(migrate) == Some(OperationState::Failed));
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
    assert_eq!(world.vm("web").restarts.count, 0);
}

#[test]
fn a_target_node_that_dies_while_copying_fails_the_migration() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 20);
    world.kill_node("n2");
    world.until("failed", LONG, |w| w.ended(migrate) == Some(OperationState::Failed));
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
}

#[test]
fn a_source_process_that_dies_while_copying_is_restarted_from_disk() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 20);
    world.kill_process("n1", "web");
    world.until("failed", LONG, |w| w.ended(migrate) == Some(OperationState::Failed));
    world.until("it runs again", LONG, |w| w.runs_on("web").is_some());
    let evidence = world.vm("web").ownership.evidence();
    assert_eq!(evidence.len(), 2, "for both ends: {evidence:?}");
}

#[test]
fn a_source_node_that_dies_while_copying_has_both_ends_fenced() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 20);
    world.kill_node("n1");
    world.until("failed", LONG, |w| w.ended(migrate) == Some(OperationState::Failed));
    world.until("it runs again", LONG, |w| w.runs_on("web").is_some());
    assert_eq!(world.vm("web").ownership.evidence().len(), 2);
}

#[test]
fn a_source_node_that_dies_after_commit_does_not_matter() {
    let mut world = one_vm();
    world.lose_resumed = true;
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("the target runs", SOON, runs_on("n2"));
    world.kill_node("n1");
    world.until("done", LONG, |w| w.ended(migrate) == Some(OperationState::Done));
    assert_eq!(world.vm("web").restarts.count, 0);
    assert_eq!(world.runs_on("web").as_deref(), Some("n2"));
}

#[test]
fn a_commit_that_is_lost_brings_the_source_back_with_a_newer_epoch() {
    let mut world = one_vm();
    world.lose_commits = true;
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("failed", LONG, |w| w.ended(migrate).is_some());
    let failed = world.operation(migrate);
    assert_eq!(failed.state, OperationState::Failed);
    assert!(failed.reason.contains("the source goes on with epoch 3"), "{}", failed.reason);
    world.until("the source runs", SOON, runs_on("n1"));
    assert_eq!(world.vm("web").restarts.count, 0, "it was not restarted");
    assert!(world.has_event("migration.reverted"));
}

#[test]
fn a_target_node_that_dies_between_commit_and_running_brings_the_source_back() {
    let mut world = one_vm();
    world.lose_commits = true;
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("committed", SOON, |w| {
        let id = w.vm("web").id;
        w.hosts.values().any(|h| h.processes.get(&id).is_some_and(|p| p.report.state == RunState::Committed))
    });
    world.kill_node("n2");
    world.until("failed", LONG, |w| w.ended(migrate) == Some(OperationState::Failed));
    world.until("the source runs", SOON, runs_on("n1"));
    assert_eq!(world.vm("web").restarts.count, 0);
}

#[test]
fn a_target_that_ran_unseen_and_died_is_never_undone_by_its_source() {
    let mut world = one_vm();
    world.lose_resumed = true;
    let migrate = world.migrate("web", "n2").unwrap();
    // The target's reports do not arrive, so that nobody knows that it has run.
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 20);
    world.host("n2").linked = false;
    world.until("the target runs", SOON, runs_on("n2"));
    world.run(500);
    world.kill_node("n2");
    world.until("failed", LONG, |w| w.ended(migrate) == Some(OperationState::Failed));
    // The disks assert that the guest's memory knows every write.
    world.until("it restarts from its disk", LONG, |w| {
        w.runs_on("web").is_some() && w.vm("web").restarts.count == 1
    });
}

#[test]
fn a_paused_source_that_dies_before_its_grant_restarts_from_disk() {
    let mut world = one_vm();
    world.lose_commits = true;
    world.migrate("web", "n2").unwrap();
    world.until("granted anew", LONG, |w| w.has_event("migration.reverted"));
    world.kill_process("n1", "web");
    world.until("it restarts", LONG, |w| w.vm("web").restarts.count == 1 && w.runs_on("web").is_some());
}

#[test]
fn a_stop_during_a_migration_takes_it_back_and_stops() {
    let mut world = one_vm();
    let migrate = world.migrate("web", "n2").unwrap();
    world.until("copying", SOON, |w| w.operation(migrate).percent >= 15);
    let stop = world.stop("web").unwrap();
    world.until("stopped", LONG, |w| w.ended(stop) == Some(OperationState::Done));
    assert_eq!(world.ended(migrate), Some(OperationState::Cancelled));
    world.run(3_000);
    assert!(world.hosts.values().all(|host| host.processes.is_empty()));
}

#[test]
fn a_control_plane_that_restarts_in_the_middle_of_a_migration_finishes_it() {
    for at in [5, 30, 60, 120, 250, 400, 600, 900] {
        let mut world = one_vm();
        let migrate = world.migrate("web", "n2").unwrap();
        world.run(at);
        world.kill_planner();
        world.run(300);
        world.start_planner();
        world.until("it ends", LONG, |w| w.ended(migrate).is_some());
        world.until("it runs", SOON, |w| w.runs_on("web").is_some());
        assert_eq!(
            world.ended(migrate),
            Some(OperationState::Done),
            "{at}: {}",
            world.operation(migrate).reason
        );
        assert_eq!(world.vm("web").restarts.count, 0, "{at}");
    }
}

#[test]
fn a_new_control_plane_waits_before_it_gives_up_a_node() {
    let mut world = one_vm();
    world.kill_node("n1");
    world.run(3_000);
    world.kill_planner();
    world.run(200);
    world.start_planner();
    let took = world.until("it runs elsewhere", LONG, |w| w.runs_on("web").is_some());
    assert!(took >= World::timers().get().t_fence.as_millis() as u64, "{took}");
}

#[test]
fn a_control_plane_that_is_away_for_long_finds_everything_stopped_and_restarts_it() {
    let mut world = one_vm();
    world.kill_planner();
    world.run(20_000);
    assert_eq!(world.runs_on("web"), None, "its lease ran out");
    world.start_planner();
    world.until("it runs again", LONG, |w| w.runs_on("web").is_some());
    assert!(matches!(world.vm("web").ownership.evidence(), [Evidence::ProcessDeath { .. }]));
}

#[test]
fn an_agent_that_restarts_keeps_its_vms() {
    let mut world = one_vm();
    let n1 = world.host("n1").id;
    world.host("n1").agent = false;
    world.run(1_000);
    world.restart_agent(n1);
    world.run(10_000);
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
    assert_eq!(world.vm("web").restarts.count, 0);
}

#[test]
fn a_node_that_reboots_quickly_has_its_vm_restarted() {
    let mut world = one_vm();
    world.kill_node("n1");
    world.run(800);
    world.boot_node("n1");
    world.until("it runs again", LONG, |w| w.vm("web").restarts.count == 1 && w.runs_on("web").is_some());
    assert!(matches!(world.vm("web").ownership.evidence(), [Evidence::Stopped { .. }]));
}

#[test]
fn restarts_go_by_priority_when_there_is_not_room_for_all() {
    let mut world = World::new(1, &[4, 2]);
    for (name, priority) in [("low", 1), ("high", 9)] {
        let operation = world.create(name, |vm| (vm.vcpus, vm.priority) = (2, priority)).unwrap();
        world.until("it runs", SOON, |w| w.ended(operation).is_some());
    }
    // Both on n1, as after a repair of n2.
    if world.runs_on("low").as_deref() == Some("n2") {
        let migrate = world.migrate("low", "n1").unwrap();
        world.until("moved", SOON, |w| w.ended(migrate).is_some());
    }
    if world.runs_on("high").as_deref() == Some("n2") {
        let migrate = world.migrate("high", "n1").unwrap();
        world.until("moved", SOON, |w| w.ended(migrate).is_some());
    }
    world.kill_node("n1");
    world.until("the more important one runs", LONG, |w| w.runs_on("high").is_some());
    world.run(3_000);
    assert_eq!(world.runs_on("low"), None);
    world.boot_node("n1");
    world.until("the other one when there is room", LONG, |w| w.runs_on("low").is_some());
}

#[test]
fn a_group_stays_apart_over_restarts() {
    let mut world = World::new(1, &[4, 4, 4]);
    for name in ["a", "b"] {
        let operation = world.create(name, |vm| vm.anti_affinity_group = "pair".to_owned()).unwrap();
        world.until("it runs", SOON, |w| w.ended(operation).is_some());
    }
    let (a, b) = (world.runs_on("a").unwrap(), world.runs_on("b").unwrap());
    assert_ne!(a, b);
    world.kill_node(&a);
    world.until("it runs again", LONG, |w| w.runs_on("a").is_some());
    assert_ne!(world.runs_on("a"), world.runs_on("b"));
}
