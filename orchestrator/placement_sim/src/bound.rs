//! How full the cluster could become by the linear relaxation.
//!
//! Let `n(f)` VMs of flavour `f` with demand `d(f, i)` of resource `i` be alive, if every request so far was accepted, and let
//! class `k` have `N(k)` hosts with room `c(k, i)`. Placing them all needs numbers `y(f, k) >= 0` of VMs of flavour `f` on
//! hosts of class `k`, with `y(f, k) = 0` where one does not fit an empty host, such that
//!
//! ```text
//! sum over k of y(f, k)           = n(f)            for each flavour
//! sum over f of d(f, i) * y(f, k) <= N(k) * c(k, i)  for each class and resource
//! ```
//!
//! This is the assignment of VMs to hosts with `0 <= x <= 1` instead of `x` in {0, 1}, summed over the hosts of a class: the
//! usual relaxation of vector bin packing (Panigrahy et al., 2011, section 2). If there are no such numbers, no algorithm
//! accepts everything, with as many migrations as it likes. So whatever it does, it has refused a request by then, and up to its
//! first refusal the virtual CPUs in use were never more than the largest number asked for at once before.
//!
//! With a single class it is two sums; otherwise a small linear program, of which only an infeasible answer counts.

mod simplex;

use drover_placement_trace::{Action, Trace};

use simplex::{Constraint, maximise_sum};

use crate::{Cluster, Room, measure::room_of};

/// Solutions of the linear program over a trace where there are several classes of hosts. A bound that is found some requests
/// late is a little too high, and still a bound.
const SOLUTIONS: usize = 1000;
/// What the solver may be off by, of the number of VMs.
const TOLERANCE: f64 = 1e-6;
/// What no algorithm can pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Share of the cluster's virtual CPUs that can be taken before the first refusal.
    pub cpu: f64,
    /// Days since the trace began at which a request must be refused; `None`: everything might be accepted.
    pub day: Option<f64>,
}

/// The bound of a trace on a cluster.
#[must_use]
pub fn upper_bound(cluster: &Cluster, trace: &Trace) -> Bound {
    let rooms: Vec<Room> = trace.flavours().iter().map(|flavour| room_of(*flavour)).collect();
    let room = cluster.room();
    let mut flavour_of = vec![0_usize; trace.creations()];
    let mut alive = vec![0_u64; rooms.len()];
    let mut asked = Room::default();
    let mut most = 0;
    let mut creations: usize = 0;
    let stride = trace.creations().div_ceil(SOLUTIONS);
    for event in trace.events() {
        let vm = event.vm.0 as usize;
        let Action::Create { flavour, .. } = event.action else {
            let flavour = flavour_of[vm];
            alive[flavour] -= 1;
            asked.vcpus -= rooms[flavour].vcpus;
            asked.memory -= rooms[flavour].memory;
            continue;
        };
        let flavour = usize::from(flavour.0);
        flavour_of[vm] = flavour;
        alive[flavour] += 1;
        asked.vcpus += rooms[flavour].vcpus;
        asked.memory += rooms[flavour].memory;
        creations += 1;
        let solve = cluster.classes().len() > 1 && creations.is_multiple_of(stride);
        let nowhere = !cluster.classes().iter().any(|class| class.room().holds(rooms[flavour]));
        if nowhere || !room.holds(asked) || (solve && !is_feasible(cluster, &rooms, &alive)) {
            return Bound { cpu: most as f64 / room.vcpus as f64, day: Some(event.at.days()) };
        }
        most = most.max(asked.vcpus);
    }
    Bound { cpu: most as f64 / room.vcpus as f64, day: None }
}

