use super::*;
use crate::{Conflict, Refusal};

fn preempting() -> Policy {
    Policy { preemption: true, ..Policy::default() }
}

fn important(vcpus: u32, priority: u32) -> Profile {
    Profile { priority, ..profile(vcpus, 1) }
}

/// Hosts of 8 threads with VMs of (vCPUs, priority), numbered from 1 on across hosts.
fn full(hosts: &[&[(u32, u32)]]) -> Inventory {
    let mut inventory = cluster((1..=hosts.len() as u128).map(|n| host(n, 8, 32)));
    let mut id = 0;
    for (on, vms) in (1..).zip(hosts) {
        for (vcpus, priority) in *vms {
            id += 1;
            hold(&mut inventory, on, id, important(*vcpus, *priority));
        }
    }
    inventory
}

fn check_victims(hosts: &[&[(u32, u32)]], wanted: Profile, expect: Option<(u128, &[u128])>) {
    let mut inventory = full(hosts);
    let wanted = request(99, wanted);
    let decision = decide(&inventory, &wanted, &preempting());
    let Some((on, victims)) = expect else {
        assert_eq!(decision, Err(Refusal::NoHost));
        return;
    };
    let decision = decision.unwrap();
    let victims: Vec<VmId> = victims.iter().map(|n| vm(*n)).collect();
    assert_eq!((decision.host, &decision.victims), (node(on), &victims));
    inventory.commit(&wanted, &decision).unwrap();
    inventory.verify().unwrap();
    assert!(victims.iter().all(|victim| inventory.vm(*victim).next().is_none()));
}

#[test]
fn free_room_is_taken_before_anybody_s_place() {
    check_victims(&[&[(8, 0)], &[(7, 9)]], important(1, 5), Some((2, &[])));
}

#[test]
fn nobody_of_equal_or_higher_priority_goes() {
    check_victims(&[&[(8, 5)], &[(8, 7)]], important(1, 5), None);
    check_victims(&[&[(8, 5)], &[(8, 4)]], important(1, 5), Some((2, &[2])));
    // Without priority nobody is less important.
    check_victims(&[&[(8, 0)]], important(1, 0), None);
}

#[test]
fn the_least_important_go_and_no_more_than_must() {
    // Priority 1 and 2 on the first host, 1 only on the second.
    check_victims(&[&[(4, 1), (4, 2)], &[(4, 1), (4, 1)]], important(8, 5), Some((2, &[3, 4])));
    // One large victim instead of two small ones where both would do.
    check_victims(&[&[(2, 1), (2, 1), (4, 1)]], important(4, 5), Some((1, &[1, 2])));
    check_victims(&[&[(4, 3), (2, 1), (2, 2)]], important(2, 5), Some((1, &[2])));
    check_victims(&[&[(4, 3), (2, 1), (2, 2)]], important(8, 5), Some((1, &[1, 2, 3])));
}

#[test]
fn preemption_cures_rules_about_other_vms_too() {
    let mut inventory = cluster([host(1, 8, 32)]);
    hold(&mut inventory, 1, 1, apart(1, "db", Scope::Host));
    hold(&mut inventory, 1, 2, profile(1, 1));
    let db = Profile { priority: 3, ..apart(1, "db", Scope::Host) };
    let decision = decide(&inventory, &request(9, db), &preempting()).unwrap();
    assert_eq!(decision.victims, [vm(1)]);
}

#[test]
fn what_cannot_be_cured_is_refused_and_a_policy_must_allow_it() {
    let tainted = Profile { pools: ["nowhere".to_owned()].into(), ..important(1, 9) };
    check_victims(&[&[(8, 0)]], tainted, None);
    let inventory = full(&[&[(8, 0)]]);
    assert_eq!(decide(&inventory, &request(9, important(1, 9)), &Policy::default()), Err(Refusal::NoHost));
}

#[test]
fn a_victim_that_has_become_important_or_left_is_a_conflict() {
    let mut inventory = full(&[&[(8, 0)]]);
    let wanted = request(99, important(8, 5));
    let decision = decide(&inventory, &wanted, &preempting()).unwrap();
    inventory.remove_vm(vm(1)).unwrap();
    hold(&mut inventory, 1, 1, important(8, 5));
    assert_eq!(inventory.commit(&wanted, &decision), Err(Conflict::Victim(vm(1))));
    inventory.remove_vm(vm(1)).unwrap();
    assert_eq!(inventory.commit(&wanted, &decision), Err(Conflict::Victim(vm(1))));
    inventory.verify().unwrap();
}
