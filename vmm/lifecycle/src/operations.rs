//! Memory of the commands that have been carried out, so that a repeated one has the effect of one (B8).

use std::collections::VecDeque;

use drover_ids::OperationId;

use crate::Verb;

/// How many commands are remembered. A VM sees a handful of commands in its life, and a sender repeats one within
/// seconds; 64 of 24 bytes each outlast any retry and cost nothing (B9).
pub const RECENT_OPERATIONS_MAX: usize = 64;

/// The most recent commands, oldest first. One operation may send several commands (bringing a VM up is Create and
/// Start), so a command is known by its operation and its verb together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecentOperations(VecDeque<(OperationId, Verb)>);

impl RecentOperations {
    pub(crate) fn contains(&self, operation: OperationId, verb: Verb) -> bool {
        self.0.contains(&(operation, verb))
    }

    pub(crate) fn remember(&mut self, operation: OperationId, verb: Verb) {
        if self.contains(operation, verb) {
            return;
        }
        if self.0.len() == RECENT_OPERATIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((operation, verb));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let mut recent = RecentOperations::default();
        for n in 0..=RECENT_OPERATIONS_MAX as u128 {
            recent.remember(OperationId::from_u128(n), Verb::Pause);
        }
        assert_eq!(recent.0.len(), RECENT_OPERATIONS_MAX);
        assert!(!recent.contains(OperationId::from_u128(0), Verb::Pause));
        assert!(recent.contains(OperationId::from_u128(1), Verb::Pause));
    }

    #[test]
    fn one_operation_may_send_several_verbs() {
        let mut recent = RecentOperations::default();
        recent.remember(OperationId::from_u128(1), Verb::Create);
        assert!(!recent.contains(OperationId::from_u128(1), Verb::Start));
    }
}
