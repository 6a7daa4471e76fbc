//! What is refused, and with which words.

use drover_reconcile::admission::{
    AdmissionError, Category, DeviceName, GuestDevice, attach_nic, attach_volume, detached, may_detach,
    newest_right,
};

use crate::world::World;

fn check<T: std::fmt::Debug>(
    result: Result<T, AdmissionError>,
    field: &str,
    category: Category,
    words: &[&str],
) {
    let error = result.expect_err("it is refused");
    assert_eq!((error.field(), error.category()), (field, category), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "'{word}' is not in: {error}");
    }
}

/// A world in which "web" runs on n1, with volume "data"; n3 is small.
fn world() -> World {
    let mut world = World::new(1, &[4, 4, 1]);
    world.volume("data");
    world.volume("spare");
    let operation = world.create("web", |vm| (vm.vcpus, vm.volumes) = (2, vec!["data".to_owned()])).unwrap();
    world.until("it runs", std::time::Duration::from_secs(5), |w| w.ended(operation).is_some());
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"));
    world
}

/// Refusals change nothing: the store is the same afterwards.
fn refused(
    field: &str,
    category: Category,
    words: &[&str],
    ask: impl FnOnce(&mut World) -> Result<drover_ids::OperationId, AdmissionError>,
) {
    let mut world = world();
    let before = world.store.clone();
    let result = ask(&mut world);
    check(result, field, category, words);
    assert_eq!(world.store, before);
}

#[test]
fn an_unknown_image_is_answered_with_those_there_are() {
    refused("spec.image", Category::NotFound, &["no image 'debian'", "there is: probe"], |w| {
        w.create("x", |vm| vm.image = "debian".to_owned())
    });
}

#[test]
fn memory_below_what_the_image_needs_is_answered_with_what_it_needs() {
    refused(
        "spec.memory_bytes",
        Category::InvalidArgument,
        &["image 'probe'", "at least 16 MiB (16777216 bytes)"],
        |w| w.create("x", |vm| vm.memory_bytes = 1 << 20),
    );
    refused("spec.memory_bytes", Category::InvalidArgument, &["a multiple of 4096"], |w| {
        w.create("x", |vm| vm.memory_bytes = (64 << 20) + 1)
    });
}

#[test]
fn cpus_names_and_command_lines_have_limits() {
    refused("spec.vcpus", Category::InvalidArgument, &["1 to 254"], |w| w.create("x", |vm| vm.vcpus = 0));
    refused("spec.name", Category::InvalidArgument, &["'a b' is not a name"], |w| w.create("a b", |_| {}));
    refused("spec.cmdline", Category::InvalidArgument, &["printable ASCII"], |w| {
        w.create("x", |vm| vm.cmdline = "a\nb".to_owned())
    });
}

#[test]
fn a_name_that_is_taken_is_refused() {
    refused("spec.name", Category::AlreadyExists, &["'web' is taken by VM"], |w| w.create("web", |_| {}));
}

#[test]
fn a_volume_is_attached_once() {
    refused("spec.volumes", Category::FailedPrecondition, &["'data' is attached to VM 'web'"], |w| {
        w.create("x", |vm| vm.volumes = vec!["data".to_owned()])
    });
    refused("spec.volumes", Category::InvalidArgument, &["'spare' is listed twice"], |w| {
        w.create("x", |vm| vm.volumes = vec!["spare".to_owned(), "spare".to_owned()])
    });
    refused("spec.volumes", Category::NotFound, &["no volume 'sapre'", "there is: data, spare"], |w| {
        w.create("x", |vm| vm.volumes = vec!["sapre".to_owned()])
    });
}

#[test]
fn a_migration_needs_another_node_that_is_ready_and_has_room() {
    refused(
        "target_node",
        Category::InvalidArgument,
        &["already runs on node 'n1'", "one of: n2, n3"],
        |w| w.migrate("web", "n1"),
    );
    refused("target_node", Category::NotFound, &["no node 'n9'", "there is: n1, n2, n3"], |w| {
        w.migrate("web", "n9")
    });
    refused("target_node", Category::ResourceExhausted, &["n3: needs 2 vCPU(s), 1 of 1 free"], |w| {
        w.migrate("web", "n3")
    });
    refused("vm", Category::NotFound, &["no VM 'wbe'", "there is: web"], |w| w.migrate("wbe", "n2"));
}

#[test]
fn a_migration_to_a_node_that_is_down_is_refused() {
    let mut world = world();
    world.kill_node("n2");
    world.run(2_500);
    check(
        world.migrate("web", "n2"),
        "target_node",
        Category::FailedPrecondition,
        &["'n2' is suspect, not ready", "one of: n3"],
    );
    world.run(10_000);
    check(
        world.migrate("web", "n2"),
        "target_node",
        Category::FailedPrecondition,
        &["'n2' is fenced, not ready", "one of: n3"],
    );
}

