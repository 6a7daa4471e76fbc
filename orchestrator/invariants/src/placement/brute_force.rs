//! Whether VMs fit at all, by trying.

use drover_ids::NodeId;

use super::{PlainCluster, PlainVm, capacity};

impl PlainCluster {
    /// Hosts on which VMs can be put one after the other, in the order given, each rightly with what stands by then.
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
        let Some(vm) = vms.get(index) else { return true };
        for host in &self.hosts {
            if !may(index, host.id) || !self.against(vm, host.id).is_empty() {
                continue;
            }
            // Which NUMA node it is bound to matters to those after it.
            for binding in capacity::bindings(vm, host) {
                if !capacity::of_one_more_bound(self, vm, host, binding).is_empty() {
                    continue;
                }
                chosen.push(host.id);
                if self.with(vm, host.id, binding).try_next(vms, may, chosen) {
                    return true;
                }
                chosen.pop();
            }
        }
        false
    }
}
