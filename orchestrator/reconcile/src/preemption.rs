//! VMs that give way to one of higher priority that fits nowhere else.
//!
//! Nothing of it is stored: the VM that waits is decided again until it fits, and names the same victims until they are
//! gone. A victim is ended as after a failure, with evidence, and is then wanted to run as before: it restarts where
//! there is room, after those of higher priority.

use drover_cluster_state::{Desired, Record, Stored, Txn, Vm, event_kind};
use drover_placement::Decision;

use crate::planner::{Next, Planner};

impl Planner {
    /// Has the victims of a decision give way, and waits for it.
    pub(crate) fn preempt(&mut self, vm: &Stored<Vm>, decision: &Decision) -> Next {
        let node = self.state.node_name(decision.host);
        let mut names = Vec::new();
        for victim in &decision.victims {
            let Some(stored) = self.state.vms.get(victim).filter(|v| v.desired == Desired::Running).cloned()
            else {
                continue;
            };
            names.push(stored.spec.name.to_string());
            let memory = self.memory.entry(*victim).or_default();
            let epoch = stored.ownership.highest();
            if memory.gives_way.as_ref().is_some_and(|(at, _)| *at == epoch) {
                continue;
            }
            let reason = format!("gave way to VM '{}', whose priority is {}", vm.spec.name, vm.spec.priority);
            memory.gives_way = Some((epoch, reason.clone()));
            self.book.statistics.preemptions += 1;
            let event = self.vm_event(event_kind::VM_PREEMPTED, &stored, format!("on node {node}: {reason}"));
            self.out.push(crate::Effect::Record(event));
            self.touch(*victim);
        }
        let detail = format!("waiting for {} to give way on node {node}", names.join(", "));
        if let Some(operation) = self.running_operation(vm)
            && operation.step != detail
        {
            let mut txn = Txn::new();
            let mut waits = operation.value.clone();
            waits.step.clone_from(&detail);
            waits.percent = waits.percent.max(20);
            txn.update(operation.revision, Record::Operation(waits));
            self.submit(txn);
        }
        Next::wait(detail)
    }

    /// Why this VM has to give way at its present epoch, if it has.
    pub(crate) fn gives_way(&self, vm: &Vm) -> Option<String> {
        let (epoch, reason) = self.memory.get(&vm.id)?.gives_way.as_ref()?;
        (*epoch == vm.ownership.highest()).then(|| reason.clone())
    }
}
