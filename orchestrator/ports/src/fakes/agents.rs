//! Agents that do what a test says.

use std::sync::{Arc, Mutex, PoisonError};

use drover_reconcile::{AgentAnswer, AgentCall, CallError};
use tokio::sync::mpsc;

use crate::NodeAgents;

/// How a test answers calls at once.
type Script = dyn Fn(&AgentCall) -> Option<Result<AgentAnswer, CallError>> + Send + Sync;

/// Agents that answer by a script, and never where the script says `None`. Clones are the same agents.
#[derive(Clone)]
pub struct FakeNodeAgents {
    script: Arc<Script>,
    calls: Arc<Mutex<Vec<AgentCall>>>,
    told: mpsc::UnboundedSender<AgentCall>,
}

impl std::fmt::Debug for FakeNodeAgents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeNodeAgents").field("calls", &self.calls().len()).finish_non_exhaustive()
    }
}

impl FakeNodeAgents {
    /// Agents that follow `script`, and a receiver of every call they get.
    pub fn new(
        script: impl Fn(&AgentCall) -> Option<Result<AgentAnswer, CallError>> + Send + Sync + 'static,
    ) -> (Self, mpsc::UnboundedReceiver<AgentCall>) {
        let (told, calls) = mpsc::unbounded_channel();
        (Self { script: Arc::new(script), calls: Arc::default(), told }, calls)
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<AgentCall> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl NodeAgents for FakeNodeAgents {
    async fn call(&self, call: AgentCall) -> Result<AgentAnswer, CallError> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
        // A test that does not listen has dropped the receiver.
        let _unheard = self.told.send(call.clone());
        match (self.script)(&call) {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}