#[test]
fn a_vm_that_is_being_moved_is_busy() {
    let mut world = world();
    world.migrate("web", "n2").unwrap();
    world.run(100);
    check(world.migrate("web", "n2"), "vm", Category::FailedPrecondition, &["busy", "vm.migrate"]);
}

#[test]
fn what_is_already_so_is_refused() {
    refused("vm", Category::FailedPrecondition, &["already to run"], |w| w.start("web"));
    let mut world = world();
    let stop = world.stop("web").unwrap();
    world.until("stopped", std::time::Duration::from_secs(5), |w| w.ended(stop).is_some());
    check(world.stop("web"), "vm", Category::FailedPrecondition, &["already to be stopped"]);
    check(world.migrate("web", "n2"), "vm", Category::FailedPrecondition, &["does not run"]);
}

#[test]
fn what_a_suspended_vms_memory_does_not_know_is_refused() {
    let mut world = world();
    world.suspend("n1", "web");
    let soon = std::time::Duration::from_secs(5);
    world.until("it is known", soon, |w| w.vm("web").suspended_on.is_some());
    let state = world.view();
    let suspended = &["VM 'web' is suspended", "discards its memory"];
    check(attach_volume(&state, "web", ("spare", false)), "vm", Category::FailedPrecondition, suspended);
    let data = DeviceName::Volume("data".to_owned());
    check(may_detach(&state, "web", &data), "vm", Category::FailedPrecondition, suspended);
    // Stopping it does away with that.
    let stop = world.stop("web").unwrap();
    world.until("stopped", soon, |w| w.ended(stop).is_some());
    assert!(may_detach(&world.view(), "web", &data).is_ok());
}

#[test]
fn a_volume_is_a_vms_before_it_is_attached_and_nobodys_once_it_is_detached() {
    let mut world = world();
    world.create("other", |vm| vm.start = false).unwrap();
    world.run(1_000);
    let attach = |world: &World, vm: &str| attach_volume(&world.view(), vm, ("spare", false));
    let (vm, device, txn) = attach(&world, "web").unwrap();
    world.accept(txn.expect("a change")).unwrap();
    assert_eq!(attach(&world, "web").unwrap().2, None, "again");
    let error = attach(&world, "other").unwrap_err();
    assert!(error.to_string().contains("is attached to VM 'web'"), "{error}");
    let spec = world.vm("web").spec.clone();
    let places: Vec<u8> = spec.volumes.iter().map(|it| spec.devices.disk_places[&it.volume]).collect();
    assert_eq!(places, [1, 2]);

    let (_, first) = may_detach(&world.view(), "web", &DeviceName::Volume("data".to_owned())).unwrap();
    let (Some(first), GuestDevice::Volume(spare)) = (first, device) else { panic!("{first:?}, {device:?}") };
    let seen = newest_right(&world.view(), vm);
    let error =
        detached(&world.view(), (vm, drover_ids::OwnerEpoch::new(seen.get() + 1)), first).unwrap_err();
    assert!(error.to_string().contains("started or moved meanwhile"), "{error}");
    let txn = detached(&world.view(), (vm, seen), first).unwrap().expect("a change");
    world.accept(txn).unwrap();
    let state = world.view();
    assert_eq!(state.vms[&vm].spec.devices.disk_places[&spare], 2, "it stays where it is");
    assert_eq!(state.volume_named("data").unwrap().attached, None);
    assert_eq!(detached(&state, (vm, seen), first).unwrap(), None);
    world.run(5_000);
    assert_eq!(world.runs_on("web").as_deref(), Some("n1"), "{}", world.describe());
}

#[test]
fn a_network_is_needed_for_as_long_as_an_interface_is_in_it() {
    use drover_cluster_state::Nic;
    let mut world = world();
    let needs = |world: &World| {
        let asked = world.vm("web").spec.constraints.networks.len();
        let explained = world.view().vms.values().next().map(|vm| vm.spec.devices.nics.len());
        (asked, explained)
    };
    let nic = Nic { network: "lan".to_owned(), ..Nic::default() };
    let (vm, device, txn) = attach_nic(&world.view(), "web", &nic).unwrap();
    world.accept(txn.expect("a change")).unwrap();
    assert_eq!(needs(&world), (0, Some(1)));
    let seen = newest_right(&world.view(), vm);
    let txn = detached(&world.view(), (vm, seen), device).unwrap().expect("a change");
    world.accept(txn).unwrap();
    assert_eq!(needs(&world), (0, Some(0)), "nothing of it is left to place the VM by");
    let bad = Nic { network: "no such name!".to_owned(), ..Nic::default() };
    assert!(attach_nic(&world.view(), "web", &bad).is_err());
}
