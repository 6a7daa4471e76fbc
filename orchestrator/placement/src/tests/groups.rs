use super::*;
use crate::{Decider, Decision, Refusal};

fn several(count: u128, profile: &Profile) -> Vec<Request> {
    (0..count).map(|n| request(1000 + n, profile.clone())).collect()
}

fn check_group(inventory: &mut Inventory, requests: &[Request], expect: Result<&[u128], &str>) {
    let decided = Decider::new().decide_group(inventory, requests, &Policy::default());
    let before = inventory.held_count();
    match (decided, expect) {
        (Ok(decisions), Ok(expect)) => {
            let mut hosts: Vec<NodeId> = decisions.iter().map(|decision: &Decision| decision.host).collect();
            hosts.sort_unstable();
            assert_eq!(hosts, expect.iter().map(|n| node(*n)).collect::<Vec<_>>());
            inventory.commit_group(requests, &decisions).unwrap();
            assert_eq!(inventory.held_count(), before + requests.len());
        }
        (Err(refusal), Err(expect)) => {
            assert_eq!(refusal.to_string(), expect);
            assert_eq!(inventory.held_count(), before);
        }
        (got, expect) => panic!("got {got:?}, expected {expect:?}"),
    }
    inventory.verify().unwrap();
}

#[test]
fn all_are_placed_or_none() {
    let hosts = || cluster([host(1, 4, 16), host(2, 4, 16), host(3, 4, 16)]);
    check_group(&mut hosts(), &several(6, &profile(2, 4)), Ok(&[1, 1, 2, 2, 3, 3]));
    check_group(
        &mut hosts(),
        &several(7, &profile(2, 4)),
        Err("only 6 of 7 could be placed: no host can take it"),
    );
    check_group(&mut hosts(), &several(3, &apart(1, "db", Scope::Host)), Ok(&[1, 2, 3]));
    check_group(
        &mut hosts(),
        &several(4, &apart(1, "db", Scope::Host)),
        Err("only 3 of 4 could be placed: no host can take it"),
    );
    check_group(&mut hosts(), &[], Ok(&[]));
}

fn gathered(vcpus: u32, scope: Scope) -> Profile {
    let rule = affinity(Direction::Together, "team", scope, Strength::Required);
    Profile { groups: ["team".to_owned()].into(), affinity: vec![rule], ..profile(vcpus, 1) }
}

#[test]
fn a_team_goes_where_all_of_it_fits() {
    // By itself the first member would go to the tightest host, which cannot take the second.
    let hosts = || cluster([host(1, 2, 16), host(2, 3, 16), host(3, 8, 16)]);
    check_group(&mut hosts(), &several(3, &gathered(2, Scope::Host)), Ok(&[3, 3, 3]));
    check_group(
        &mut hosts(),
        &several(5, &gathered(2, Scope::Host)),
        Err("only 4 of 5 could be placed: no host can take it"),
    );
    let racks = || {
        let mut hosts = [placed_host(1, "z", "r1"), placed_host(2, "z", "r2"), placed_host(3, "z", "r2")];
        hosts[0].cpu.threads = VcpuCount::new(6);
        cluster(hosts)
    };
    check_group(&mut racks(), &several(4, &gathered(4, Scope::Rack)), Ok(&[2, 2, 3, 3]));
    check_group(
        &mut racks(),
        &several(5, &gathered(4, Scope::Rack)),
        Err("only 4 of 5 could be placed: no host can take it"),
    );
}

#[test]
fn a_group_counts_against_limits_and_reserve_as_a_whole() {
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32)]);
    let limit = crate::ProjectLimit { vms: Some(2), ..crate::ProjectLimit::default() };
    inventory.set_project_limit("p", limit);
    let of_project = Profile { project: "p".to_owned(), ..profile(1, 1) };
    check_group(&mut inventory.clone(), &several(2, &of_project), Ok(&[1, 1]));
    check_group(
        &mut inventory,
        &several(3, &of_project),
        Err("only 2 of 3 could be placed: project 'p' may have 2 VM(s) and has 2"),
    );
    let policy = Policy { host_failures: 1, ..Policy::default() };
    let group = |count| Decider::new().decide_group(&inventory, &several(count, &profile(4, 4)), &policy);
    assert!(group(2).is_ok());
    assert_eq!(group(3), Err(Refusal::FailoverReserve { failures: 1 }));
}
