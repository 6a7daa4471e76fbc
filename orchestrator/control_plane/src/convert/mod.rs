//! Wire messages to domain types and back. What arrives is checked here; nothing behind this looks at a message again.

mod agent;
mod api;
mod devices;
mod placement;
mod report;

pub(crate) use agent::{heartbeat, registration, vm_spec};
pub(crate) use api::{
    disk_image, event, image, node, operation, snapshot, timestamp, vm, vm_snapshot, volume,
};
pub(crate) use devices::{limits, limits_message, nic};
pub(crate) use placement::{create_vm, stall, stall_from, update_node, within};
pub(crate) use report::vm_report;

/// A message that breaks a rule: "vms[2].info.vm_id: …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct WireError {
    field: String,
    problem: String,
}

impl WireError {
    fn new(field: &str, problem: impl ToString) -> Self {
        Self { field: field.to_owned(), problem: problem.to_string() }
    }

    /// The same, inside of another message.
    fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), problem: self.problem }
    }
}

/// A field that must be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::new(field, "it is missing"))
}
