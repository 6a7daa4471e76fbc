//! Placement as the planner carries it out: sets, preemption, policies, cordons and moves of many VMs.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{
    Affinity, Domain, HostFacts, Name, OperationKind, OperationState, Peer, PolicyRecord, Preemption,
    RebalanceMode, Record, Relation, Settings, Strength, Txn, Vm,
};
use drover_ids::OperationId;
use drover_reconcile::{
    Book,
    admission::{self, AdmissionError, Category, CreateVm, DrainTarget, UpdateNode, UpdateSettings},
    policy_names,
};

use crate::world::World;

const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn done(world: &mut World, operation: OperationId) {
    world.until("the operation ends", LONG, |w| w.ended(operation).is_some());
    let ended = world.operation(operation);
    assert_eq!(ended.state, OperationState::Done, "{}", ended.reason);
}

fn create(world: &mut World, vm: &str, change: impl FnOnce(&mut CreateVm)) {
    let operation = world.create(vm, change).unwrap();
    done(world, operation);
}

fn label(world: &mut World, node: &str, key: &str, value: &str) {
    let set_labels = [(name(key), name(value))].into();
    change_node(world, UpdateNode { node: node.to_owned(), set_labels, ..UpdateNode::default() });
}

fn change_node(world: &mut World, change: UpdateNode) {
    let (_, txn) = admission::update_node(&world.view(), &change, world.instant().wall).unwrap();
    world.accept(txn.unwrap()).unwrap();
    world.run(200);
}

fn drain(world: &mut World, target: DrainTarget, parallel: u32) -> Result<OperationId, AdmissionError> {
    let (view, identity) = (world.view(), world.identity());
    let book = Book::of(&view);
    let now = world.instant().wall;
    let moves = admission::drain(&view, &book, &target, parallel, false, &identity, now)?;
    let admitted = moves.admitted.unwrap();
    world.accept(admitted.txn.unwrap()).unwrap();
    Ok(admitted.operation)
}

fn node(text: &str) -> DrainTarget {
    DrainTarget::Node(text.to_owned())
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_takes_nothing_new() {
    let mut world = World::new(1, &[4, 4]);
    create(&mut world, "old", |_| {});
    assert_eq!(world.runs_on("old").as_deref(), Some("n1"));
    change_node(
        &mut world,
        UpdateNode { node: "n1".to_owned(), cordoned: Some(true), ..UpdateNode::default() },
    );
    create(&mut world, "new", |_| {});
    assert_eq!((world.runs_on("old").as_deref(), world.runs_on("new").as_deref()), (Some("n1"), Some("n2")));
    change_node(
        &mut world,
        UpdateNode { node: "n1".to_owned(), cordoned: Some(false), ..UpdateNode::default() },
    );
    create(&mut world, "newer", |_| {});
    assert_eq!(world.runs_on("newer").as_deref(), Some("n1"));
}

#[test]
fn a_set_that_does_not_fit_as_a_whole_leaves_nothing_behind() {
    let mut world = World::new(1, &[4, 4]);
    let operation = world.create_group("web", 3, |vm| vm.vcpus = 3).unwrap();
    world.until("refused", SOON, |w| w.ended(operation).is_some());
    let failed = world.operation(operation);
    assert_eq!(failed.state, OperationState::Failed);
    assert!(failed.reason.contains("only 2 of 3"), "{}", failed.reason);
    assert!(failed.explanation.is_some());
    world.until("its VMs are gone", SOON, |w| w.store.vms.is_empty());
    assert!(!world.has_event("vm.placed"), "{}", world.describe());

    let operation = world.create_group("web", 2, |vm| vm.vcpus = 3).unwrap();
    done(&mut world, operation);
    assert_ne!(world.runs_on("web-1"), world.runs_on("web-2"));
}

#[test]
fn a_set_is_placed_in_one_step_also_when_it_must_be_apart_by_rack() {
    let mut world = World::new(1, &[8, 8, 8, 8]);
    for (host, rack) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")] {
        label(&mut world, host, "rack", rack);
    }
    let apart = |vm: &mut CreateVm| {
        vm.constraints.groups = [name("web")].into();
        vm.constraints.affinity = vec![Affinity {
            relation: Relation::Apart,
            peer: Peer::Group(name("web")),
            domain: Domain::Rack,
            strength: Strength::Required,
        }];
    };
    let operation = world.create_group("web", 2, apart).unwrap();
    done(&mut world, operation);
    let racks: BTreeSet<bool> = ["web-1", "web-2"]
        .iter()
        .map(|vm| ["n1", "n2"].contains(&world.runs_on(vm).unwrap().as_str()))
        .collect();
    assert_eq!(racks.len(), 2, "{}", world.describe());
    let operation = world.create_group("more", 1, apart).unwrap();
    world.until("refused", SOON, |w| w.ended(operation).is_some());
    assert_eq!(world.ended(operation), Some(OperationState::Failed));
}

