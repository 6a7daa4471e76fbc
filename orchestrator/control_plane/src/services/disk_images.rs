//! Disk images.

use drover_cluster_state::{ClusterState, DiskImageState, ImageFormat, Name, Secret};
use drover_ports::Store;
use drover_reconcile::admission::{self, CopyDiskImage, ImportDiskImage, ImportFrom};
use drover_wire::control::v1::{
    self as wire, CopyDiskImageRequest, DeleteDiskImageRequest, GetDiskImageRequest, ImportDiskImageRequest,
    ListDiskImagesRequest, ListDiskImagesResponse, UploadRequest, UploadResponse,
    disk_images_server::DiskImages, import_disk_image_request::Source, upload_request::Part,
};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, identity};
use crate::{
    convert,
    paging::PageRequest,
    status::{gone, invalid, no_such, submit_failed},
    storage::Incoming,
    upload::{self, Upload},
};

fn requested(request: ImportDiskImageRequest) -> Result<ImportDiskImage, Status> {
    let format = match wire::ImageFormat::try_from(request.format) {
        Ok(wire::ImageFormat::Unspecified) => None,
        Ok(wire::ImageFormat::Raw) => Some(ImageFormat::Raw),
        Ok(wire::ImageFormat::Qcow2) => Some(ImageFormat::Qcow2),
        Err(_) => return Err(invalid("format", request.format, "raw, qcow2, or none")),
    };
    let from = match request.source {
        Some(Source::Url(url)) => ImportFrom::Url(Secret::new(url)),
        Some(Source::UploadBytes(size)) => ImportFrom::Upload(size),
        None => return Err(invalid("source", "there is none", "a url, or upload_bytes")),
    };
    let ImportDiskImageRequest { name, pool, sha256, .. } = request;
    Ok(ImportDiskImage { name, pool, sha256, format, from })
}

#[tonic::async_trait]
impl<S: Store> DiskImages for Api<S> {
    async fn import_disk_image(
        &self,
        request: Request<ImportDiskImageRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let mut request = request.into_inner();
        let identity = identity(std::mem::take(&mut request.request_id));
        let (request, configured) = (requested(request)?, self.pools.names());
        let admitted = self.cluster.submit(move |view| {
            let now = view.now.wall;
            let admitted = admission::import_disk_image(view.state, &configured, &request, &identity, now)?;
            Ok((admitted.operation, admitted.txn))
        });
        self.begun(admitted.await.map_err(submit_failed)?).await
    }

    async fn upload_disk_image(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let mut requests = request.into_inner();
        let header = match upload::next(&mut requests).await?.and_then(|request| request.part) {
            Some(Part::Header(header)) => header,
            _ => {
                return Err(invalid(
                    "part",
                    "the first message is not a header",
                    "one header, then the bytes",
                ));
            }
        };
        let image = Name::new(&header.image).map_err(|_| no_such("image", "disk image", &header.image))?;
        let find = image.clone();
        let present = move |state: &ClusterState| {
            state.disk_images.get(&find).map(|image| (image.state, image.received.get()))
        };
        let present = self.cluster.read(move |view| present(view.state)).await.map_err(gone)?;
        match present {
            None => return Err(no_such("image", "disk image", image.as_str())),
            Some((DiskImageState::Importing, _)) => {}
            // It was there before the bytes were.
            Some((DiskImageState::Ready, received_bytes)) => {
                return Ok(Response::new(UploadResponse { received_bytes }));
            }
            Some((DiskImageState::Deleting, _)) => {
                return Err(Status::failed_precondition(format!(
                    "image: disk image '{image}' is being deleted"
                )));
            }
        }
        let (feeder, upload) = Upload::new();
        let (answer, answered) = oneshot::channel();
        let incoming = Incoming { offset: header.offset, upload, answer };
        if self.storage.uploads.hand_over(&image, incoming).await.is_err() {
            let text = format!("image: disk image '{image}' waits for no bytes now; ask for it again");
            return Err(Status::failed_precondition(text));
        }
        let taken = async {
            match answered.await {
                Ok(answer) => answer,
                Err(_) => Err(Status::aborted(format!("image: the import of '{image}' has ended"))),
            }
        };
        let received_bytes = upload::feed_into(requests, feeder, taken).await?;
        Ok(Response::new(UploadResponse { received_bytes }))
    }

    async fn copy_disk_image(
        &self,
        request: Request<CopyDiskImageRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let CopyDiskImageRequest { request_id, image, name, pool } = request.into_inner();
        let (request, configured) = (CopyDiskImage { image, name, pool }, self.pools.names());
        let identity = identity(request_id);
        let admitted = self.cluster.submit(move |view| {
            let now = view.now.wall;
            let admitted = admission::copy_disk_image(view.state, &configured, &request, &identity, now)?;
            Ok((admitted.operation, admitted.txn))
        });
        self.begun(admitted.await.map_err(submit_failed)?).await
    }

    async fn get_disk_image(
        &self,
        request: Request<GetDiskImageRequest>,
    ) -> Result<Response<wire::DiskImage>, Status> {
        let text = request.into_inner().image;
        let get = move |state: &ClusterState| {
            let found = Name::new(&text).ok().and_then(|name| state.disk_images.get(&name));
            let image = found.ok_or_else(|| no_such("image", "disk image", &text))?;
            Ok(convert::disk_image(state, image))
        };
        self.cluster.read(move |view| get(view.state)).await.map_err(gone)?.map(Response::new)
    }

    async fn list_disk_images(
        &self,
        request: Request<ListDiskImagesRequest>,
    ) -> Result<Response<ListDiskImagesResponse>, Status> {
        let request = request.into_inner();
        let page = PageRequest::new("disk-image", request.page_size, &request.page_token)?;
        let list = move |state: &ClusterState| {
            let all = state.disk_images.values().map(|image| (image.name.to_string(), image)).collect();
            let (images, next_page_token) = page.take(all);
            let disk_images = images.into_iter().map(|image| convert::disk_image(state, image)).collect();
            ListDiskImagesResponse { disk_images, next_page_token }
        };
        self.cluster.read(move |view| list(view.state)).await.map(Response::new).map_err(gone)
    }

    async fn delete_disk_image(
        &self,
        request: Request<DeleteDiskImageRequest>,
    ) -> Result<Response<wire::Operation>, Status> {
        let DeleteDiskImageRequest { request_id, image } = request.into_inner();
        let identity = identity(request_id);
        let admitted = self.cluster.submit(move |view| {
            let admitted = admission::delete_disk_image(view.state, &image, &identity, view.now.wall)?;
            Ok((admitted.operation, admitted.txn))
        });
        self.begun(admitted.await.map_err(submit_failed)?).await
    }
}
