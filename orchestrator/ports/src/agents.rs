//! Who runs the VMs.

use drover_reconcile::{AgentAnswer, AgentCall, CallError};

/// The agents of all nodes.
///
/// **Contract.** The driver calls it from many tasks at once, for different VMs of one node too: one call must not
/// wait for another. Implementations keep no state that a restarted control plane would miss: agents recognise a
/// repeated command by its operation id (B8), and refuse one with an older epoch (B6).
pub trait NodeAgents: Send + Sync + 'static {
    /// Gives the command of `call` to the agent at its address, and waits for the answer.
    ///
    /// The caller enforces `call.timeout` by dropping the future: the command may still have its effect.
    ///
    /// # Errors
    /// [`CallError::Refused`] only where the agent itself said no, so that nothing has been done;
    /// [`CallError::Unanswered`] for everything else, and for an answer that makes no sense.
    fn call(&self, call: AgentCall) -> impl Future<Output = Result<AgentAnswer, CallError>> + Send;
}
