//! Its pools, and the disk images in them.

use super::*;

fn pool(name: &str) -> api::Pool {
    api::Pool {
        name: name.into(),
        kind: api::PoolKind::Rbd.into(),
        state: api::PoolState::Ready.into(),
        cluster: "ceph".into(),
        ceph_pool: "vms".into(),
        user: "drover.fast.0f".into(),
        capabilities: Some(api::PoolCapabilities {
            instant_clone: true,
            clones_need_source: true,
            online_snapshot: true,
        }),
        capacity_bytes: Some(1 << 40),
        available_bytes: Some(1 << 39),
        provisioned_bytes: 1 << 30,
        used_bytes: Some(4 << 20),
        volume_count: 2,
        disk_image_count: 1,
        created_at: at!(5),
        ..api::Pool::default()
    }
}

#[tonic::async_trait]
impl api::pools_server::Pools for Fake {
    async fn create_pool(&self, request: Request<api::CreatePoolRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().name)))
    }
    async fn delete_pool(&self, _: Request<api::DeletePoolRequest>) -> Answer<Operation> {
        Err(Status::failed_precondition("pool: pool 'fast' is used by volume 'data'; delete those first"))
    }
    async fn get_pool(&self, request: Request<api::GetPoolRequest>) -> Answer<api::Pool> {
        Ok(Response::new(pool(&request.into_inner().pool)))
    }
    async fn list_pools(&self, _: Request<api::ListPoolsRequest>) -> Answer<api::ListPoolsResponse> {
        let main = api::Pool {
            kind: api::PoolKind::Dir.into(),
            configured: true,
            problem: "no answer within 3 s".into(),
            used_bytes: None,
            available_bytes: None,
            ..pool("main")
        };
        Ok(Response::new(api::ListPoolsResponse {
            pools: vec![pool("fast"), main],
            next_page_token: String::new(),
        }))
    }
}

fn disk_image(name: &str) -> api::DiskImage {
    api::DiskImage {
        name: name.into(),
        pool: "fast".into(),
        sha256: "fedcba9876543210".repeat(4),
        file_size_bytes: 2 << 20,
        size_bytes: 1 << 30,
        format: api::ImageFormat::Qcow2.into(),
        source: "upload".into(),
        received_bytes: 2 << 20,
        state: api::DiskImageState::Ready.into(),
        created_at: at!(6),
        ..api::DiskImage::default()
    }
}

#[tonic::async_trait]
impl api::disk_images_server::DiskImages for Fake {
    async fn import_disk_image(&self, request: Request<api::ImportDiskImageRequest>) -> Answer<Operation> {
        let request = request.into_inner();
        if request.sha256.len() != 64 {
            return Err(Status::invalid_argument("sha256: it is not a SHA-256"));
        }
        Ok(Response::new(operation(&request.name)))
    }
    async fn upload_disk_image(
        &self,
        request: Request<Streaming<api::UploadRequest>>,
    ) -> Answer<api::UploadResponse> {
        let mut parts = request.into_inner();
        let mut received_bytes = 0;
        while let Some(part) = parts.message().await? {
            if let Some(api::upload_request::Part::Data(data)) = part.part {
                received_bytes += data.len() as u64;
            }
        }
        Ok(Response::new(api::UploadResponse { received_bytes }))
    }
    async fn copy_disk_image(&self, request: Request<api::CopyDiskImageRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().name)))
    }
    async fn get_disk_image(&self, request: Request<api::GetDiskImageRequest>) -> Answer<api::DiskImage> {
        Ok(Response::new(disk_image(&request.into_inner().image)))
    }
    async fn list_disk_images(
        &self,
        _: Request<api::ListDiskImagesRequest>,
    ) -> Answer<api::ListDiskImagesResponse> {
        let importing = api::DiskImage {
            state: api::DiskImageState::Importing.into(),
            source: "https://example.org/d.qcow2".into(),
            received_bytes: 1 << 20,
            ..disk_image("alpine")
        };
        Ok(Response::new(api::ListDiskImagesResponse {
            disk_images: vec![disk_image("debian"), importing],
            next_page_token: String::new(),
        }))
    }
    async fn delete_disk_image(&self, request: Request<api::DeleteDiskImageRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().image)))
    }
}
