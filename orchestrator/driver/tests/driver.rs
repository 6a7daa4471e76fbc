//! The driver, with real planning and fakes all around, in virtual time.

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use drover_cluster_state::{Evidence, OperationState, Right};
use drover_driver::{DriverError, EVENTS_MAX, LoadError, Sequence, SubmitError, View};
use drover_ids::{NodeId, OwnerEpoch};
use drover_ports::{
    Entry, Key, Listing, Revision, Store, StoreError, Txn, Write,
    fakes::{FakeFence, FakeNodeAgents, MemoryStore, MemoryWatch},
};
use drover_reconcile::{AgentCommand, NoStopwatch, Timers, admission::AdmissionError};
use world::{Hosts, World, clock, name, store, stored};

const A: NodeId = NodeId::from_u128(1);
const B: NodeId = NodeId::from_u128(2);

async fn two_nodes() -> World<MemoryStore> {
    let mut world = World::start(store(), Hosts::default(), clock()).await;
    world.add_node(A);
    world.add_node(B);
    world.add_image().await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_placed_and_runs_and_the_log_tells_it_in_order() {
    let world = two_nodes().await;
    let vm = world.running_vm("web").await;
    let Right::Owned { node, epoch, .. } = vm.ownership.right() else { panic!("{vm:?}") };
    assert_eq!(world.hosts.runners(vm.id), [(node, epoch)]);
    let kinds = |view: View<'_>| -> Option<Vec<String>> {
        let events = view.events.after(Sequence::default()).expect("zero is always in range");
        let about = events.filter(|event| event.event.subject_name == "web");
        let kinds: Vec<String> = about.map(|event| event.event.kind.to_string()).collect();
        kinds.contains(&"vm.running".to_owned()).then_some(kinds)
    };
    assert_eq!(world.until("the log is complete", kinds).await, ["vm.created", "vm.placed", "vm.running"]);
    world.stop().await.expect("it was told to stop");
}

