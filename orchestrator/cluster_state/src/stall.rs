//! What becomes of a VM whose storage does not answer.

use std::time::Duration;

/// See [`StallPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StallAction {
    /// It waits, and that is told.
    #[default]
    Wait,
    /// Its vCPUs stand until the storage answers again.
    Pause,
    /// It ends, and is restarted, perhaps where the storage can be reached.
    Stop,
}

/// What becomes of a VM whose storage does not answer. Its requests wait in any case: none is failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallPolicy {
    /// A request that has waited this long makes a stall. `None`: what vmmd thinks is long.
    pub deadline: Option<Duration>,
    /// What happens then.
    pub action: StallAction,
}
