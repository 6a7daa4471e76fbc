//! Commands on pools, volumes and snapshots.

use drover_client::{
    Error,
    api::{
        CloneVolumeRequest, CreatePoolRequest, CreateVolumeRequest, Operation, PoolKind, SnapshotName,
        clone_volume_request::Source,
    },
};
use drover_units::Bytes;

use crate::{
    Session, arguments,
    arguments::{CreateVolume, PoolCommand, SnapshotCommand, VmSnapshotCommand, VolumeCommand},
    output::{
        OperationRow, PoolRow, SnapshotRow, VmSnapshotRow, VolumeRow, print_details, print_note, print_row,
        print_rows,
    },
};

use super::{import, rows, settle, vm};

pub(super) async fn pool(session: &Session, command: PoolCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        PoolCommand::Create { name, kind, cluster, ceph_pool, namespace, stall } => {
            let kind = match kind {
                arguments::PoolKind::Rbd => PoolKind::Rbd,
                arguments::PoolKind::Dir => PoolKind::Dir,
            };
            let request = CreatePoolRequest {
                name,
                kind: kind.into(),
                cluster,
                ceph_pool,
                namespace,
                stall: vm::stall(stall),
                ..CreatePoolRequest::default()
            };
            match settle(session, client.create_pool(request).await?).await? {
                Some(ended) => {
                    print_row(session.format, &PoolRow::from(client.get_pool(&ended.subject_name).await?))
                }
                None => Ok(()),
            }
        }
        PoolCommand::List => print_rows(session.format, &rows::<_, PoolRow>(client.list_pools().await?)),
        PoolCommand::Show { pool } => {
            print_details(session.format, &PoolRow::from(client.get_pool(&pool).await?))
        }
        PoolCommand::Delete { pool } => match settle(session, client.delete_pool(&pool).await?).await? {
            Some(ended) => print_note(session.format, &format!("pool {} is deleted", ended.subject_name)),
            None => Ok(()),
        },
    }
}

pub(super) async fn volume(session: &Session, command: VolumeCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        VolumeCommand::Create(arguments) => create(session, arguments).await,
        VolumeCommand::Import { import, size } => import::volume(session, import, size).await,
        VolumeCommand::List => {
            print_rows(session.format, &rows::<_, VolumeRow>(client.list_volumes().await?))
        }
        VolumeCommand::Show { volume } => {
            print_details(session.format, &VolumeRow::from(client.get_volume(&volume).await?))
        }
        VolumeCommand::Resize { volume, size } => {
            show_volume(session, client.resize_volume(&volume, size).await?).await
        }
        VolumeCommand::Flatten { volume } => {
            show_volume(session, client.flatten_volume(&volume).await?).await
        }
        VolumeCommand::Delete { volume } => {
            client.delete_volume(&volume).await?;
            print_note(session.format, &format!("volume {volume} is deleted"))
        }
    }
}

async fn create(session: &Session, arguments: CreateVolume) -> anyhow::Result<()> {
    let CreateVolume { name, size, image, snapshot, pool } = arguments;
    let size_bytes = size.map_or(0, Bytes::get);
    let source = match (image, snapshot) {
        (Some(image), _) => Some(Source::Image(image)),
        (None, snapshot) => snapshot.map(|snapshot| Source::Snapshot(wire(snapshot))),
    };
    if source.is_none() {
        let request = CreateVolumeRequest { name, pool, size_bytes, ..CreateVolumeRequest::default() };
        let volume = session.client.create_volume(request).await?;
        return print_row(session.format, &VolumeRow::from(volume));
    }
    let request = CloneVolumeRequest { name, pool, size_bytes, source, ..CloneVolumeRequest::default() };
    show_volume(session, session.client.clone_volume(request).await?).await
}

/// Shows the volume as it is once the operation has ended.
async fn show_volume(session: &Session, operation: Operation) -> anyhow::Result<()> {
    match settle(session, operation).await? {
        Some(ended) => {
            let volume = session.client.get_volume(&ended.subject_id).await?;
            print_row(session.format, &VolumeRow::from(volume))
        }
        None => Ok(()),
    }
}