#[tokio::test(start_paused = true)]
async fn the_vms_of_a_dead_node_run_elsewhere_with_evidence() {
    let world = two_nodes().await;
    let vm = world.running_vm("web").await;
    let first = vm.ownership.node().expect("it has a node");
    world.hosts.kill(first);
    let id = vm.id;
    let moved = move |view: View<'_>| {
        let vm = view.state.vms.get(&id)?;
        (vm.ownership.node()? != first).then(|| vm.value.clone())
    };
    let vm = world.until("the VM is elsewhere", moved).await;
    assert_eq!(vm.ownership.highest(), OwnerEpoch::new(2));
    assert!(
        matches!(vm.ownership.evidence(), [Evidence::SelfFenceLeaseExpired { node, .. }] if *node == first),
        "{vm:?}"
    );
    let hosts = world.hosts.clone();
    world.until("it runs there", move |_| (!hosts.runners(id).is_empty()).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_holds_up_only_its_own_vm() {
    let world = two_nodes().await;
    world.hosts.never_answer("stuck");
    let stuck = world.create_vm("stuck").await.expect("it is admitted");
    let start = tokio::time::Instant::now();
    for n in 0..20 {
        world.running_vm(&format!("quick-{n}")).await;
    }
    // One heartbeat each is all they wait for.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let state = world.cluster.read(move |view| view.state.operations[&stuck].state).await;
    assert_eq!(state, Ok(OperationState::Running));
}

#[tokio::test(start_paused = true)]
async fn of_two_requests_for_one_name_one_stands() {
    let world = two_nodes().await;
    let request = async |id: &str| {
        let id = id.to_owned();
        let identity = drover_reconcile::admission::RequestIdentity { request_id: id, random: 0 };
        let request = drover_reconcile::admission::CreateVm {
            name: "web".to_owned(),
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
        let admit = move |view: View<'_>| {
            let now = view.now.wall;
            let admitted = drover_reconcile::admission::create_vm(view.state, &request, &identity, now)?;
            Ok((admitted.operation, admitted.txn))
        };
        world.cluster.submit(admit).await
    };
    let (first, second, repeated) = tokio::join!(request("one"), request("two"), request("one"));
    let winner = [&first, &second].into_iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(winner, 1, "{first:?} {second:?}");
    let loser = first.as_ref().err().or(second.as_ref().err()).expect("one lost");
    assert!(matches!(loser, SubmitError::Refused(AdmissionError::NameTaken { .. })), "{loser:?}");
    match (&first, &repeated) {
        (Ok(first), Ok(repeated)) => assert_eq!(first, repeated, "one request id, one operation"),
        (Err(_), Err(_)) => {}
        _ => panic!("{first:?} {repeated:?}"),
    }
}

/// Whatever a driver was doing when it died, the next one gets to the same end.
#[tokio::test(start_paused = true)]
async fn a_driver_killed_at_any_moment_is_taken_over() {
    for moment in (0..3000).step_by(97) {
        let (store, hosts, clock) = (store(), Hosts::default(), clock());
        let mut first = World::start(store.clone(), hosts.clone(), clock).await;
        first.add_node(A);
        first.add_node(B);
        first.add_image().await;
        // Created while the nodes are not heard of yet, so that the moments fall on every step of its start.
        let operation = first.create_vm("web").await.expect("it is admitted");
        tokio::time::sleep(Duration::from_millis(moment)).await;
        first.kill();

        let mut second = World::start(store.clone(), hosts.clone(), clock).await;
        second.add_node(A);
        second.add_node(B);
        let ended = second.ended_operation(operation).await;
        assert_eq!(ended.state, OperationState::Done, "killed after {moment} ms: {ended:?}");
        let vm = second.running_vm("web").await;
        let Right::Owned { node, epoch, .. } = vm.ownership.right() else { panic!("{vm:?}") };
        assert_eq!(hosts.runners(vm.id), [(node, epoch)], "killed after {moment} ms");
        let ensured = second
            .agents
            .calls()
            .iter()
            .filter(|call| matches!(call.command, AgentCommand::EnsureVm { .. }))
            .count();
        assert!(ensured <= 2, "killed after {moment} ms: the start was repeated {ensured} times");
        assert_eq!(stored(&store).await.vms[&vm.id].ownership, vm.ownership);
        second.kill();
    }
}

#[tokio::test(start_paused = true)]
async fn changes_that_were_missed_are_read_again() {
    // So little history that whoever does not listen all the time misses something.
    let store = MemoryStore::new(1);
    let world = World::start(store.clone(), Hosts::default(), clock()).await;
    let image = |n: u32| {
        let record = drover_cluster_state::Record::Image(drover_cluster_state::Image {
            name: name(&format!("image-{n}")),
            pool: name("default"),
            size: drover_units::Bytes::mib(1),
            sha256: String::new(),
            min_memory: drover_units::Bytes::mib(2),
            created_at: drover_cluster_state::WallTime::default(),
        });
        let key = Key::new(drover_records::key_text(&record.key())).expect("a record's key");
        (key, Bytes::from(drover_records::encode(&record)))
    };
    let put = async |n: u32| {
        let (key, value) = image(n);
        store
            .commit(Txn { guards: vec![], writes: vec![Write::Put(key, value)] })
            .await
            .expect("it is valid");
    };
    put(7).await;
    let known = |view: View<'_>| view.state.images.contains_key(&name("image-7")).then_some(());
    world.until("what is about to be deleted is known", known).await;
    // None of this waits, so that the driver sees nothing of it before all has happened.
    let (gone, _) = image(7);
    store.commit(Txn { guards: vec![], writes: vec![Write::Delete(gone)] }).await.expect("it is valid");
    for n in (0..51).filter(|n| *n != 7) {
        put(n).await;
    }
    let complete = |view: View<'_>| {
        let images = &view.state.images;
        (images.len() == 50 && !images.contains_key(&name("image-7"))).then_some(())
    };
    world.until("the state is complete", complete).await;
}

