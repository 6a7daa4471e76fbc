use super::*;
use crate::{Decider, Refusal};

fn surviving(host_failures: u8, name: &str) -> Policy {
    Policy { host_failures, ..Policy::named(name).unwrap() }
}

#[test]
fn room_is_kept_for_the_vms_of_the_fullest_host() {
    let mut inventory = cluster((1..=3).map(|n| host(n, 8, 32)));
    let policy = surviving(1, "spread");
    let mut decider = Decider::new();
    let mut placed = 0;
    let refusal = loop {
        let wanted = request(placed, profile(2, 8));
        match decider.decide(&inventory, &wanted, &policy) {
            Ok(decision) => inventory.commit(&wanted, &decision).unwrap(),
            Err(refusal) => break refusal,
        }
        placed += 1;
    };
    // Two hosts hold four VMs each.
    assert_eq!((placed, refusal), (8, Refusal::FailoverReserve { failures: 1 }));
    assert!(decide(&inventory, &request(90, profile(2, 8)), &surviving(0, "spread")).is_ok());
}

#[test]
fn room_in_small_pieces_is_no_room_for_a_large_vm() {
    let mut inventory = cluster((1..=3).map(|n| host(n, 8, 32)));
    hold(&mut inventory, 1, 1, profile(6, 24));
    hold(&mut inventory, 2, 2, profile(4, 16));
    // Eight vCPUs are left on the others, in pieces of four.
    let small = request(3, profile(4, 16));
    let policy = surviving(1, "spread");
    assert_eq!(decide(&inventory, &small, &policy), Err(Refusal::FailoverReserve { failures: 1 }));
    assert!(decide(&inventory, &request(3, profile(2, 8)), &policy).is_ok());
}

#[test]
fn restarts_keep_their_constraints() {
    let mut inventory = cluster((1..=2).map(|n| host(n, 8, 32)));
    hold(&mut inventory, 1, 1, apart(1, "db", Scope::Host));
    let second = request(2, apart(1, "db", Scope::Host));
    assert_eq!(
        decide(&inventory, &second, &surviving(1, "spread")),
        Err(Refusal::FailoverReserve { failures: 1 })
    );
    inventory.add_host(&host(3, 8, 32)).unwrap();
    assert!(decide(&inventory, &second, &surviving(1, "spread")).is_ok());
    assert!(decide(&inventory, &second, &surviving(2, "spread")).is_err());
}
