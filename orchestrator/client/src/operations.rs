//! Operations, and waiting for their end.

use std::time::Duration;

use tonic::{Status, Streaming};

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{
        CancelOperationRequest, GetOperationRequest, ListOperationsRequest, Operation, OperationState,
        operations_client::OperationsClient,
    },
    connect::Repeat,
};

/// How long [`Client::wait_operation`] goes on without reaching the server. A control plane that restarts is back
/// within a few seconds; its operations are in its store.
const LOST_MAX: Duration = Duration::from_secs(30);
/// Pause between attempts to follow the operation again.
const REWATCH_PAUSE: Duration = Duration::from_millis(200);

/// How a wait for an operation is bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waited {
    /// Give up after this long; `None` waits for as long as the operation takes.
    pub timeout: Option<Duration>,
}

impl Waited {
    /// At most `timeout`.
    #[must_use]
    pub const fn at_most(timeout: Duration) -> Self {
        Self { timeout: Some(timeout) }
    }
}

/// Whether the operation will not change any more.
#[must_use]
pub fn has_ended(operation: &Operation) -> bool {
    matches!(operation.state(), OperationState::Done | OperationState::Failed | OperationState::Cancelled)
}

impl Client {
    /// One operation.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn get_operation(&self, id: &str) -> Result<Operation> {
        let request = GetOperationRequest { id: id.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { OperationsClient::new(channel).get_operation(request).await }
        })
        .await
    }

    /// Every retained operation; with `subject`, those of one VM or volume.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_operations(&self, subject: Option<&str>) -> Result<Vec<Operation>> {
        let mut operations = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListOperationsRequest {
                page_size: PAGE_SIZE,
                page_token,
                subject: subject.unwrap_or_default().to_owned(),
            };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { OperationsClient::new(channel).list_operations(request).await }
                })
                .await?;
            operations.extend(page.operations);
            if page.next_page_token.is_empty() {
                return Ok(operations);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "operations" })
    }

    /// Asks for an operation to end early. It may still complete; wait for it to know.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] where it cannot be cancelled any more, and see [`Error`].
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation> {
        let request = CancelOperationRequest { id: id.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { OperationsClient::new(channel).cancel_operation(request).await }
        })
        .await
    }

    /// The current state of an operation at once, then each change, until it ends.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn watch_operation(&self, id: &str) -> Result<Streaming<Operation>> {
        let request = GetOperationRequest { id: id.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { OperationsClient::new(channel).watch_operation(request).await }
        })
        .await
    }

    /// Follows an operation to its end and returns it if it is done. `progress` sees each state that arrives. The
    /// control plane may restart meanwhile; a server that stays away for 30 seconds ends the wait.
    ///
    /// # Errors
    /// [`Error::OperationFailed`], [`Error::OperationCancelled`], [`Error::WaitTimeout`], and see [`Error`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the operation running.
    pub async fn wait_operation(
        &self,
        id: &str,
        waited: Waited,
        mut progress: impl FnMut(&Operation),
    ) -> Result<Operation> {
        let follow = self.follow(id, &mut progress);
        let operation = match waited.timeout {
            None => follow.await?,
            Some(timeout) => tokio::time::timeout(timeout, follow)
                .await
                .map_err(|_| Error::WaitTimeout { id: id.to_owned(), waited: timeout })??,
        };
        match operation.state() {
            OperationState::Failed => Err(Error::OperationFailed(Box::new(operation))),
            OperationState::Cancelled => Err(Error::OperationCancelled(Box::new(operation))),
            _ => Ok(operation),
        }
    }

    async fn follow(&self, id: &str, progress: &mut impl FnMut(&Operation)) -> Result<Operation> {
        let mut lost = Duration::ZERO;
        loop {
            let error = match self.watch_operation(id).await {
                Ok(mut changes) => loop {
                    match changes.message().await {
                        Ok(Some(operation)) => {
                            lost = Duration::ZERO;
                            progress(&operation);
                            if has_ended(&operation) {
                                return Ok(operation);
                            }
                        }
                        Ok(None) => break self.error(&Status::unavailable("the watch ended early")),
                        Err(status) => break self.error(&status),
                    }
                },
                Err(error) => error,
            };
            if !error.is_unreachable() || lost >= LOST_MAX {
                return Err(error);
            }
            // Opening a watch retries by itself; what it may have taken counts as lost too.
            lost += REWATCH_PAUSE + self.options().retry.longest_pause;
            tokio::time::sleep(REWATCH_PAUSE).await;
        }
    }
}