#[tokio::test(start_paused = true)]
async fn the_event_log_is_bounded_in_the_store_too() {
    let store = store();
    let world = World::start(store.clone(), Hosts::default(), clock()).await;
    let per_txn = 250;
    for _ in 0..(EVENTS_MAX + 1000) / per_txn {
        let submitted = world.cluster.submit(move |view| {
            let event = |n: usize| drover_cluster_state::ClusterEvent {
                at: view.now.wall,
                kind: "vm.running".into(),
                subject_id: n.to_string(),
                subject_name: String::new(),
                message: String::new(),
            };
            let events = (0..per_txn).map(event).collect();
            let txn = drover_cluster_state::Txn { events, ..drover_cluster_state::Txn::new() };
            Ok::<_, AdmissionError>(((), Some(txn)))
        });
        submitted.await.expect("nothing is in the way");
    }
    let bounded = |view: View<'_>| {
        let events = view.events.after(Sequence::default()).expect("zero is always in range");
        let places: Vec<Sequence> = events.map(|event| event.sequence).collect();
        assert!(places.is_sorted(), "events are out of order");
        (places.len() < EVENTS_MAX + 256 && places.len() >= EVENTS_MAX).then_some(())
    };
    world.until("the log has been trimmed", bounded).await;
    let mut changes = world.cluster.changes();
    loop {
        let (mut stored, mut after) = (0, None);
        loop {
            let page = store.list("event/", after.as_ref(), usize::MAX).await.expect("reading works");
            stored += page.entries.len();
            after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more {
                break;
            }
        }
        if stored < EVENTS_MAX + 256 {
            break;
        }
        let dropped = tokio::time::timeout(Duration::from_secs(10), changes.changed()).await;
        dropped.expect("the store keeps too many events").expect("the driver runs");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_known_before_anything_is_decided() {
    let store = store();
    let mut world = World::start(store.clone(), Hosts::default(), clock()).await;
    world.add_node(A);
    world.add_image().await;
    let vm = world.running_vm("web").await;
    world.stop().await.expect("it was told to stop");
    let (agents, _) = FakeNodeAgents::new(|_| None);
    let ports = drover_driver::Ports { store, agents, fence: FakeFence::default(), clock: clock() };
    let loaded = drover_driver::Driver::load(ports, Timers::default(), Box::new(NoStopwatch), 2).await;
    let (driver, _cluster) = loaded.expect("the store is sound");
    assert!(driver.state().vms.contains_key(&vm.id));
}

#[tokio::test(start_paused = true)]
async fn a_garbled_record_stops_the_start_and_is_named() {
    let store = store();
    let key = Key::new("vm/00000000-0000-0000-0000-000000000001").expect("a key");
    let garbled = Write::Put(key, Bytes::from_static(b"\xff\xff"));
    store.commit(Txn { guards: vec![], writes: vec![garbled] }).await.expect("it is valid");
    let (agents, _) = FakeNodeAgents::new(|_| None);
    let ports = drover_driver::Ports { store, agents, fence: FakeFence::default(), clock: clock() };
    let loaded = drover_driver::Driver::load(ports, Timers::default(), Box::new(NoStopwatch), 1).await;
    let error = loaded.map(drop).expect_err("the record is garbled");
    assert!(matches!(&error, LoadError::Record { key, .. } if key.ends_with("000001")), "{error:?}");
}

/// A store that takes no transaction once it is broken.
#[derive(Clone, Debug, Default)]
struct Breakable {
    inner: MemoryStore,
    broken: Arc<AtomicBool>,
}

impl Store for Breakable {
    type Watch = MemoryWatch;

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable { source: "the disk is gone".into() });
        }
        self.inner.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<MemoryWatch, StoreError> {
        self.inner.watch(prefix, after).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_failing_ends_the_driver() {
    let store = Breakable::default();
    let mut world = World::start(store.clone(), Hosts::default(), clock()).await;
    world.add_node(A);
    world.add_image().await;
    world.running_vm("web").await;
    store.broken.store(true, Ordering::Relaxed);
    let refused = world.create_vm("other").await.expect_err("the store is broken");
    assert!(matches!(refused, SubmitError::Unknown(_)), "{refused:?}");
    // The planner tries again and again to store that the node is gone.
    world.hosts.kill(A);
    let ended = world.ended().await.expect_err("it cannot go on");
    assert!(
        matches!(&ended, DriverError::StoreFailed(reason) if reason.contains("the disk is gone")),
        "{ended:?}"
    );
}
