//! What time it is.

use drover_cluster_state::Now;

/// The two clocks of the process.
pub trait Clock: Send + Sync + 'static {
    /// Both, read together. `moment` never goes back; `wall` may.
    fn now(&self) -> Now;
}
