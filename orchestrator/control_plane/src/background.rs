//! What the control plane does without being waited for, and ends before it ends itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

/// Tasks that nobody waits for until the end. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Background(Arc<Mutex<JoinSet<()>>>);

impl Background {
    /// Starts a task. Each is one that may be given up at any await: what it leaves undone is found in the store.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        // Those that have ended would otherwise stay until the end.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Gives all of them up, and waits until none holds anything.
    pub(crate) async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        tasks.shutdown().await;
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
