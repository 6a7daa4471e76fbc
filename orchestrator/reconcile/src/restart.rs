//! When a VM that keeps failing is tried again.

use std::time::Duration;

use drover_cluster_state::Evidence;
use drover_ids::NodeId;

use crate::calls::pause;

/// The pause before the first restart.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest pause between two restarts.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A run of this length wipes out the failures before it.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(60);
/// Failures on the same node after which others are considered as good.
const SAME_NODE_TRIES: u32 = 3;
/// Failed starts after which the operation that wants the VM to run fails.
pub(crate) const START_ATTEMPTS: u32 = 3;

/// The pause before the next start after this many failures in a row. A VM whose node died has none: it did nothing
/// wrong.
pub(crate) fn backoff(failures: u32) -> Duration {
    pause(BACKOFF_MIN, BACKOFF_MAX, failures)
}

/// Where to start it again, all else being allowed: where it was, whose caches are warm, unless it keeps failing there.
pub(crate) fn preferred_node(failures: u32, evidence: &[Evidence]) -> Option<NodeId> {
    let last = evidence.last().map(|evidence| evidence.subject().0);
    last.filter(|_| failures <= SAME_NODE_TRIES)
}

#[cfg(test)]
mod tests {
    use drover_ids::OwnerEpoch;

    use super::*;

    #[test]
    fn backoff_doubles_from_200_ms_to_30_s() {
        assert_eq!(backoff(0), Duration::ZERO);
        assert_eq!(backoff(1), Duration::from_millis(200));
        assert_eq!(backoff(4), Duration::from_millis(1600));
        assert_eq!(backoff(50), Duration::from_secs(30));
    }

    #[test]
    fn a_vm_that_keeps_failing_may_go_elsewhere() {
        let node = NodeId::from_u128(1);
        let evidence = [Evidence::Stopped { node, epoch: OwnerEpoch::new(1) }];
        assert_eq!(preferred_node(1, &evidence), Some(node));
        assert_eq!(preferred_node(4, &evidence), None);
        assert_eq!(preferred_node(1, &[]), None);
    }
}
