//! Nodes, as clients see them.

use drover_cluster_state::{ClusterState, Node, Stored};
use drover_driver::View;
use drover_ids::NodeId;
use drover_ports::Store;
use drover_reconcile::admission;
use drover_wire::control::v1::{
    self as wire, GetNodeRequest, ListNodesRequest, ListNodesResponse, UpdateNodeRequest, nodes_server::Nodes,
};
use tonic::{Request, Response, Status};

use super::Api;
use crate::{
    convert,
    paging::PageRequest,
    status::{gone, no_such, submit_failed},
};

/// The node a client means, by id or name.
fn find<'a>(state: &'a ClusterState, text: &str) -> Option<&'a Stored<Node>> {
    let by_id = text.parse::<NodeId>().ok().and_then(|id| state.nodes.get(&id));
    by_id.or_else(|| state.node_named(text))
}

impl<S: Store> Api<S> {
    /// A node as it is now.
    pub(super) async fn node(&self, id: NodeId) -> Result<wire::Node, Status> {
        let get = move |view: View<'_>| {
            let node = view.state.nodes.get(&id).ok_or_else(|| no_such("node", "node", &id.to_string()))?;
            let usage = view.state.usage().get(&id).copied().unwrap_or_default();
            Ok(convert::node(view, node, usage))
        };
        self.cluster.read(get).await.map_err(gone)?
    }
}

#[tonic::async_trait]
impl<S: Store> Nodes for Api<S> {
    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let request = request.into_inner();
        let page = PageRequest::new("node", request.page_size, &request.page_token)?;
        let list = move |view: View<'_>| {
            let usage = view.state.usage();
            let all = view.state.nodes.values().map(|node| (node.name.to_string(), node)).collect();
            let (nodes, next_page_token) = page.take(all);
            let show = |node: &Stored<Node>| {
                convert::node(view, node, usage.get(&node.id).copied().unwrap_or_default())
            };
            ListNodesResponse { nodes: nodes.into_iter().map(show).collect(), next_page_token }
        };
        self.cluster.read(list).await.map(Response::new).map_err(gone)
    }

    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<wire::Node>, Status> {
        let text = request.into_inner().node;
        let get = move |view: View<'_>| {
            let node = find(view.state, &text).ok_or_else(|| no_such("node", "node", &text))?;
            let usage = view.state.usage().get(&node.id).copied().unwrap_or_default();
            Ok(convert::node(view, node, usage))
        };
        self.cluster.read(get).await.map_err(gone)?.map(Response::new)
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Result<Response<wire::Node>, Status> {
        let request = convert::update_node(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let updated =
            self.cluster.submit(move |view| admission::update_node(view.state, &request, view.now.wall));
        let node = updated.await.map_err(submit_failed)?;
        self.node(node).await.map(Response::new)
    }
}
