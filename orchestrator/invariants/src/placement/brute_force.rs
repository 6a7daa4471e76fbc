//! Whether VMs fit at all, by trying.

use drover_ids::NodeId;

use super::{PlainCluster, PlainVm, capacity, constraints};

impl PlainCluster {
    /// Hosts, in the order of `vms`, on which all of these could stand at once, with each other and with what stands.
    /// `None`: there is no way. Tries every way: the work grows as hosts to the power of VMs.
    ///
    /// `may` says which hosts each VM may go to at all, by its position.
    pub fn arrangement(&self, vms: &[PlainVm], may: &dyn Fn(usize, NodeId) -> bool) -> Option<Vec<NodeId>> {
        let mut chosen = Vec::new();
        self.try_next(vms, may, &mut chosen).then_some(chosen)
    }

    fn try_next(
        &self,
        vms: &[PlainVm],
        may: &dyn Fn(usize, NodeId) -> bool,
        chosen: &mut Vec<NodeId>,
    ) -> bool {
        let index = chosen.len();
        let Some(vm) = vms.get(index) else {
            // Rules between VMs are only asked once all stand: a later one may be what an earlier one wants to be near.
            return vms.iter().zip(chosen.iter()).all(|(vm, host)| self.stands_rightly(vm, *host))
                && self.over_limits_of(vms).is_empty();
        };
        for host in &self.hosts {
            let mut wrong = Vec::new();
            constraints::of_host(vm, host, &mut wrong);
            if !wrong.is_empty() || !may(index, host.id) {
                continue;
            }
            for binding in capacity::bindings(vm, host) {
                let with = self.with(vm, host.id, binding);
                let mut over = Vec::new();
                capacity::of_host(&with, host, &mut over);
                if !over.is_empty() {
                    continue;
                }
                chosen.push(host.id);
                if with.try_next(vms, may, chosen) {
                    return true;
                }
                chosen.pop();
            }
        }
        false
    }

    fn stands_rightly(&self, vm: &PlainVm, host: NodeId) -> bool {
        let Some(host) = self.host(host) else { return false };
        let mut wrong = Vec::new();
        constraints::of_others(self, vm, host, &mut wrong);
        wrong.is_empty()
    }

    fn over_limits_of(&self, vms: &[PlainVm]) -> Vec<crate::Violation> {
        let mut over = Vec::new();
        for vm in vms {
            capacity::of_projects(self, Some(&vm.project), &mut over);
        }
        over
    }
}
