//! Long-running operations.

use std::ops::ControlFlow;

use drover_cluster_state::{ClusterState, Operation, Stored};
use drover_ids::OperationId;
use drover_ports::Store;
use drover_reconcile::admission;
use drover_wire::control::v1::{
    self as wire, CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse,
    operations_server::Operations,
};
use tonic::{Request, Response, Status};

use super::{
    Api,
    watching::{Watching, watch},
};
use crate::{
    convert,
    paging::PageRequest,
    status::{gone, invalid, submit_failed},
};

impl<S: Store> Api<S> {
    /// An operation as it is now.
    pub(super) async fn operation(&self, id: OperationId) -> Result<wire::Operation, Status> {
        self.cluster.read(move |view| show(view.state, id)).await.map_err(gone)?
    }
}

fn show(state: &ClusterState, id: OperationId) -> Result<wire::Operation, Status> {
    let operation = state.operations.get(&id);
    operation.map(|operation| convert::operation(state, operation)).ok_or_else(|| not_found(id))
}

fn not_found(id: OperationId) -> Status {
    Status::not_found(format!("id: there is no operation {id}; `drover operation list` shows them"))
}

fn parse(id: &str) -> Result<OperationId, Status> {
    id.parse().map_err(|error| invalid("id", error, "an operation's id"))
}

/// Older first; operations of the same millisecond in some fixed order.
fn key(operation: &Stored<Operation>) -> String {
    format!("{:020}/{}", operation.created_at.as_unix_millis(), operation.id)
}

#[tonic::async_trait]
impl<S: Store> Operations for Api<S> {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let id = parse(&request.into_inner().id)?;
        self.operation(id).await.map(Response::new)
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let ListOperationsRequest { page_size, page_token, subject } = request.into_inner();
        let page = PageRequest::new("operation", page_size, &page_token)?;
        let list = move |state: &ClusterState| {
            let wanted = |operation: &&Stored<Operation>| {
                subject.is_empty()
                    || operation.subject_name.as_str() == subject
                    || operation.subject.to_string() == subject
            };
            let found = state.operations.values().filter(wanted);
            let (operations, next_page_token) = page.take(found.map(|one| (key(one), one)).collect());
            let operations = operations.into_iter().map(|one| convert::operation(state, one)).collect();
            ListOperationsResponse { operations, next_page_token }
        };
        self.cluster.read(move |view| list(view.state)).await.map(Response::new).map_err(gone)
    }

    type WatchOperationStream = Watching<wire::Operation>;

    async fn watch_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let id = parse(&request.into_inner().id)?;
        // An unknown one is refused as a call, not in the stream.
        self.operation(id).await?;
        let stream = watch(self.cluster.clone(), None, move |view, last: Option<wire::Operation>| {
            let Some(operation) = view.state.operations.get(&id) else {
                return (vec![Err(not_found(id))], ControlFlow::Break(()));
            };
            let shown = convert::operation(view.state, operation);
            let news = if last.as_ref() == Some(&shown) { vec![] } else { vec![Ok(shown.clone())] };
            let running = operation.is_running();
            (news, if running { ControlFlow::Continue(Some(shown)) } else { ControlFlow::Break(()) })
        });
        Ok(Response::new(stream))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let id = request.into_inner().id;
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::cancel_operation(view.state, &id)?;
            Ok((admitted.operation, admitted.txn))
        });
        let id = admitted.await.map_err(submit_failed)?;
        self.operation(id).await.map(Response::new)
    }
}