/// Whether the relaxation has a solution: as many VMs as can be placed are all there are.
fn is_feasible(cluster: &Cluster, rooms: &[Room], alive: &[u64]) -> bool {
    let mut constraints = Vec::new();
    let mut by_class: Vec<Vec<(Room, usize)>> = vec![Vec::new(); cluster.classes().len()];
    let mut variables = 0;
    let mut wanted = 0.0;
    for (room, count) in rooms.iter().zip(alive).filter(|(_, count)| **count > 0) {
        let mut terms = Vec::new();
        for (class, placed) in cluster.classes().iter().zip(&mut by_class) {
            if class.room().holds(*room) {
                placed.push((*room, variables));
                terms.push((variables, 1.0));
                variables += 1;
            }
        }
        wanted += *count as f64;
        constraints.push(Constraint { terms, at_most: *count as f64 });
    }
    for (class, placed) in cluster.classes().iter().zip(&by_class) {
        let (room, hosts) = (class.room(), class.count as f64);
        let mut limit = |of: fn(&Room) -> u64| {
            // As a part of one host, so that the solver's numbers are of one size.
            let part = |demand: &Room| of(demand) as f64 / of(&room) as f64;
            let terms = placed.iter().map(|(demand, variable)| (*variable, part(demand))).collect();
            constraints.push(Constraint { terms, at_most: hosts });
        };
        limit(|room| room.vcpus);
        limit(|room| room.memory);
    }
    // What the solver gives up on has not been proven infeasible.
    maximise_sum(variables, &constraints).is_none_or(|(placed, _)| placed >= wanted * (1.0 - TOLERANCE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostClass;
    use drover_placement_trace::huawei;
    use drover_units::{Bytes, VcpuCount};

    fn class(count: usize, cores: u32, gib: u64) -> HostClass {
        HostClass::new(&format!("{cores}/{gib}"), count, VcpuCount::new(cores), Bytes::gib(gib))
    }

    fn check(classes: Vec<HostClass>, rows: &[&str], expect: Bound) {
        let text = format!("vmid,cpu,memory,time,type\n{}\n", rows.join("\n"));
        let trace = huawei::read(text.as_bytes()).unwrap();
        assert_eq!(upper_bound(&Cluster::new(classes).unwrap(), &trace), expect, "{rows:?}");
    }

    #[test]
    fn one_class_is_bounded_by_the_sums() {
        // Three of 3 cores do not fit two hosts of 4 as wholes; by the relaxation the fourth one is too much.
        let rows = ["1,2,1,0,0", "2,3,1,86400,0", "3,3,1,86400,0", "4,3,1,172800,0"];
        check(vec![class(2, 4, 8)], &rows[..3], Bound { cpu: 1.0, day: None });
        check(vec![class(2, 4, 8)], &rows, Bound { cpu: 1.0, day: Some(2.0) });
        // Memory runs out first.
        check(vec![class(1, 8, 4)], &["1,2,4,0,0", "2,1,1,86400,0"], Bound { cpu: 0.25, day: Some(1.0) });
        // Room that is given back counts again.
        check(vec![class(1, 4, 4)], &["1,4,4,0,0", "1,4,4,9,1", "2,2,2,9,0"], Bound { cpu: 1.0, day: None });
    }

    #[test]
    fn what_fits_no_host_is_refused_however_empty_they_are() {
        check(vec![class(9, 4, 8)], &["1,8,1,0,0"], Bound { cpu: 0.0, day: Some(0.0) });
    }

    #[test]
    fn several_classes_are_a_linear_program() {
        let cluster = |classes| Cluster::new(classes).unwrap();
        let rooms = [Room { vcpus: 4, memory: 4 << 30 }, Room { vcpus: 1, memory: 8 << 30 }];
        // 8 cores and 8 GiB, and 2 cores and 32 GiB: what the large VMs leave of the first class has too little memory.
        let classes = cluster(vec![class(1, 8, 8), class(1, 2, 16)]);
        assert!(is_feasible(&classes, &rooms, &[2, 2]));
        assert!(is_feasible(&classes, &rooms, &[1, 2]));
        assert!(!is_feasible(&classes, &rooms, &[2, 3]));
        // Both sums would allow three large ones, which do not fit the second class at all.
        assert!(!is_feasible(&cluster(vec![class(1, 8, 8), class(2, 2, 16)]), &rooms, &[3, 0]));
    }
}
