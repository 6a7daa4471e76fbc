//! Boot images: checked while nobody can see them, then added to the pool, then to the store.

use std::{
    fs::File,
    io::{self, Read, Seek as _, Write as _},
    path::Path,
};

use drover_cluster_state::{ClusterState, Image, Name};
use drover_dir_volume::PoolError;
use drover_ports::Store;
use drover_reconcile::admission::{self, NewImage};
use drover_units::Bytes;
use drover_wire::control::v1::{
    self as wire, DeleteImageRequest, DeleteImageResponse, ImportHeader, ImportRequest, ListImagesRequest,
    ListImagesResponse, images_server::Images,
};
use sha2::{Digest as _, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, identity, to_the_end};
use crate::{
    convert,
    kernel_image::{IMAGE_BYTES_MAX, inspect},
    paging::PageRequest,
    pools::blocking,
    status::{describe, gone, invalid, submit_failed},
    upload::{self, Upload, broken_off, feed_into},
};

/// An upload that has arrived, in a file without a name: it goes with us, however we end.
struct Received {
    file: File,
    size: Bytes,
    sha256: String,
    min_memory: Bytes,
}

/// Takes in `size` bytes and checks them.
fn receive(directory: &Path, mut upload: Upload, size: Bytes) -> Result<Received, Status> {
    let failed = |error: &io::Error| match broken_off(error) {
        Some(status) => status.clone(),
        None => Status::internal(format!("the image cannot be stored: {error}")),
    };
    let mut file = tempfile::tempfile_in(directory).map_err(|error| failed(&error))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 << 10];
    let mut received = 0_u64;
    loop {
        let count = upload.read(&mut block).map_err(|error| failed(&error))?;
        if count == 0 {
            break;
        }
        received += count as u64;
        if received > size.get() {
            break;
        }
        hash.update(&block[..count]);
        file.write_all(&block[..count]).map_err(|error| failed(&error))?;
    }
    if received != size.get() {
        let problem = if received > size.get() {
            "more bytes came".to_owned()
        } else {
            format!("{received} bytes came")
        };
        return Err(invalid(
            "size_bytes",
            format!("it is {}, and {problem}", size.get()),
            "the size of the file",
        ));
    }
    let image = inspect(&file, size).map_err(|error| {
        invalid(
            "data",
            error,
            "an x86-64 kernel (an ELF file with a PVH entry note, or a bzImage) or an initramfs",
        )
    })?;
    file.rewind().map_err(|error| failed(&error))?;
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Received { file, size, sha256, min_memory: image.min_memory })
}

/// Whether a pool's image is what was received.
fn same_bytes(path: &Path, sha256: &str) -> io::Result<bool> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>() == sha256)
}

impl<S: Store> Api<S> {
    /// Refuses early what would be refused late.
    async fn check_image(&self, header: &ImportHeader) -> Result<Name, Status> {
        if header.size_bytes == 0 || header.size_bytes > IMAGE_BYTES_MAX.get() {
            let valid = format!("1 to {} bytes, the size of the file", IMAGE_BYTES_MAX.get());
            return Err(invalid("size_bytes", format!("it is {}", header.size_bytes), &valid));
        }
        let size = Bytes::ZERO;
        let (image, pools) = (new_image(header, size, String::new(), size), self.pools.names());
        let check = self.cluster.read(move |view| {
            admission::add_image(view.state, &pools, &image, view.now.wall).map(|(pool, _)| pool)
        });
        check.await.map_err(gone)?.map_err(|error| crate::status::refused(&error))
    }