pub(super) async fn snapshot(session: &Session, command: SnapshotCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        SnapshotCommand::Create { snapshot } => {
            let operation = client.create_snapshot(wire(snapshot.clone())).await?;
            show_snapshot(session, operation, &snapshot).await
        }
        SnapshotCommand::List { volume } => {
            let snapshots = client.list_snapshots(volume.as_deref()).await?;
            print_rows(session.format, &rows::<_, SnapshotRow>(snapshots))
        }
        SnapshotCommand::Protect { snapshot } => {
            let operation = client.protect_snapshot(wire(snapshot.clone()), true).await?;
            show_snapshot(session, operation, &snapshot).await
        }
        SnapshotCommand::Unprotect { snapshot } => {
            let operation = client.protect_snapshot(wire(snapshot.clone()), false).await?;
            show_snapshot(session, operation, &snapshot).await
        }
        SnapshotCommand::Rollback { snapshot } => {
            show_volume(session, client.rollback_snapshot(wire(snapshot)).await?).await
        }
        SnapshotCommand::Delete { snapshot } => {
            let text = format!("snapshot {}@{} is deleted", snapshot.of, snapshot.snapshot);
            match settle(session, client.delete_snapshot(wire(snapshot)).await?).await? {
                Some(_) => print_note(session.format, &text),
                None => Ok(()),
            }
        }
    }
}

/// Shows the snapshot as it is once the operation has ended.
async fn show_snapshot(
    session: &Session,
    operation: Operation,
    snapshot: &arguments::Snapshot,
) -> anyhow::Result<()> {
    let Some(ended) = settle(session, operation).await? else { return Ok(()) };
    let found = session.client.list_snapshots(Some(&ended.subject_id)).await?;
    match found.into_iter().map(SnapshotRow::from).find(|row| row.is(&snapshot.snapshot)) {
        Some(row) => print_row(session.format, &row),
        // Deleted by somebody meanwhile.
        None => Ok(()),
    }
}

pub(super) async fn vm_snapshot(session: &Session, command: VmSnapshotCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        VmSnapshotCommand::Create { snapshot } => {
            let operation = client.create_vm_snapshot(&snapshot.of, &snapshot.snapshot).await?;
            match settle(session, operation).await? {
                Some(ended) => print_row(
                    session.format,
                    &find_vm_snapshot(session, &ended.subject_id, &snapshot.snapshot).await?,
                ),
                None => Ok(()),
            }
        }
        VmSnapshotCommand::List { vm } => {
            let snapshots = client.list_vm_snapshots(vm.as_deref()).await?;
            print_rows(session.format, &rows::<_, VmSnapshotRow>(snapshots))
        }
        VmSnapshotCommand::Show { snapshot } => {
            print_details(session.format, &find_vm_snapshot(session, &snapshot.of, &snapshot.snapshot).await?)
        }
        VmSnapshotCommand::Rollback { snapshot } => {
            let operation = client.rollback_vm_snapshot(&snapshot.of, &snapshot.snapshot).await?;
            match settle(session, operation).await? {
                Some(ended) => print_details(session.format, &OperationRow::from(ended)),
                None => Ok(()),
            }
        }
        VmSnapshotCommand::Delete { snapshot } => {
            let text = format!("snapshot {}@{} is deleted", snapshot.of, snapshot.snapshot);
            let operation = client.delete_vm_snapshot(&snapshot.of, &snapshot.snapshot).await?;
            match settle(session, operation).await? {
                Some(_) => print_note(session.format, &text),
                None => Ok(()),
            }
        }
    }
}

async fn find_vm_snapshot(session: &Session, vm: &str, name: &str) -> anyhow::Result<VmSnapshotRow> {
    let found = session.client.list_vm_snapshots(Some(vm)).await?;
    let row = found.into_iter().map(VmSnapshotRow::from).find(|row| row.is(name));
    row.ok_or_else(|| Error::NotFound { message: format!("VM '{vm}' has no snapshot '{name}'") }.into())
}

fn wire(snapshot: arguments::Snapshot) -> SnapshotName {
    SnapshotName { volume: snapshot.of, snapshot: snapshot.snapshot }
}
