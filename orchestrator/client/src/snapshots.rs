//! Clones, growth and snapshots of volumes, and of all volumes of a VM.

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{
        CloneVolumeRequest, CreateSnapshotRequest, CreateVmSnapshotRequest, DeleteSnapshotRequest,
        DeleteVmSnapshotRequest, FlattenVolumeRequest, ListSnapshotsRequest, ListVmSnapshotsRequest,
        Operation, ProtectSnapshotRequest, ResizeVolumeRequest, RollbackSnapshotRequest,
        RollbackVmSnapshotRequest, Snapshot, SnapshotName, VmSnapshot, vms_client::VmsClient,
        volumes_client::VolumesClient,
    },
    connect::{Repeat, request_id},
};

impl Client {
    /// Makes a volume from a disk image or a snapshot; `request_id` is set here.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn clone_volume(&self, clone: CloneVolumeRequest) -> Result<Operation> {
        let request = CloneVolumeRequest { request_id: request_id(), ..clone };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).clone_volume(request).await }
        })
        .await
    }

    /// Makes a volume larger, in use or not.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn resize_volume(&self, volume: &str, size: drover_units::Bytes) -> Result<Operation> {
        let request = ResizeVolumeRequest {
            request_id: request_id(),
            volume: volume.to_owned(),
            size_bytes: size.get(),
        };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).resize_volume(request).await }
        })
        .await
    }

    /// Makes a clone independent of what it was made of.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn flatten_volume(&self, volume: &str) -> Result<Operation> {
        let request = FlattenVolumeRequest { request_id: request_id(), volume: volume.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).flatten_volume(request).await }
        })
        .await
    }

    /// Keeps a volume's present content.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn create_snapshot(&self, name: SnapshotName) -> Result<Operation> {
        let request =
            CreateSnapshotRequest { request_id: request_id(), volume: name.volume, name: name.snapshot };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).create_snapshot(request).await }
        })
        .await
    }

    /// Keeps a snapshot from being deleted, or stops doing so.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn protect_snapshot(&self, name: SnapshotName, protect: bool) -> Result<Operation> {
        let request = ProtectSnapshotRequest { request_id: request_id(), snapshot: Some(name), protect };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).protect_snapshot(request).await }
        })
        .await
    }

    /// Gives a volume the content it had. Its VM must be stopped.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn rollback_snapshot(&self, name: SnapshotName) -> Result<Operation> {
        let request = RollbackSnapshotRequest { request_id: request_id(), snapshot: Some(name) };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).rollback_snapshot(request).await }
        })
        .await
    }

    /// Deletes a snapshot that nothing needs.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn delete_snapshot(&self, name: SnapshotName) -> Result<Operation> {
        let request = DeleteSnapshotRequest { request_id: request_id(), snapshot: Some(name) };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VolumesClient::new(channel).delete_snapshot(request).await }
        })
        .await
    }

    /// The snapshots of a volume, or of every one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_snapshots(&self, volume: Option<&str>) -> Result<Vec<Snapshot>> {
        let mut found = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListSnapshotsRequest {
                page_size: PAGE_SIZE,
                page_token,
                volume: volume.unwrap_or_default().to_owned(),
            };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { VolumesClient::new(channel).list_snapshots(request).await }
                })
                .await?;
            found.extend(page.snapshots);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "snapshots" })
    }

    /// Keeps the content of every volume that a VM writes, all of one moment.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn create_vm_snapshot(&self, vm: &str, name: &str) -> Result<Operation> {
        let request =
            CreateVmSnapshotRequest { request_id: request_id(), vm: vm.to_owned(), name: name.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).create_vm_snapshot(request).await }
        })
        .await
    }

    /// Gives every volume of a VM the content it had. The VM must be stopped.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn rollback_vm_snapshot(&self, vm: &str, snapshot: &str) -> Result<Operation> {
        let request = RollbackVmSnapshotRequest {
            request_id: request_id(),
            vm: vm.to_owned(),
            snapshot: snapshot.to_owned(),
        };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).rollback_vm_snapshot(request).await }
        })
        .await
    }

    /// Deletes a VM's snapshot that nothing needs. The VM may be gone: then it is named by its id.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] saying what is in the way, and see [`Error`].
    pub async fn delete_vm_snapshot(&self, vm: &str, snapshot: &str) -> Result<Operation> {
        let request = DeleteVmSnapshotRequest {
            request_id: request_id(),
            vm: vm.to_owned(),
            snapshot: snapshot.to_owned(),
        };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).delete_vm_snapshot(request).await }
        })
        .await
    }

    /// The snapshots of a VM, or of every one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_vm_snapshots(&self, vm: Option<&str>) -> Result<Vec<VmSnapshot>> {
        let mut found = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListVmSnapshotsRequest {
                page_size: PAGE_SIZE,
                page_token,
                vm: vm.unwrap_or_default().to_owned(),
            };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { VmsClient::new(channel).list_vm_snapshots(request).await }
                })
                .await?;
            found.extend(page.snapshots);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "VM snapshots" })
    }
}
