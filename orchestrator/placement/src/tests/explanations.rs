use super::*;
use crate::{HostState, Outcome, explain};

#[test]
fn a_refusal_counts_reasons_and_says_what_would_make_the_nearest_host_fit() {
    let mut hosts = [host(1, 8, 32), host(2, 8, 32), host(3, 8, 8), host(4, 8, 32)];
    hosts.iter_mut().take(3).for_each(|host| {
        host.pools.insert("fast".to_owned());
    });
    let mut inventory = cluster(hosts);
    hold(&mut inventory, 1, 1, profile(6, 8));
    hold(&mut inventory, 2, 2, profile(5, 8));
    inventory.set_state(node(3), HostState::Cordoned).unwrap();
    let wanted = request(9, Profile { pools: ["fast".to_owned()].into(), ..profile(4, 16) });
    let explanation = explain(&inventory, &wanted, &Policy::default());
    assert_eq!(
        explanation.to_string(),
        "'v9' cannot be placed by policy 'pack': no host can take it\n\
         0 of 4 host(s) would do\n  \
         2 host(s): vcpus (2 for that alone), such as h1: needs 4 vCPU(s), 2 of 8 free\n  \
         1 host(s): memory, such as h3: needs 16 GiB memory, 8 GiB of 8 GiB free\n  \
         1 host(s): not-ready, such as h3: the host is cordoned, not ready\n  \
         1 host(s): pool (1 for that alone), such as h4: does not reach pool 'fast'\n\
         nearest is h2: to make it fit, free 1 more vCPU(s)"
    );
    // And that is true.
    inventory.remove_vm(vm(2)).unwrap();
    hold(&mut inventory, 2, 2, profile(4, 8));
    check(&inventory, &wanted, Ok(2));
}

#[test]
fn a_choice_names_the_terms_of_winner_and_runner_up() {
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32), host(3, 2, 2)]);
    hold(&mut inventory, 2, 1, profile(4, 16));
    let explanation = explain(&inventory, &request(9, profile(4, 16)), &Policy::default());
    assert_eq!(
        explanation.to_string(),
        "'v9' goes to h2 by policy 'pack': score 40000000 (pack 100000 x 100, preferences 100000 x 300); \
         next is h1 with 35000000 (pack 50000 x 100, preferences 100000 x 300)\n\
         2 of 3 host(s) would do\n  \
         1 host(s): memory, such as h3: needs 16 GiB memory, 2 GiB of 2 GiB free\n  \
         1 host(s): vcpus, such as h3: needs 4 vCPU(s), 2 of 2 free"
    );
    let Outcome::Chosen { winner, .. } = &explanation.outcome else { panic!("{explanation}") };
    let sum: i64 = winner.terms.iter().map(|term| term.value * i64::from(term.weight)).sum();
    assert_eq!(sum, winner.score.0);
}

#[test]
fn a_preferred_host_is_said_to_be_one() {
    let inventory = cluster([host(1, 4, 16), host(2, 8, 32)]);
    let wanted = Request { preferred: Some(node(2)), ..request(9, profile(1, 1)) };
    let text = explain(&inventory, &wanted, &Policy::default()).to_string();
    assert!(text.starts_with("'v9' goes to h2 by policy 'pack', which the request prefers"), "{text}");
}

#[test]
fn a_cluster_without_hosts_says_so() {
    let text = explain(&cluster([]), &request(9, profile(1, 1)), &Policy::default()).to_string();
    assert!(text.ends_with("0 of 0 host(s) would do"), "{text}");
}
