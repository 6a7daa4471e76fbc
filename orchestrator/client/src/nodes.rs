//! Nodes.

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{GetNodeRequest, ListNodesRequest, Node, nodes_client::NodesClient},
    connect::Repeat,
};

impl Client {
    /// Every node, known or alive.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_nodes(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListNodesRequest { page_size: PAGE_SIZE, page_token };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { NodesClient::new(channel).list_nodes(request).await }
                })
                .await?;
            nodes.extend(page.nodes);
            if page.next_page_token.is_empty() {
                return Ok(nodes);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "nodes" })
    }

    /// One node.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn get_node(&self, node: &str) -> Result<Node> {
        let request = GetNodeRequest { node: node.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { NodesClient::new(channel).get_node(request).await }
        })
        .await
    }
}