    async fn add_image(self, header: ImportHeader, upload: Upload) -> Result<wire::Image, Status> {
        let pool = self.check_image(&header).await?;
        let directory = self.pools.get(&pool).cloned();
        let directory =
            directory.ok_or_else(|| Status::internal(format!("pool '{pool}' is not configured")))?;
        let (state_dir, size, name) =
            (self.state_dir.path().to_owned(), Bytes::new(header.size_bytes), header.name.clone());
        let received = blocking(move || -> Result<Received, Status> {
            let mut received = receive(&state_dir, upload, size)?;
            match directory.add_image(&name, &mut received.file, received.size) {
                Ok(()) => Ok(received),
                // Without a record: left by a predecessor that was killed before it could write one.
                Err(PoolError::ImageExists(_)) => adopt(&directory, &name, received),
                Err(error) => Err(Status::internal(describe(&error))),
            }
        })
        .await?;
        let image = new_image(&header, received.size, received.sha256, received.min_memory);
        let pools = self.pools.names();
        let name = image.name.clone();
        let added = self.cluster.submit(move |view| {
            let (_, txn) = admission::add_image(view.state, &pools, &image, view.now.wall)?;
            Ok(((), Some(txn)))
        });
        added.await.map_err(submit_failed)?;
        let show = move |state: &ClusterState| {
            Name::new(&name).ok().and_then(|name| state.images.get(&name)).map(|image| convert::image(image))
        };
        let shown = self.cluster.read(move |view| show(view.state)).await.map_err(gone)?;
        shown.ok_or_else(|| Status::aborted("the image was deleted meanwhile"))
    }

    async fn remove_image(self, request: DeleteImageRequest) -> Result<(), Status> {
        let DeleteImageRequest { request_id, image } = request;
        let identity = identity(request_id);
        let removed = self.cluster.submit(move |view| {
            match admission::delete_image(view.state, &image, &identity, view.now.wall)? {
                Some((image, txn)) => Ok((Some(image), Some(txn))),
                None => Ok((None, None)),
            }
        });
        // A repeated request: the first one has been carried out.
        let Some(Image { name, pool, .. }) = removed.await.map_err(submit_failed)? else { return Ok(()) };
        let Some(pool) = self.pools.get(&pool).cloned() else { return Ok(()) };
        blocking(move || pool.delete_image(name.as_str()))
            .await
            .map_err(|error| Status::internal(describe(&error)))
    }
}

/// Takes over a file that is in the pool already if it is the same one.
fn adopt(pool: &drover_dir_volume::DirPool, name: &str, received: Received) -> Result<Received, Status> {
    let internal = |error: &dyn std::error::Error| Status::internal(describe(error));
    let path = pool.image_path(name).map_err(|error| internal(&error))?;
    if same_bytes(&path, &received.sha256).map_err(|error| internal(&error))? {
        return Ok(received);
    }
    Err(Status::already_exists(format!(
        "name: the pool has another file named '{name}' that this cluster does not know; choose another name, or remove {}",
        path.display()
    )))
}

fn new_image(header: &ImportHeader, size: Bytes, sha256: String, min_memory: Bytes) -> NewImage {
    NewImage { name: header.name.clone(), pool: header.pool.clone(), size, sha256, min_memory }
}

#[tonic::async_trait]
impl<S: Store> Images for Api<S> {
    async fn import_image(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<wire::Image>, Status> {
        let mut requests = request.into_inner();
        let header = upload::header(&mut requests).await?;
        let (feeder, upload) = Upload::new();
        let added = to_the_end(self.clone().add_image(header, upload));
        feed_into(requests, feeder, added).await.map(Response::new)
    }

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let request = request.into_inner();
        let page = PageRequest::new("image", request.page_size, &request.page_token)?;
        let list = move |state: &ClusterState| {
            let all = state.images.values().map(|image| (image.name.to_string(), image)).collect();
            let (images, next_page_token) = page.take(all);
            let images = images.into_iter().map(|image| convert::image(image)).collect();
            ListImagesResponse { images, next_page_token }
        };
        self.cluster.read(move |view| list(view.state)).await.map(Response::new).map_err(gone)
    }

    async fn delete_image(
        &self,
        request: Request<DeleteImageRequest>,
    ) -> Result<Response<DeleteImageResponse>, Status> {
        to_the_end(self.clone().remove_image(request.into_inner())).await?;
        Ok(Response::new(DeleteImageResponse {}))
    }
}
