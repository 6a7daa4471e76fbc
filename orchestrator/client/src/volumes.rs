//! Volumes.

use tokio::io::AsyncRead;

use crate::{
    Client, Error, Import, PAGE_SIZE, PAGES_MAX, Result, Waited,
    api::{
        CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, ListVolumesRequest, Volume,
        volumes_client::VolumesClient,
    },
    connect::{Repeat, request_id},
    has_ended, import,
};

impl Client {
    /// Creates an empty volume; `request_id` is set here. An empty pool name is the only pool; a cluster with several wants one named.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::Refused`] for a name that is taken, and see [`Error`].
    pub async fn create_volume(&self, volume: CreateVolumeRequest) -> Result<Volume> {
        let request = CreateVolumeRequest { request_id: request_id(), ..volume };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).create_volume(request).await }
        })
        .await
    }

    /// Creates a volume from bytes. `progress` is told how many have been read so far. Not repeated by itself: the
    /// source has been consumed.
    ///
    /// # Errors
    /// [`Error::ReadSource`], and as [`Client::create_volume`].
    pub async fn import_volume(
        &self,
        import: Import,
        source: impl AsyncRead + Unpin,
        progress: impl FnMut(drover_units::Bytes),
    ) -> Result<Volume> {
        let (feed, requests) = import::stream(import, source, progress);
        let call = async {
            let answer = VolumesClient::new(self.channel()).import_volume(requests).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
        };
        import::join(feed, call).await
    }

    /// Every volume.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_volumes(&self) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListVolumesRequest { page_size: PAGE_SIZE, page_token };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { VolumesClient::new(channel).list_volumes(request).await }
                })
                .await?;
            volumes.extend(page.volumes);
            if page.next_page_token.is_empty() {
                return Ok(volumes);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "volumes" })
    }

    /// One volume.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn get_volume(&self, volume: &str) -> Result<Volume> {
        let request = GetVolumeRequest { volume: volume.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).get_volume(request).await }
        })
        .await
    }

    /// Deletes a volume and its data, and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] for one that is attached or has snapshots, and see [`Error`].
    pub async fn delete_volume(&self, volume: &str) -> Result<()> {
        let request = DeleteVolumeRequest { volume: volume.to_owned(), request_id: request_id() };
        let answer = self
            .call(Repeat::Safe, |channel| {
                let request = request.clone();
                async move { VolumesClient::new(channel).delete_volume(request).await }
            })
            .await?;
        match answer.operation {
            Some(operation) if !has_ended(&operation) => {
                self.wait_operation(&operation.id, Waited::default(), |_| {}).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}
