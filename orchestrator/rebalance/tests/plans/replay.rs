//! Carrying a plan out on the model.

use std::collections::BTreeSet;

use drover_ids::{NodeId, VmId};
use drover_invariants::{PlainCluster, Standing, Violation};
use drover_placement::Inventory;
use drover_rebalance::{Move, Parallelism, Plan};

/// The model and, only for the NUMA nodes that it binds VMs to, the inventory.
pub(crate) struct Replay {
    pub(crate) plain: PlainCluster,
    pub(crate) inventory: Inventory,
}

impl Replay {
    /// Carries a plan out wave by wave: no host ever holds more than before and more than it has, each move is right
    /// where it goes, and no more run at a time than may.
    pub(crate) fn carry_out(&mut self, plan: &Plan, limits: &Parallelism) {
        for wave in &plan.waves {
            assert!(!wave.moves.is_empty(), "a wave does something");
            self.is_parallel(&wave.moves, limits);
            let before = self.plain.over_capacity();
            let start = self.plain.clone();
            for mv in &wave.moves {
                self.is_right(mv, &start, &wave.moves);
                self.begin(mv);
            }
            let over: Vec<Violation> = self
                .plain
                .over_capacity()
                .into_iter()
                .filter(|violation| !before.contains(violation))
                .collect();
            assert_eq!(over, [], "while {:?} run", wave.moves);
            for mv in &wave.moves {
                self.inventory.release(mv.vm, mv.from).expect("it was there");
                self.plain.standing.retain(|standing| standing.vm.id != mv.vm || standing.host != mv.from);
            }
        }
    }

    fn is_right(&self, mv: &Move, start: &PlainCluster, wave: &[Move]) {
        assert_ne!(mv.from, mv.to);
        let standing = self.standing(mv.vm, mv.from).unwrap_or_else(|| panic!("{mv:?}: it is not there"));
        let one_by_one = self.plain.against(&standing.vm, mv.to);
        if one_by_one.is_empty() {
            return;
        }
        // VMs that must be together begin together.
        let mut all = start.clone();
        for other in wave.iter().filter(|other| other.vm != mv.vm) {
            let found = start.standing.iter().find(|s| s.vm.id == other.vm).expect("it stands");
            all = all.with(&found.vm, other.to, None);
        }
        let of_others = all.against(&standing.vm, mv.to);
        let others_only: Vec<&Violation> =
            of_others.iter().filter(|v| one_by_one.iter().any(|w| w.rule == v.rule)).collect();
        assert!(others_only.is_empty(), "{mv:?}: {one_by_one:?}, and with all of its wave {of_others:?}");
    }

    fn standing(&self, vm: VmId, host: NodeId) -> Option<&Standing> {
        self.plain.standing.iter().find(|standing| standing.vm.id == vm && standing.host == host)
    }

    fn begin(&mut self, mv: &Move) {
        let request = self.inventory.vm(mv.vm).next().expect("it is held").request();
        self.inventory.hold(mv.to, &request).expect("it is not there yet");
        let bound = self.inventory.vm(mv.vm).find(|view| view.host().id() == mv.to);
        let numa_node = bound.and_then(|view| view.numa_node());
        let vm = self.standing(mv.vm, mv.from).expect("it stands").vm.clone();
        self.plain.standing.push(Standing { vm, host: mv.to, numa_node });
    }

    /// VMs that must be together may be more than the limits allow, and then are alone.
    fn is_parallel(&self, wave: &[Move], limits: &Parallelism) {
        let most = |of: fn(&Move) -> NodeId| {
            let hosts: BTreeSet<NodeId> = wave.iter().map(of).collect();
            hosts.into_iter().map(|host| wave.iter().filter(|mv| of(mv) == host).count()).max().unwrap_or(0)
        };
        let within = wave.len() <= limits.cluster as usize
            && most(|mv| mv.from) <= limits.per_source as usize
            && most(|mv| mv.to) <= limits.per_target as usize;
        let tied = |mv: &Move| {
            let vm = self.standing(mv.vm, mv.from).map(|standing| &standing.vm);
            vm.is_some_and(|vm| vm.affinity.iter().any(|rule| rule.together) || !vm.groups.is_empty())
                || self.plain.standing.iter().any(|s| s.vm.affinity.iter().any(|rule| rule.together))
        };
        assert!(within || wave.iter().all(tied), "{wave:?} are more than {limits:?}");
    }
}
