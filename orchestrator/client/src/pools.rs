//! Storage pools.

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{
        CreatePoolRequest, DeletePoolRequest, GetPoolRequest, ListPoolsRequest, Operation, Pool,
        pools_client::PoolsClient,
    },
    connect::{Repeat, request_id},
};

impl Client {
    /// Makes a pool; `request_id` is set here. The operation ends when volumes can be made in it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::Refused`] for a cluster that is not known, and see [`Error`].
    pub async fn create_pool(&self, pool: CreatePoolRequest) -> Result<Operation> {
        let request = CreatePoolRequest { request_id: request_id(), ..pool };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { PoolsClient::new(channel).create_pool(request).await }
        })
        .await
    }

    /// Deletes a pool in which nothing is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] naming what is in it, and see [`Error`].
    pub async fn delete_pool(&self, pool: &str) -> Result<Operation> {
        let request = DeletePoolRequest { request_id: request_id(), pool: pool.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { PoolsClient::new(channel).delete_pool(request).await }
        })
        .await
    }

    /// One pool, with how full it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn get_pool(&self, pool: &str) -> Result<Pool> {
        let request = GetPoolRequest { pool: pool.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { PoolsClient::new(channel).get_pool(request).await }
        })
        .await
    }

    /// Every pool, with how full it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_pools(&self) -> Result<Vec<Pool>> {
        let mut found = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListPoolsRequest { page_size: PAGE_SIZE, page_token };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { PoolsClient::new(channel).list_pools(request).await }
                })
                .await?;
            found.extend(page.pools);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "pools" })
    }
}