#[test]
fn two_requests_at_the_same_moment_keep_apart_by_rack() {
    let mut world = World::new(1, &[8, 8]);
    label(&mut world, "n1", "rack", "a");
    label(&mut world, "n2", "rack", "a");
    let apart = |vm: &mut CreateVm| {
        vm.constraints.groups = [name("web")].into();
        vm.constraints.affinity = vec![Affinity {
            relation: Relation::Apart,
            peer: Peer::Group(name("web")),
            domain: Domain::Rack,
            strength: Strength::Required,
        }];
    };
    let operations = [world.create("a", apart).unwrap(), world.create("b", apart).unwrap()];
    world.until("both end", LONG, |w| operations.iter().all(|id| w.ended(*id).is_some()));
    let states: Vec<_> = operations.iter().map(|id| world.operation(*id).state).collect();
    assert!(states.contains(&OperationState::Done) && states.contains(&OperationState::Failed), "{states:?}");
}

#[test]
fn a_vm_of_higher_priority_takes_the_place_of_a_lower_one_that_restarts_elsewhere_or_waits() {
    let mut world = World::new(1, &[4]);
    create(&mut world, "low", |vm| (vm.vcpus, vm.priority) = (3, 1));
    let meek = world.create("meek", |vm| (vm.vcpus, vm.priority) = (3, 5)).unwrap();
    world.until("refused", SOON, |w| w.ended(meek).is_some());
    assert_eq!(world.ended(meek), Some(OperationState::Failed), "it may not preempt");
    let high = world
        .create("high", |vm| {
            (vm.vcpus, vm.priority) = (3, 5);
            vm.constraints.preemption = Preemption::LowerPriority;
        })
        .unwrap();
    done(&mut world, high);
    assert_eq!((world.runs_on("high").as_deref(), world.runs_on("low")), (Some("n1"), None));
    assert!(world.has_event("vm.preempted"), "{}", world.describe());
    assert!(world.vm("low").restarts.last_reason.contains("'high'"), "{:?}", world.vm("low").restarts);
    world.stop("high").unwrap();
    world.until("the other one runs again", LONG, |w| w.runs_on("low").is_some());
}

#[test]
fn a_change_of_policy_is_in_force_for_the_next_decision() {
    let mut world = World::new(1, &[8, 8, 8]);
    create(&mut world, "a", |_| {});
    create(&mut world, "b", |_| {});
    assert_eq!(world.runs_on("a"), world.runs_on("b"), "'pack' fills the tightest");
    let update = UpdateSettings { policy: Some(name("mine")), ..UpdateSettings::default() };
    let now = world.instant().wall;
    let refused = admission::update_settings(&world.view(), &update, &policy_names(&world.view()), now);
    assert_eq!(refused.unwrap_err().category(), Category::NotFound);
    let weights = [(name("spread"), 100)].into();
    let policy = PolicyRecord { name: name("mine"), base: name("custom"), weights, seed: 0 };
    let txn = admission::set_policy(&world.view(), &policy, now).unwrap().unwrap();
    world.accept(txn).unwrap();
    let txn = admission::update_settings(&world.view(), &update, &policy_names(&world.view()), now);
    world.accept(txn.unwrap().unwrap()).unwrap();
    create(&mut world, "c", |_| {});
    assert_ne!(world.runs_on("c"), world.runs_on("a"));
    let used = admission::delete_policy(&world.view(), "mine", &BTreeSet::new(), now).unwrap_err();
    assert!(used.to_string().contains("the cluster"), "{used}");
}

#[test]
fn a_projects_limit_counts_every_vm_of_it() {
    let mut world = World::new(1, &[8]);
    let limits = drover_cluster_state::ProjectLimits { vms: Some(2), ..Default::default() };
    let now = world.instant().wall;
    let txn = admission::set_project(&world.view(), &name("team"), limits, None, &BTreeSet::new(), now);
    world.accept(txn.unwrap().unwrap()).unwrap();
    let of_team = |vm: &mut CreateVm| vm.constraints.project = Some(name("team"));
    let error = world.create_group("web", 3, of_team).unwrap_err();
    assert_eq!(error.category(), Category::ResourceExhausted, "{error}");
    create(&mut world, "a", of_team);
    create(&mut world, "b", of_team);
    let error = world.create("c", of_team).unwrap_err();
    assert!(error.to_string().contains("'team'") && error.to_string().contains("limit of 2"), "{error}");
    let error = world.create("d", |vm| vm.constraints.project = Some(name("tema"))).unwrap_err();
    assert_eq!(error.category(), Category::NotFound);
    create(&mut world, "e", |_| {});
    let error = admission::delete_project(&world.view(), "team", now).unwrap_err();
    assert!(error.to_string().contains("2 VM(s)"), "{error}");
}

