//! Why a command was not carried out, and the gRPC status that says so.

use std::error::Error;

use drover_lifecycle::Refusal;
use tonic::{Code, Status};

use crate::order::InvalidField;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The message makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// The state, the epoch or the lease does not admit it.
    #[error(transparent)]
    NotAdmitted(#[from] Refusal),
    /// Something on this host is not as the command needs it: a file, a volume's owner, an address.
    #[error("{0}")]
    Precondition(String),
    /// The file of a suspended VM is of no use to anybody, now or later: it is damaged, or the guest has gone on without it.
    #[error("{0}")]
    Useless(String),
    /// It has not been done, and may be soon: whoever asks again may have it.
    #[error("{0}")]
    NotNow(String),
    /// It was admitted and failed.
    #[error("{0}")]
    Failed(String),
    /// More commands are waiting than this process queues.
    #[error("{} commands are waiting already: try again", crate::vm_thread::INPUTS_MAX)]
    TooMany,
    /// The VM's thread is gone.
    #[error("this process is ending")]
    Gone,
}

impl Refused {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotAdmitted(refusal) => match refusal {
                Refusal::NoEpoch | Refusal::TargetEpochNotNewer { .. } => Code::InvalidArgument,
                Refusal::UnknownMigration { .. } => Code::NotFound,
                Refusal::Busy { .. } => Code::Unavailable,
                Refusal::StaleEpoch { .. }
                | Refusal::FutureEpoch { .. }
                | Refusal::WrongState { .. }
                | Refusal::LeaseOverdue { .. }
                | Refusal::HandedOver { .. }
                | Refusal::AlreadyCommitted { .. }
                | Refusal::Ending { .. } => Code::FailedPrecondition,
            },
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Useless(_) => Code::DataLoss,
            Self::NotNow(_) => Code::Aborted,
            Self::Failed(_) => Code::Internal,
            Self::TooMany => Code::ResourceExhausted,
            Self::Gone => Code::Unavailable,
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code(), refused.to_string())
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use drover_ids::OwnerEpoch;

    use super::*;

    #[test]
    fn a_stale_epoch_is_a_failed_precondition() {
        let epoch = OwnerEpoch::new;
        let status = Status::from(Refused::from(Refusal::StaleEpoch { given: epoch(1), current: epoch(2) }));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "command.owner_epoch 1 is stale: this VM belongs to epoch 2");
    }
}
