//! The textbook's ways to place VMs, to compare with.
//!
//! Each looks at every host. Sizes are normalised by the host's room, so that cores and memory weigh alike. The vector
//! heuristics are those of Panigrahy, Talwar, Uyeda and Wieder, "Heuristics for Vector Bin Packing" (Microsoft Research,
//! 2011), turned from choosing an item for the open bin to choosing a host for the VM that has arrived: a host that is in
//! use comes before an empty one, as an open bin comes before a new one.

use std::{collections::BTreeMap, fmt, str::FromStr};

use drover_placement_trace::TraceVm;

use crate::{Ask, Cluster, HostIndex, Move, Placer, Room};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heuristic {
    /// The first host with room.
    FirstFit,
    /// The host with least left afterwards: the sum of the parts of cores and memory.
    BestFit,
    /// The host with most left afterwards.
    WorstFit,
    /// The host in use whose free room lies most in the VM's direction: the largest product of both, scaled to length one.
    DotProduct,
    /// The host in use whose free room is nearest to the VM's size: the smallest Euclidean distance.
    L2Norm,
}

impl Heuristic {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::FirstFit, Self::BestFit, Self::WorstFit, Self::DotProduct, Self::L2Norm];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FirstFit => "first-fit",
            Self::BestFit => "best-fit",
            Self::WorstFit => "worst-fit",
            Self::DotProduct => "dot-product",
            Self::L2Norm => "l2-norm",
        }
    }
}

impl fmt::Display for Heuristic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Heuristic {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|heuristic| heuristic.name() == name).ok_or(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Host {
    all: Room,
    free: Room,
}

/// Places by a heuristic.
#[derive(Debug)]
pub struct HeuristicPlacer {
    heuristic: Heuristic,
    hosts: Vec<Host>,
    placed: BTreeMap<TraceVm, (HostIndex, Room)>,
}

impl HeuristicPlacer {
    /// Begins with empty hosts.
    #[must_use]
    pub fn new(heuristic: Heuristic, cluster: &Cluster) -> Self {
        let hosts = cluster.hosts().map(|(_, class, ..)| Host { all: class.room(), free: class.room() });
        Self { heuristic, hosts: hosts.collect(), placed: BTreeMap::new() }
    }

    fn choose(&self, demand: Room) -> Option<usize> {
        let mut feasible = self.hosts.iter().enumerate().filter(|(_, host)| host.free.holds(demand));
        if self.heuristic == Heuristic::FirstFit {
            return feasible.next().map(|(index, _)| index);
        }
        // The smallest cost wins, and the first of equals.
        let mut best: Option<((bool, f64), usize)> = None;
        for (index, host) in feasible {
            let cost = self.cost(host, demand);
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Whether a host is to be opened only if no other will do, and how bad it is.
    fn cost(&self, host: &Host, demand: Room) -> (bool, f64) {
        let part = |value: u64, whole: u64| value as f64 / whole as f64;
        let free = (part(host.free.vcpus, host.all.vcpus), part(host.free.memory, host.all.memory));
        let wanted = (part(demand.vcpus, host.all.vcpus), part(demand.memory, host.all.memory));
        let left = (free.0 - wanted.0, free.1 - wanted.1);
        let empty = host.free == host.all;
        match self.heuristic {
            Heuristic::FirstFit => (false, 0.0),
            Heuristic::BestFit => (false, left.0 + left.1),
            Heuristic::WorstFit => (false, -(left.0 + left.1)),
            Heuristic::DotProduct => {
                let length = |(x, y): (f64, f64)| x.hypot(y);
                (empty, -(free.0 * wanted.0 + free.1 * wanted.1) / (length(free) * length(wanted)))
            }
            Heuristic::L2Norm => (empty, left.0.hypot(left.1)),
        }
    }
}

impl Placer for HeuristicPlacer {
    fn place(&mut self, ask: &Ask) -> Option<HostIndex> {
        let demand = ask.room();
        let index = self.choose(demand)?;
        let free = &mut self.hosts[index].free;
        free.vcpus -= demand.vcpus;
        free.memory -= demand.memory;
        let host = HostIndex(u32::try_from(index).expect("MAX_HOSTS fits"));
        self.placed.insert(ask.vm, (host, demand));
        Some(host)
    }

    fn release(&mut self, vm: TraceVm) {
        if let Some((host, room)) = self.placed.remove(&vm) {
            let free = &mut self.hosts[host.at()].free;
            free.vcpus += room.vcpus;
            free.memory += room.memory;
        }
    }

    /// The textbook's heuristics migrate nothing.
    fn make_room(&mut self, _: &Ask) -> Vec<Move> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostClass;
    use drover_placement_trace::{Flavour, Moment, Priority};
    use drover_units::{Bytes, VcpuCount};

    /// Three hosts with 8 cores and 16 GiB, of which so many cores and GiB are taken; who gets 2 cores and 2 GiB?
    fn check(heuristic: Heuristic, taken: [(u64, u64); 3], expect: Option<u32>) {
        let class = HostClass::new("h", 3, VcpuCount::new(8), Bytes::gib(16));
        let mut placer = HeuristicPlacer::new(heuristic, &Cluster::new(vec![class]).unwrap());
        for (host, (vcpus, gib)) in placer.hosts.iter_mut().zip(taken) {
            host.free = Room { vcpus: 8 - vcpus, memory: (16 - gib) << 30 };
        }
        let flavour = Flavour { vcpus: VcpuCount::new(2), memory: Bytes::gib(2) };
        let at = Moment::default();
        let ask = Ask { vm: TraceVm(0), flavour, priority: Priority::High, at, ends: None };
        assert_eq!(placer.place(&ask).map(|host| host.0), expect, "{heuristic} {taken:?}");
    }

    #[test]
    fn each_heuristic_chooses_as_its_name_says() {
        let taken = [(0, 0), (1, 2), (4, 10)];
        check(Heuristic::FirstFit, taken, Some(0));
        check(Heuristic::BestFit, taken, Some(2));
        check(Heuristic::WorstFit, taken, Some(0));
        check(Heuristic::L2Norm, taken, Some(2));
        // 2 of 8 cores and 2 of 16 GiB: two parts of cores to one of memory.
        check(Heuristic::DotProduct, [(0, 0), (0, 8), (4, 0)], Some(1));
    }

    #[test]
    fn a_host_without_room_is_never_chosen() {
        for heuristic in Heuristic::ALL {
            check(heuristic, [(7, 0), (0, 15), (6, 14)], Some(2));
            check(heuristic, [(7, 0), (0, 15), (7, 14)], None);
        }
    }

    #[test]
    fn an_empty_host_is_opened_last_by_the_vector_heuristics() {
        check(Heuristic::DotProduct, [(0, 0), (6, 8), (8, 16)], Some(1));
        check(Heuristic::L2Norm, [(0, 0), (1, 1), (8, 16)], Some(1));
    }

    #[test]
    fn names_are_read_back() {
        for heuristic in Heuristic::ALL {
            assert_eq!(heuristic.name().parse(), Ok(heuristic));
        }
    }
}