fn three_vms_on_n1() -> World {
    let mut world = World::new(1, &[4, 4, 4]);
    for vm in ["a", "b", "c"] {
        create(&mut world, vm, |_| {});
        assert_eq!(world.runs_on(vm).as_deref(), Some("n1"));
    }
    world
}

#[test]
fn a_drain_moves_every_vm_away_with_bounded_parallelism_and_keeps_the_node_empty() {
    let mut world = three_vms_on_n1();
    let operation = drain(&mut world, node("n1"), 2).unwrap();
    let mut most = 0;
    world.until("it is done", LONG, |w| {
        let moving =
            w.store.operations.values().filter(|o| o.is_running() && o.parent == Some(operation)).count();
        most = most.max(moving);
        w.ended(operation).is_some()
    });
    assert_eq!(world.ended(operation), Some(OperationState::Done), "{}", world.operation(operation).reason);
    assert_eq!(most, 2);
    for vm in ["a", "b", "c"] {
        assert_ne!(world.runs_on(vm).as_deref(), Some("n1"));
        assert_eq!(world.vm(vm).restarts.count, 0, "it was moved, not restarted");
    }
    create(&mut world, "new", |_| {});
    assert_ne!(world.runs_on("new").as_deref(), Some("n1"));
    let (_, txn) = admission::undrain(&world.view(), &node("n1"), world.instant().wall).unwrap();
    world.accept(txn.unwrap()).unwrap();
    assert!(world.store.nodes.values().all(|node| !node.is_cordoned()));
}

#[test]
fn a_drain_goes_on_where_a_control_plane_that_died_was() {
    let mut world = three_vms_on_n1();
    let operation = drain(&mut world, node("n1"), 1).unwrap();
    world.until("one has moved", LONG, |w| {
        ["a", "b", "c"].iter().any(|vm| w.runs_on(vm).as_deref() != Some("n1"))
    });
    world.kill_planner();
    world.run(500);
    world.start_planner();
    done(&mut world, operation);
    assert!(["a", "b", "c"].iter().all(|vm| world.runs_on(vm).as_deref() != Some("n1")));
}

#[test]
fn a_drain_that_cannot_succeed_is_refused_before_anything_moves() {
    let mut world = World::new(1, &[4, 4]);
    create(&mut world, "a", |vm| vm.vcpus = 3);
    create(&mut world, "b", |vm| vm.vcpus = 3);
    let error = drain(&mut world, node("n1"), 2).unwrap_err();
    assert_eq!((error.field(), error.category()), ("node", Category::FailedPrecondition));
    assert!(error.to_string().contains("vCPU"), "{error}");
    assert!(world.store.nodes.values().all(|node| node.settings.drain.is_none()));
    let error = drain(&mut world, DrainTarget::Rack("r1".to_owned()), 2).unwrap_err();
    assert_eq!(error.category(), Category::NotFound);
}

#[test]
fn a_rack_is_drained_as_a_whole() {
    let mut world = World::new(1, &[4, 4, 4, 4]);
    label(&mut world, "n1", "rack", "a");
    label(&mut world, "n2", "rack", "a");
    for vm in ["a", "b", "c"] {
        create(&mut world, vm, |vm| vm.vcpus = 2);
    }
    let operation = drain(&mut world, DrainTarget::Rack("a".to_owned()), 4).unwrap();
    done(&mut world, operation);
    let empty = ["a", "b", "c"].iter().all(|vm| !["n1", "n2"].contains(&world.runs_on(vm).unwrap().as_str()));
    assert!(empty, "{}", world.describe());
}

#[test]
fn a_cancelled_drain_leaves_the_rest_where_it_is_and_the_node_cordoned() {
    let mut world = three_vms_on_n1();
    let operation = drain(&mut world, node("n1"), 1).unwrap();
    world.run(300);
    world.cancel(operation).unwrap();
    world.until("it has ended", LONG, |w| w.ended(operation).is_some());
    assert_eq!(world.ended(operation), Some(OperationState::Cancelled));
    world.until("nothing moves", LONG, |w| !w.store.operations.values().any(|o| o.is_running()));
    assert!(["a", "b", "c"].iter().any(|vm| world.runs_on(vm).as_deref() == Some("n1")));
    let n1 = world.store.node_named("n1").unwrap();
    assert!(n1.settings.cordoned && n1.settings.drain.is_none());
}

