//! How full and how broken up a cluster is.

use drover_placement_trace::{Flavour, FlavourId, Moment, Trace};
use serde::Serialize;

use crate::{Cluster, HostIndex, Room};

/// Large flavours that fragmentation is judged by.
pub const LARGE_FLAVOURS: usize = 3;

/// The cluster at one moment. Shares are between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Days since the trace began.
    pub day: f64,
    /// VMs that are placed.
    pub vms: u64,
    /// Share of the cluster's virtual CPUs that they take.
    pub cpu: f64,
    /// Share of the cluster's memory that they take.
    pub memory: f64,
    /// Requests refused so far.
    pub rejected: u64,
    /// Share of the free virtual CPUs that large VMs cannot have: for each of the [`LARGE_FLAVOURS`] largest flavours, one
    /// less the virtual CPUs in which the hosts, each by itself, could still take VMs of this flavour, divided by all free
    /// ones; the mean of these.
    pub fragmentation: f64,
    /// Hosts without a VM.
    pub empty_hosts: u64,
}

/// The simulation's own account of what is where.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    all: Vec<Room>,
    free: Vec<Room>,
    vms_on: Vec<u32>,
    total: Room,
    taken: Room,
    vms: u64,
    large: Vec<Room>,
}

pub(crate) fn room_of(flavour: Flavour) -> Room {
    Room { vcpus: u64::from(flavour.vcpus.get()), memory: flavour.memory.get() }
}

impl Ledger {
    pub(crate) fn new(cluster: &Cluster, trace: &Trace) -> Self {
        let all: Vec<Room> = cluster.hosts().map(|(_, class, ..)| class.room()).collect();
        Self {
            free: all.clone(),
            vms_on: vec![0; all.len()],
            total: cluster.room(),
            taken: Room::default(),
            vms: 0,
            large: large_flavours(cluster, trace),
            all,
        }
    }

    /// Counts a VM; `false`, and nothing is counted, if it does not fit.
    pub(crate) fn take(&mut self, host: HostIndex, room: Room) -> bool {
        let Some(free) = self.free.get_mut(host.at()) else { return false };
        if !free.holds(room) {
            return false;
        }
        free.vcpus -= room.vcpus;
        free.memory -= room.memory;
        self.vms_on[host.at()] += 1;
        self.taken.vcpus += room.vcpus;
        self.taken.memory += room.memory;
        self.vms += 1;
        true
    }

    pub(crate) fn give_back(&mut self, host: HostIndex, room: Room) {
        let free = &mut self.free[host.at()];
        free.vcpus += room.vcpus;
        free.memory += room.memory;
        self.vms_on[host.at()] -= 1;
        self.taken.vcpus -= room.vcpus;
        self.taken.memory -= room.memory;
        self.vms -= 1;
        debug_assert!(self.all[host.at()].holds(*free));
    }

    pub(crate) fn cpu(&self) -> f64 {
        self.taken.vcpus as f64 / self.total.vcpus as f64
    }

    pub(crate) fn memory(&self) -> f64 {
        self.taken.memory as f64 / self.total.memory as f64
    }

    pub(crate) fn sample(&self, at: Moment, rejected: u64) -> Sample {
        Sample {
            day: at.days(),
            vms: self.vms,
            cpu: self.cpu(),
            memory: self.memory(),
            rejected,
            fragmentation: self.fragmentation(),
            empty_hosts: self.vms_on.iter().filter(|vms| **vms == 0).count() as u64,
        }
    }

    fn fragmentation(&self) -> f64 {
        let free: u64 = self.free.iter().map(|free| free.vcpus).sum();
        if free == 0 || self.large.is_empty() {
            return 0.0;
        }
        let usable = |large: &Room| -> u64 {
            let on = |host: &Room| (host.vcpus / large.vcpus).min(host.memory / large.memory) * large.vcpus;
            self.free.iter().map(on).sum()
        };
        let lost = self.large.iter().map(|large| 1.0 - usable(large) as f64 / free as f64);
        lost.sum::<f64>() / self.large.len() as f64
    }
}

/// The largest flavours by virtual CPUs, then memory, of those that an empty host can take.
fn large_flavours(cluster: &Cluster, trace: &Trace) -> Vec<Room> {
    let fits = |room: &Room| cluster.classes().iter().any(|class| class.room().holds(*room));
    let mut rooms: Vec<Room> = (0..trace.flavours().len())
        .map(|id| room_of(trace.flavour(FlavourId(id as u16))))
        .filter(fits)
        .collect();
    rooms.sort_by_key(|room| std::cmp::Reverse((room.vcpus, room.memory)));
    rooms.truncate(LARGE_FLAVOURS);
    rooms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostClass;
    use drover_placement_trace::huawei;
    use drover_units::{Bytes, VcpuCount};

    fn ledger(hosts: usize) -> Ledger {
        let class = HostClass::new("h", hosts, VcpuCount::new(8), Bytes::gib(16));
        let cluster = Cluster::new(vec![class]).unwrap();
        // The largest one fits no host, so that three are left.
        let file = "vmid,cpu,memory,time,type\n1,1,1,0,0\n2,2,4,0,0\n3,4,8,0,0\n4,8,16,0,0\n5,16,32,0,0\n";
        Ledger::new(&cluster, &huawei::read(file.as_bytes()).unwrap())
    }

    fn room(vcpus: u64, gib: u64) -> Room {
        Room { vcpus, memory: gib << 30 }
    }

    #[test]
    fn what_does_not_fit_is_not_counted() {
        let mut ledger = ledger(1);
        assert!(ledger.take(HostIndex(0), room(8, 4)));
        assert!(!ledger.take(HostIndex(0), room(1, 1)));
        assert!(!ledger.take(HostIndex(1), room(1, 1)));
        assert_eq!((ledger.cpu(), ledger.memory(), ledger.vms), (1.0, 0.25, 1));
        ledger.give_back(HostIndex(0), room(8, 4));
        assert_eq!((ledger.cpu(), ledger.memory(), ledger.vms), (0.0, 0.0, 0));
    }

    fn check(taken: &[(u32, u64, u64)], expect: f64) {
        let mut ledger = ledger(2);
        for (host, vcpus, gib) in taken {
            assert!(ledger.take(HostIndex(*host), room(*vcpus, *gib)));
        }
        let found = ledger.fragmentation();
        assert!((found - expect).abs() < 1e-9, "{taken:?}: {found}, expected {expect}");
    }

    #[test]
    fn fragmentation_is_the_part_of_free_cpus_that_large_vms_cannot_have() {
        check(&[], 0.0);
        // Nothing is free, nothing is lost.
        check(&[(0, 8, 16), (1, 8, 16)], 0.0);
        // Half a host free on each: 8-core VMs can have none of it, the others all.
        check(&[(0, 4, 8), (1, 4, 8)], 1.0 / 3.0);
        // Cores without memory are lost for all.
        check(&[(0, 1, 16), (1, 1, 16)], 1.0);
    }
}
