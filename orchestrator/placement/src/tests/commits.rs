use std::thread;

use super::*;
use crate::{Conflict, Decider, HostState, PlaceError, ProjectLimit, Shared};

#[test]
fn a_decision_that_still_holds_is_carried_out_whatever_else_has_changed() {
    let mut inventory = cluster([host(1, 8, 32)]);
    let wanted = request(1, profile(2, 8));
    let decision = decide(&inventory, &wanted, &Policy::default()).unwrap();
    hold(&mut inventory, 1, 2, profile(2, 8));
    assert_ne!(inventory.host(node(1)).unwrap().version(), decision.version);
    inventory.commit(&wanted, &decision).unwrap();
    assert_eq!(inventory.commit(&wanted, &decision), Err(Conflict::AlreadyPlaced(vm(1))));
}

#[test]
fn what_does_not_hold_any_more_is_a_conflict_that_changes_nothing() {
    let before = cluster([placed_host(1, "z", "r")]);
    let check = |wanted: Profile, change: &dyn Fn(&mut Inventory), expect: &str| {
        let mut inventory = before.clone();
        let wanted = request(1, wanted);
        let decision = decide(&inventory, &wanted, &Policy::default()).unwrap();
        change(&mut inventory);
        let held = inventory.held_count();
        assert_eq!(inventory.commit(&wanted, &decision).unwrap_err().to_string(), expect);
        assert_eq!(inventory.held_count(), held);
        inventory.verify().unwrap();
    };
    let h1 = "00000000-0000-0000-0000-000000000001";
    check(
        profile(4, 8),
        &|inventory| hold(inventory, 1, 2, profile(6, 8)),
        &format!("host {h1} will not do any more: needs 4 vCPU(s), 2 of 8 free"),
    );
    check(
        apart(1, "db", Scope::Rack),
        &|inventory| hold(inventory, 1, 2, apart(1, "db", Scope::Host)),
        &format!("host {h1} will not do any more: this rack holds group 'db', which it must be apart from"),
    );
    check(
        profile(1, 1),
        &|inventory| inventory.set_state(node(1), HostState::Draining).unwrap(),
        &format!("host {h1} will not do any more: the host is draining, not ready"),
    );
    check(
        profile(1, 1),
        &|inventory| inventory.remove_host(node(1)).unwrap(),
        &format!("host {h1} has been removed since it was chosen"),
    );
    check(
        Profile { project: "p".to_owned(), ..profile(1, 1) },
        &|inventory| {
            let limit = ProjectLimit { vcpus: Some(0), ..ProjectLimit::default() };
            inventory.set_project_limit("p", limit);
        },
        "project 'p' may take 0 vCPU(s), takes 0, and this needs 1",
    );
}

#[test]
fn a_move_holds_both_ends_until_the_source_is_released() {
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32)]);
    let wanted = request(1, profile(2, 8));
    let stray = decide(&inventory, &wanted, &Policy::default()).unwrap();
    assert_eq!(inventory.commit_move(&wanted, &stray), Err(Conflict::NotPlaced(vm(1))));
    inventory.commit(&wanted, &stray).unwrap();
    let away = Request { excluded: vec![stray.host], ..wanted };
    let decision = decide(&inventory, &away, &Policy::default()).unwrap();
    inventory.commit_move(&away, &decision).unwrap();
    assert_eq!(inventory.vm(vm(1)).count(), 2);
    inventory.release(vm(1), stray.host).unwrap();
    assert_eq!(inventory.vm(vm(1)).next().unwrap().host().id(), decision.host);
    inventory.verify().unwrap();
}

#[test]
fn a_group_is_committed_as_a_whole_or_not_at_all() {
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32)]);
    let requests = [request(1, apart(1, "db", Scope::Host)), request(2, apart(1, "db", Scope::Host))];
    let decisions = Decider::new().decide_group(&inventory, &requests, &Policy::default()).unwrap();
    hold(&mut inventory, 2, 3, apart(1, "db", Scope::Host));
    let conflict = inventory.commit_group(&requests, &decisions).unwrap_err();
    assert!(matches!(conflict, Conflict::Group { vm: second, .. } if second == vm(2)), "{conflict}");
    assert_eq!(inventory.held_count(), 1);
    inventory.verify().unwrap();
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut inventory = cluster((1..=200).map(|n| host(n, 8, 32)));
    let snapshot = inventory.clone();
    (1..=200).for_each(|n| hold(&mut inventory, n, n, apart(2, "g", Scope::Host)));
    inventory.remove_vm(vm(7)).unwrap();
    assert_eq!((snapshot.held_count(), inventory.held_count()), (0, 199));
    snapshot.verify().unwrap();
    inventory.verify().unwrap();
}

#[test]
fn many_threads_never_give_anything_out_twice() {
    let shared = Shared::new(cluster((1..=12).map(|n| placed_host(n, "z", &format!("r{}", n % 3)))));
    let limit = ProjectLimit { vms: Some(20), ..ProjectLimit::default() };
    shared.write(|inventory| inventory.set_project_limit("p", limit));
    thread::scope(|scope| {
        for thread in 0..4 {
            let shared = &shared;
            scope.spawn(move || {
                let mut decider = Decider::new();
                for n in 0..60 {
                    let id = thread * 1000 + n;
                    let wanted = match n % 3 {
                        0 => request(id, apart(1, "db", Scope::Host)),
                        1 => request(id, Profile { project: "p".to_owned(), ..profile(1, 2) }),
                        _ => request(id, profile(1, 2)),
                    };
                    match shared.place(&mut decider, &wanted, &Policy::default()) {
                        Ok(_) | Err(PlaceError::Refused(_)) => {}
                        Err(overtaken) => panic!("{overtaken}"),
                    }
                }
            });
        }
    });
    let inventory = shared.snapshot();
    inventory.verify().unwrap();
    assert_eq!(inventory.project_usage("p").vms, 20);
    for host in inventory.hosts() {
        assert!(host.cpu_used() <= host.cpu_capacity() && host.memory_used() <= host.memory_capacity());
        assert!(host.vms().filter(|vm| vm.profile().groups.contains("db")).count() <= 1);
    }
    // All that fits is there: 12 of the group, 20 of the project, and of the rest what had room.
    let counts = shared.counts();
    assert_eq!(counts.committed as usize, inventory.held_count());
    assert_eq!(inventory.held_count(), 96, "{counts:?}");
}

#[test]
fn a_conflict_is_counted_and_decided_anew() {
    let shared = Shared::new(cluster([host(1, 8, 32), host(2, 8, 32)]));
    let wanted = request(1, profile(8, 8));
    // Somebody else is faster between deciding and committing.
    let stale = shared.read(|inventory| decide(inventory, &wanted, &Policy::default())).unwrap();
    shared.write(|inventory| hold(inventory, 1, 2, profile(8, 8)));
    assert!(shared.write(|inventory| inventory.commit(&wanted, &stale)).is_err());
    let decision = shared.place(&mut Decider::new(), &wanted, &Policy::default()).unwrap();
    assert_eq!(decision.host, node(2));
    let refused = shared.place(&mut Decider::new(), &request(3, profile(1, 1)), &Policy::default());
    assert!(matches!(refused, Err(PlaceError::Refused(_))));
    assert_eq!((shared.counts().committed, shared.counts().refused), (1, 1));
}
