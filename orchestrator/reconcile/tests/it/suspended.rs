//! VMs whose memory is in a file of a node, or may be.

use drover_cluster_state::{Desired, NodeState, OperationState, StopCause};

use crate::{
    scenarios::{LONG, SOON, one_vm, runs_on},
    world::World,
};

#[test]
fn a_suspended_vm_goes_on_where_its_memory_is_and_that_is_forgotten_once_it_runs() {
    let mut world = one_vm();
    let n1 = world.host("n1").id;
    world.suspend("n1", "web");
    world.until("it is known", SOON, |w| w.vm("web").stop_cause == Some(StopCause::Suspended));
    assert_eq!((world.vm("web").desired, world.vm("web").suspended_on), (Desired::Stopped, Some(n1)));
    world.run(5_000);
    let start = world.start("web").unwrap();
    world.until("it runs", SOON, |w| w.ended(start) == Some(OperationState::Done));
    assert_eq!((world.ensured.last(), world.runs_on("web").as_deref()), (Some(&(n1, true)), Some("n1")));
    assert_eq!(world.vm("web").suspended_on, None);

    // Whoever stops it discards its memory.
    world.suspend("n1", "web");
    world.until("it is known", SOON, |w| w.vm("web").suspended_on == Some(n1));
    let stop = world.stop("web").unwrap();
    world.until("stopped", SOON, |w| w.ended(stop) == Some(OperationState::Done));
    assert_eq!(world.vm("web").suspended_on, None);
    let start = world.start("web").unwrap();
    world.until("it runs", SOON, |w| w.ended(start) == Some(OperationState::Done));
    assert_eq!(world.ensured.last(), Some(&(n1, false)));

    // Without its node it starts from its disks, and its memory there is of no use any more: but not before that is given up.
    world.suspend("n1", "web");
    world.until("it is known", SOON, |w| w.vm("web").suspended_on == Some(n1));
    world.kill_node("n1");
    world.until("it is silent", SOON, |w| w.view().node_state(n1) == Some(NodeState::Suspect));
    let start = world.start("web").unwrap();
    world.run(500);
    assert!(world.runs_on("web").is_none() && world.owner("web").is_none(), "{}", world.describe());
    world.until("it runs", LONG, |w| w.ended(start) == Some(OperationState::Done));
    assert!(world.runs_on("web").is_some_and(|node| node != "n1"));
    assert!(world.ensured.last().is_some_and(|(node, resume)| *node != n1 && !resume));
    assert_eq!(world.vm("web").suspended_on, None);
}

#[test]
fn a_vm_that_was_suspended_while_nobody_looked_goes_on_where_its_memory_may_be() {
    let mut world = one_vm();
    let n1 = world.host("n1").id;
    world.suspend_unseen("n1", "web");
    world.until("it has ended", SOON, |w| w.runs_on("web").is_none());
    world.until("it runs", SOON, runs_on("n1"));
    assert_eq!(world.ensured.last(), Some(&(n1, true)));
    world.until("that is known", SOON, |w| w.vm("web").suspended_on.is_none());
    // A process that dies and leaves no file has no memory.
    world.kill_process("n1", "web");
    world.until("it has ended", SOON, |w| w.runs_on("web").is_none());
    world.until("it runs", SOON, runs_on("n1"));
    assert_eq!(world.ensured.last(), Some(&(n1, false)));
}

#[test]
fn a_vm_whose_only_node_was_given_up_goes_on_with_the_memory_that_it_may_come_back_with() {
    let mut world = World::new(1, &[4]);
    world.volume("data");
    let operation = world.create("web", |vm| vm.volumes = vec!["data".to_owned()]).unwrap();
    world.until("the VM runs", SOON, |w| w.ended(operation).is_some());
    let n1 = world.host("n1").id;
    world.kill_node("n1");
    world.until("it is given up", LONG, |w| w.owner("web").is_none());
    assert_eq!((world.vm("web").desired, world.vm("web").suspended_on), (Desired::Running, Some(n1)));
    world.boot_node("n1");
    world.until("it runs", LONG, runs_on("n1"));
    assert_eq!(world.ensured.last(), Some(&(n1, true)));
    world.until("that is known", SOON, |w| w.vm("web").suspended_on.is_none());

    // Who stops it meanwhile wants none of that.
    world.kill_node("n1");
    world.until("it is given up", LONG, |w| w.owner("web").is_none());
    let stop = world.stop("web").unwrap();
    world.until("stopped", SOON, |w| w.ended(stop) == Some(OperationState::Done));
    assert_eq!(world.vm("web").suspended_on, None);
    world.start("web").unwrap();
    world.boot_node("n1");
    world.until("it runs", LONG, runs_on("n1"));
    assert_eq!(world.ensured.last(), Some(&(n1, false)));
}

#[test]
fn how_a_vm_ended_is_kept_before_its_process_is_told_to_go() {
    for suspends in [false, true] {
        let mut world = one_vm();
        world.lose_stops = true;
        if suspends {
            world.say_suspended("n1", "web");
        } else {
            world.say_shut_down("n1", "web");
        }
        // The process has gone, nobody has heard that it has, and the leader is another one.
        world.until("it has gone", SOON, |w| w.hosts.values().all(|host| host.processes.is_empty()));
        world.kill_planner();
        world.run(100);
        world.lose_stops = false;
        world.start_planner();
        world.until("it is released", LONG, |w| w.owner("web").is_none());
        let web = world.vm("web");
        let expect = if suspends { StopCause::Suspended } else { StopCause::GuestShutdown };
        assert_eq!((web.desired, web.stop_cause.clone()), (Desired::Stopped, Some(expect)));
        assert_eq!(web.suspended_on.is_some(), suspends);
    }
}

#[test]
fn a_resumed_vm_waits_for_the_node_that_has_its_memory_while_nobody_knows_of_it() {
    let mut world = one_vm();
    let n1 = world.host("n1").id;
    world.suspend("n1", "web");
    world.until("it is known", SOON, |w| w.vm("web").suspended_on == Some(n1) && w.owner("web").is_none());
    // A new leader has heard of no node yet; its node's agent is late.
    world.kill_planner();
    world.kill_node("n1");
    // What it had said before comes to nobody.
    world.run(100);
    world.start_planner();
    let start = world.start("web").unwrap();
    world.run(1_000);
    assert_eq!(world.owner("web"), None, "{}", world.describe());
    world.boot_node("n1");
    world.until("it runs", SOON, |w| w.ended(start) == Some(OperationState::Done));
    assert_eq!((world.ensured.last(), world.runs_on("web").as_deref()), (Some(&(n1, true)), Some("n1")));
}
