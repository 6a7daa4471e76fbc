//! One change of a VM's devices at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as SyncMutex, PoisonError, Weak},
};

use drover_ids::VmId;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Who may change which VM's devices at the moment. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    under_way: Arc<SyncMutex<BTreeMap<VmId, Weak<Mutex<()>>>>>,
}

/// The right to change a VM's devices, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code, reason = "it is held")] OwnedMutexGuard<()>);

impl Turns {
    /// Waits until nobody else changes this VM's devices.
    pub(crate) async fn take(&self, vm: VmId) -> Turn {
        Turn(self.of(vm).lock_owned().await)
    }

    /// The same, at once or not at all.
    pub(crate) fn try_take(&self, vm: VmId) -> Option<Turn> {
        self.of(vm).try_lock_owned().ok().map(Turn)
    }

    fn of(&self, vm: VmId) -> Arc<Mutex<()>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = under_way.get(&vm).and_then(Weak::upgrade) {
            return turn;
        }
        under_way.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        under_way.insert(vm, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vm_has_one_turn_at_a_time_and_others_do_not_wait_for_it() {
        let (turns, vm) = (Turns::default(), VmId::from_u128);
        let first = turns.take(vm(1)).await;
        assert!(turns.try_take(vm(1)).is_none());
        drop(turns.take(vm(2)).await);
        let waits = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(vm(1)).await }
        });
        drop(first);
        let second = waits.await.expect("it does not panic");
        assert!(turns.try_take(vm(1)).is_none());
        drop(second);
        assert!(turns.try_take(vm(1)).is_some());
        assert!(turns.under_way.lock().expect("whole").len() <= 2);
    }
}
