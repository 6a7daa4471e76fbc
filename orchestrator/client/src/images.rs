//! Boot images.

use tokio::io::AsyncRead;

use crate::{
    Client, Error, Import, PAGE_SIZE, PAGES_MAX, Result,
    api::{DeleteImageRequest, Image, ListImagesRequest, images_client::ImagesClient},
    connect::{Repeat, request_id},
    import,
};

impl Client {
    /// Creates a boot image from the bytes of an ELF file with a PVH entry. `progress` is told how many bytes have
    /// been read so far.
    ///
    /// # Errors
    /// [`Error::ReadSource`], [`Error::InvalidArgument`] for a file that does not boot, and see [`Error`].
    pub async fn import_image(
        &self,
        import: Import,
        source: impl AsyncRead + Unpin,
        progress: impl FnMut(drover_units::Bytes),
    ) -> Result<Image> {
        let (feed, requests) = import::stream(import, source, progress);
        let call = async {
            let answer = ImagesClient::new(self.channel()).import_image(requests).await;
            answer.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
        };
        import::join(feed, call).await
    }

    /// Every boot image.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListImagesRequest { page_size: PAGE_SIZE, page_token };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { ImagesClient::new(channel).list_images(request).await }
                })
                .await?;
            images.extend(page.images);
            if page.next_page_token.is_empty() {
                return Ok(images);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "images" })
    }

    /// Deletes a boot image.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn delete_image(&self, image: &str) -> Result<()> {
        let request = DeleteImageRequest { image: image.to_owned(), request_id: request_id() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { ImagesClient::new(channel).delete_image(request).await }
        })
        .await
        .map(|_empty| ())
    }
}
