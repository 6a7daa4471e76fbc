//! Why a request does not stand.

use drover_cluster_state::{Name, NodeRejection};
use drover_ids::OperationId;

/// Names listed of what exists; the rest are counted.
const KNOWN_SHOWN: usize = 16;
/// Longest piece of a client's text that an error repeats, characters.
const ECHO_MAX: usize = 80;

/// What kind of refusal it is, for status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Never valid.
    InvalidArgument,
    /// Names something that is not there.
    NotFound,
    /// Names something that is already there.
    AlreadyExists,
    /// Not in the present state.
    FailedPrecondition,
    /// There is no room.
    ResourceExhausted,
}

/// A request that does not stand. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// A value that is never valid.
    #[error("{field}: {problem}; valid: {valid}")]
    Invalid {
        /// The request's field.
        field: &'static str,
        /// What is wrong.
        problem: String,
        /// What would be right.
        valid: String,
    },
    /// Something that is not there.
    #[error("{field}: there is no {kind} '{name}'; {known}")]
    NotFound {
        /// The request's field.
        field: &'static str,
        /// What was looked for.
        kind: &'static str,
        /// By this name or id.
        name: String,
        /// What there is.
        known: String,
    },
    /// A name that somebody has.
    #[error("{field}: the name '{name}' is taken by {kind} {holder}; choose another")]
    NameTaken {
        /// The request's field.
        field: &'static str,
        /// Names are unique within a kind.
        kind: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        holder: String,
    },
    /// A volume that another VM has.
    #[error(
        "{field}: volume '{volume}' is attached to VM '{vm}'; delete that VM first, or choose another volume"
    )]
    VolumeAttached {
        /// The request's field.
        field: &'static str,
        /// The volume.
        volume: Name,
        /// The VM that has it.
        vm: String,
    },
    /// Something still uses what should be removed.
    #[error("{field}: {kind} '{name}' is used by {users}; delete those first")]
    InUse {
        /// The request's field.
        field: &'static str,
        /// What should be removed.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Who uses it.
        users: String,
    },
    /// Another operation works on the VM.
    #[error("vm: VM '{vm}' is busy with operation {operation} ({kind}); wait for its end or cancel it")]
    Busy {
        /// The VM.
        vm: Name,
        /// The operation.
        operation: OperationId,
        /// Its kind.
        kind: &'static str,
    },
    /// Not in this state.
    #[error("{field}: {problem}; valid: {valid}")]
    WrongState {
        /// The request's field.
        field: &'static str,
        /// What is in the way.
        problem: String,
        /// What would be right.
        valid: String,
    },
    /// No node can take it.
    #[error("{field}: no room for VM '{vm}': {summary}")]
    NoRoom {
        /// The request's field.
        field: &'static str,
        /// The VM.
        vm: Name,
        /// Every node and every reason, in one line.
        summary: String,
        /// The same, by node.
        rejections: Vec<NodeRejection>,
    },
    /// There is no way to do it. Nothing has been moved.
    #[error("{field}: {what} is not possible, and nothing has been moved: {problem}")]
    Infeasible {
        /// The request's field.
        field: &'static str,
        /// What was asked for.
        what: String,
        /// What stands in the way.
        problem: String,
    },
    /// A project may not have that much.
    #[error(
        "{field}: project '{project}' has reached a limit: {problem}; delete VMs of it, or raise the limit"
    )]
    OverLimit {
        /// The request's field.
        field: &'static str,
        /// The project.
        project: Name,
        /// Which limit, and by how much.
        problem: String,
    },
    /// A request id that belongs to another request.
    #[error("request_id: it belongs to an earlier {kind} of '{name}'; valid: a fresh one for each request")]
    RequestIdReused {
        /// The earlier request.
        kind: &'static str,
        /// What it was about.
        name: String,
    },
}

impl AdmissionError {
    /// The request's field that is to blame.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Invalid { field, .. }
            | Self::NotFound { field, .. }
            | Self::NameTaken { field, .. }
            | Self::VolumeAttached { field, .. }
            | Self::InUse { field, .. }
            | Self::WrongState { field, .. }
            | Self::NoRoom { field, .. }
            | Self::OverLimit { field, .. }
            | Self::Infeasible { field, .. } => field,
            Self::Busy { .. } => "vm",
            Self::RequestIdReused { .. } => "request_id",
        }
    }

    /// What kind of refusal it is.
    pub fn category(&self) -> Category {
        match self {
            Self::Invalid { .. } | Self::RequestIdReused { .. } => Category::InvalidArgument,
            Self::NotFound { .. } => Category::NotFound,
            Self::NameTaken { .. } => Category::AlreadyExists,
            Self::VolumeAttached { .. }
            | Self::InUse { .. }
            | Self::Busy { .. }
            | Self::Infeasible { .. }
            | Self::WrongState { .. } => Category::FailedPrecondition,
            Self::NoRoom { .. } | Self::OverLimit { .. } => Category::ResourceExhausted,
        }
    }

    pub(super) fn invalid(field: &'static str, problem: impl Into<String>, valid: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into(), valid: valid.into() }
    }

    pub(super) fn wrong_state(
        field: &'static str,
        problem: impl Into<String>,
        valid: impl Into<String>,
    ) -> Self {
        Self::WrongState { field, problem: problem.into(), valid: valid.into() }
    }

    pub(super) fn not_found<'a>(
        field: &'static str,
        kind: &'static str,
        text: &str,
        known: impl Iterator<Item = &'a str>,
    ) -> Self {
        Self::NotFound { field, kind, name: text.chars().take(ECHO_MAX).collect(), known: there_is(known) }
    }
}

/// "there are: a, b and 3 more".
fn there_is<'a>(known: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = known.collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(KNOWN_SHOWN);
    names.truncate(KNOWN_SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "there are none".to_owned(),
        (false, 0) => format!("there is: {}", names.join(", ")),
        (false, more) => format!("there is: {} and {more} more", names.join(", ")),
    }
}