#[test]
fn defragmenting_makes_room_for_a_vm_that_fits_nowhere() {
    let mut world = World::new(1, &[4, 4]);
    create(&mut world, "a", |vm| vm.vcpus = 2);
    change_node(
        &mut world,
        UpdateNode { node: "n1".to_owned(), cordoned: Some(true), ..UpdateNode::default() },
    );
    create(&mut world, "b", |vm| vm.vcpus = 2);
    change_node(
        &mut world,
        UpdateNode { node: "n1".to_owned(), cordoned: Some(false), ..UpdateNode::default() },
    );
    let big = world.create("big", |vm| vm.vcpus = 4).unwrap();
    world.until("refused", SOON, |w| w.ended(big).is_some());
    assert_eq!(world.ended(big), Some(OperationState::Failed));
    let (view, identity) = (world.view(), world.identity());
    let vm: &Vm = world.vm("big");
    let request = drover_reconcile::request_of(vm);
    let now = world.instant().wall;
    let moves = admission::defragment(&view, &Book::of(&view), &request, 1, false, &identity, now).unwrap();
    assert_eq!(moves.plan.len(), 1);
    let admitted = moves.admitted.unwrap();
    world.accept(admitted.txn.unwrap()).unwrap();
    done(&mut world, admitted.operation);
    let big = world.start("big").unwrap();
    done(&mut world, big);
}

#[test]
fn automatic_rebalancing_evens_out_a_full_host_and_then_rests() {
    let mut world = World::new(1, &[8, 8, 8]);
    for vm in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        create(&mut world, vm, |_| {});
        assert_eq!(world.runs_on(vm).as_deref(), Some("n1"), "'pack' fills one");
    }
    let mut txn = Txn::new();
    txn.create(Record::Settings(Settings {
        policy: name("spread"),
        rebalance: RebalanceMode::Automatic,
        ..Settings::default()
    }));
    world.accept(txn).unwrap();
    world.until("it has balanced", Duration::from_secs(300), |w| {
        let ended = w.store.operations.values().find(|o| matches!(o.kind, OperationKind::Moves(_)));
        ended.is_some_and(|operation| !operation.is_running())
    });
    let left = ["a", "b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .filter(|vm| world.runs_on(vm).as_deref() == Some("n1"));
    assert!(left.count() < 8, "{}", world.describe());
    let moves = |world: &World| {
        world.store.operations.values().filter(|o| matches!(o.kind, OperationKind::Moves(_))).count()
    };
    let before = moves(&world);
    world.run(180_000);
    assert!(moves(&world) <= before + 1, "it goes on and on: {}", world.describe());
}

#[test]
fn an_agent_that_registers_again_does_not_undo_what_an_operator_has_set() {
    let mut world = World::new(1, &[4]);
    let id = world.host("n1").id;
    label(&mut world, "n1", "rack", "r1");
    change_node(
        &mut world,
        UpdateNode { node: "n1".to_owned(), cordoned: Some(true), ..UpdateNode::default() },
    );
    world.restart_agent(id);
    world.run(2_000);
    let stored = world.store.node_named("n1").unwrap();
    assert_eq!(stored.label("rack"), Some(&name("r1")));
    assert!(stored.settings.cordoned);
    assert_eq!(stored.facts, HostFacts::default());
}

#[test]
fn what_vmmd_cannot_give_is_refused_instead_of_only_seeming_so() {
    let mut world = World::new(1, &[4]);
    let error = world.create("a", |vm| vm.constraints.pinned = true).unwrap_err();
    assert_eq!((error.field(), error.category()), ("spec.constraints", Category::FailedPrecondition));
    let error =
        world.create("b", |vm| vm.constraints.hugepages = Some(drover_units::Bytes::mib(2))).unwrap_err();
    assert!(error.to_string().contains("hugepages"), "{error}");
}

#[test]
fn a_decision_that_is_overtaken_is_counted_and_made_again() {
    let mut world = World::new(1, &[4]);
    let operation = world.create("a", |_| {}).unwrap();
    // Somebody changes the node all the time: an assignment that is under way meets a record that is not as it was.
    for number in 0..40 {
        world.run(1);
        let set_labels = [(name("n"), name(&format!("v{number}")))].into();
        let change = UpdateNode { node: "n1".to_owned(), set_labels, ..UpdateNode::default() };
        let (_, txn) = admission::update_node(&world.view(), &change, world.instant().wall).unwrap();
        world.accept(txn.unwrap()).unwrap();
    }
    done(&mut world, operation);
    let statistics = world.planner.as_ref().unwrap().book().statistics();
    assert!(statistics.conflicts > 0, "{statistics:?}");
    assert_eq!(world.runs_on("a").as_deref(), Some("n1"));
}
