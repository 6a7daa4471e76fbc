//! Disk images, and sending their files.

use std::time::Duration;

use drover_units::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncSeek, AsyncSeekExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{
        CopyDiskImageRequest, DeleteDiskImageRequest, DiskImage, DiskImageState, GetDiskImageRequest,
        ImportDiskImageRequest, ListDiskImagesRequest, Operation, UploadHeader, UploadRequest,
        disk_images_client::DiskImagesClient, upload_request::Part,
    },
    connect::{Repeat, request_id},
};

/// Bytes of one message: as for volumes.
const CHUNK_BYTES: usize = 1 << 20;
/// Messages read ahead of the network.
const CHUNKS_AHEAD: usize = 2;
/// Attempts in a row that bring nothing until an upload is given up. With their pauses longer than a control plane takes
/// to restart.
const FRUITLESS_MAX: u32 = 30;
/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(1);

impl Client {
    /// Has a disk image imported; `request_id` is set here. An upload needs [`Client::upload_disk_image`] besides.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::Refused`] for a name that is taken, and see [`Error`].
    pub async fn import_disk_image(&self, import: ImportDiskImageRequest) -> Result<Operation> {
        let request = ImportDiskImageRequest { request_id: request_id(), ..import };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { DiskImagesClient::new(channel).import_disk_image(request).await }
        })
        .await
    }

    /// Copies a disk image into a pool.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn copy_disk_image(&self, copy: CopyDiskImageRequest) -> Result<Operation> {
        let request = CopyDiskImageRequest { request_id: request_id(), ..copy };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { DiskImagesClient::new(channel).copy_disk_image(request).await }
        })
        .await
    }

    /// Deletes a disk image that nothing needs.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn delete_disk_image(&self, image: &str) -> Result<Operation> {
        let request = DeleteDiskImageRequest { request_id: request_id(), image: image.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { DiskImagesClient::new(channel).delete_disk_image(request).await }
        })
        .await
    }

    /// One disk image.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn get_disk_image(&self, image: &str) -> Result<DiskImage> {
        let request = GetDiskImageRequest { image: image.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { DiskImagesClient::new(channel).get_disk_image(request).await }
        })
        .await
    }

    /// Every disk image.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_disk_images(&self) -> Result<Vec<DiskImage>> {
        let mut found = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListDiskImagesRequest { page_size: PAGE_SIZE, page_token };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { DiskImagesClient::new(channel).list_disk_images(request).await }
                })
                .await?;
            found.extend(page.disk_images);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "disk images" })
    }

    /// Sends the file of an image whose import waits for it, from where an earlier attempt broke off, over restarts of
    /// the control plane. `progress` is told how much of the file is there. Ready when the whole file has been sent, or the
    /// import has ended for another reason: its operation says which.
    ///
    /// # Errors
    /// [`Error::ReadSource`]; what the server said last, after many attempts that brought nothing.
    pub async fn upload_disk_image(
        &self,
        image: &str,
        mut source: impl AsyncRead + AsyncSeek + Unpin,
        mut progress: impl FnMut(Bytes),
    ) -> Result<()> {
        let (mut before, mut fruitless) = (0, 0);
        loop {
            let present = match self.get_disk_image(image).await {
                // Its import has failed, or was taken back.
                Err(Error::NotFound { .. }) => return Ok(()),
                present => present?,
            };
            let there = present.received_bytes;
            if present.state() != DiskImageState::Importing || there == present.file_size_bytes {
                return Ok(());
            }
            progress(Bytes::new(there));
            fruitless = if there > before { 0 } else { fruitless + 1 };
            before = there;
            let sent = self.send(image, &mut source, there, &mut progress).await;
            match sent {
                Ok(()) => return Ok(()),
                Err(error @ Error::ReadSource(_)) => return Err(error),
                Err(error) if fruitless >= FRUITLESS_MAX => return Err(error),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Sends a file from `offset` to its end, once.
    async fn send(
        &self,
        image: &str,
        source: &mut (impl AsyncRead + AsyncSeek + Unpin),
        offset: u64,
        progress: &mut impl FnMut(Bytes),
    ) -> Result<()> {
        let unreadable = Error::ReadSource;
        source.seek(std::io::SeekFrom::Start(offset)).await.map_err(unreadable)?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let header = UploadHeader { image: image.to_owned(), offset };
        let feed = async move {
            let mut part = Part::Header(header);
            let mut sent = offset;
            // A closed channel means that the server has answered early; its answer says why.
            while sender.send(UploadRequest { part: Some(part) }).await.is_ok() {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let count =
                    source.take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await.map_err(unreadable)?;
                if count == 0 {
                    break;
                }
                progress(Bytes::new(sent));
                sent += count as u64;
                part = Part::Data(chunk);
            }
            Ok(())
        };
        let call = async {
            let answer =
                DiskImagesClient::new(self.channel()).upload_disk_image(ReceiverStream::new(receiver)).await;
            answer.map(drop).map_err(|status| self.error(&status))
        };
        crate::import::join(feed, call).await
    }
}
