//! What really runs.

use std::collections::BTreeMap;

use drover_ids::{NodeId, OwnerEpoch, VmId};

use crate::Violation;

/// A process whose vCPUs execute a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runner {
    /// The VM.
    pub vm: VmId,
    /// Where.
    pub node: NodeId,
    /// With which epoch.
    pub epoch: OwnerEpoch,
}

/// At most one process executes each VM, and none does with an epoch that was never granted or is older than one that
/// has been used. `granted` is the highest epoch granted to a VM so far; `None` for one that is gone.
pub fn check_runners(
    runners: impl IntoIterator<Item = Runner>,
    granted: impl Fn(VmId) -> Option<OwnerEpoch>,
) -> Vec<Violation> {
    let mut first: BTreeMap<VmId, Runner> = BTreeMap::new();
    let mut violations = Vec::new();
    for runner in runners {
        let Runner { vm, node, epoch } = runner;
        if granted(vm).is_some_and(|highest| epoch > highest) {
            violations.push(Violation::new(
                "epoch-never-granted",
                format!("{vm} runs on {node} with epoch {epoch}"),
            ));
        }
        if let Some(other) = first.insert(vm, runner) {
            let what =
                format!("{vm} runs on {} (epoch {}) and on {node} (epoch {epoch})", other.node, other.epoch);
            violations.push(Violation::new("two-owners", what));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(node: u128, epoch: u64) -> Runner {
        Runner { vm: VmId::from_u128(1), node: NodeId::from_u128(node), epoch: OwnerEpoch::new(epoch) }
    }
    fn check(runners: &[Runner], expect: &[&str]) {
        let found = check_runners(runners.iter().copied(), |_| Some(OwnerEpoch::new(5)));
        assert_eq!(found.iter().map(|v| v.rule).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn one_process_per_vm() {
        check(&[], &[]);
        check(&[runner(1, 5)], &[]);
        check(&[runner(1, 4), runner(2, 5)], &["two-owners"]);
        check(&[runner(1, 5), runner(1, 5)], &["two-owners"]);
        check(&[runner(1, 6)], &["epoch-never-granted"]);
    }
}
