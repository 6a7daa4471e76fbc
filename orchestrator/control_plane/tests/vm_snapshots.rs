//! Snapshots of whole VMs over loopback, with agents that pretend to run VMs. On Ceph and with real VMs: `tests/e2e`.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "shared with other tests")]
mod support;

use drover_wire::control::v1 as api;
use support::{Cluster, FakeAgent, kernel, refused};
use tonic::{Code, Response, Status};

struct World {
    cluster: Cluster,
    _agent: (FakeAgent, support::AgentTasks),
}

impl World {
    /// A VM "web" with two volumes, which is stopped.
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let agent = FakeAgent::start(&cluster, 1).await;
        cluster.import_image("probe", kernel()).await.unwrap();
        for name in ["a", "b"] {
            cluster.create_volume(name).await;
        }
        let begun = cluster.create_vm("web", &["a", "b"]).await.unwrap();
        cluster.done(begun).await;
        Self { cluster, _agent: agent }
    }

    async fn create(&self, name: &str) -> Result<api::Operation, Status> {
        let request = api::CreateVmSnapshotRequest {
            request_id: String::new(),
            vm: "web".to_owned(),
            name: name.to_owned(),
        };
        self.cluster.vms().await.create_vm_snapshot(request).await.map(Response::into_inner)
    }

    async fn roll_back(&self, snapshot: &str) -> Result<api::Operation, Status> {
        let request = api::RollbackVmSnapshotRequest {
            request_id: String::new(),
            vm: "web".to_owned(),
            snapshot: snapshot.to_owned(),
        };
        self.cluster.vms().await.rollback_vm_snapshot(request).await.map(Response::into_inner)
    }

    async fn delete(&self, vm: &str, snapshot: &str) -> Result<api::Operation, Status> {
        let request = api::DeleteVmSnapshotRequest {
            request_id: String::new(),
            vm: vm.to_owned(),
            snapshot: snapshot.to_owned(),
        };
        self.cluster.vms().await.delete_vm_snapshot(request).await.map(Response::into_inner)
    }

    async fn list(&self, vm: &str) -> Vec<api::VmSnapshot> {
        let request = api::ListVmSnapshotsRequest { vm: vm.to_owned(), ..Default::default() };
        self.cluster.vms().await.list_vm_snapshots(request).await.unwrap().into_inner().snapshots
    }

    async fn delete_part(&self, volume: &str, snapshot: &str) {
        let name = api::SnapshotName { volume: volume.to_owned(), snapshot: snapshot.to_owned() };
        let request = api::DeleteSnapshotRequest { request_id: String::new(), snapshot: Some(name) };
        let begun = self.cluster.volumes().await.delete_snapshot(request).await.unwrap().into_inner();
        self.cluster.done(begun).await;
    }

    async fn stop(&self) {
        let request = api::StopVmRequest { vm: "web".to_owned(), ..api::StopVmRequest::default() };
        let begun = self.cluster.vms().await.stop_vm(request).await.unwrap().into_inner();
        self.cluster.done(begun).await;
    }

    async fn volume(&self, name: &str) -> api::Volume {
        let request = api::GetVolumeRequest { volume: name.to_owned() };
        self.cluster.volumes().await.get_volume(request).await.unwrap().into_inner()
    }

    async fn path(&self, name: &str) -> std::path::PathBuf {
        let id = self.volume(name).await.id;
        self.cluster.pool().join("volumes").join(format!("{id}.raw"))
    }
}

#[tokio::test]
async fn the_volumes_of_a_stopped_vm_are_kept_and_brought_back_together() {
    let world = World::start().await;
    let vm_id = world.cluster.vm("web").await.unwrap().id;
    world.stop().await;
    for name in ["a", "b"] {
        std::fs::write(world.path(name).await, [name.as_bytes(), &[0; 1 << 20][1..]].concat()).unwrap();
    }
    let kept = world.cluster.done(world.create("before").await.unwrap()).await;
    assert_eq!(
        (kept.kind.as_str(), kept.subject_name.as_str(), kept.hold),
        ("vm.snapshot.create", "web", None)
    );
    refused(world.create("before").await, Code::AlreadyExists, "name: the name 'before' is taken");
    let listed = world.list("web").await;
    assert_eq!(listed, world.list(&vm_id).await);
    let [snapshot] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(
        (snapshot.name.as_str(), snapshot.vm_name.as_str(), snapshot.part_count),
        ("before", "web", 2)
    );
    assert_eq!((snapshot.state(), snapshot.hold), (api::SnapshotState::Ready, None));
    let parts: Vec<_> = snapshot.parts.iter().map(|part| (part.name.as_str(), part.id.as_str())).collect();
    assert_eq!(parts, [("before", snapshot.id.as_str()); 2]);
    assert!(snapshot.parts.iter().all(|part| part.part_of_vm_id == vm_id), "{snapshot:?}");

    for name in ["a", "b"] {
        std::fs::write(world.path(name).await, [7; 1 << 20]).unwrap();
    }
    let resize =
        api::ResizeVolumeRequest { volume: "b".to_owned(), size_bytes: 2 << 20, ..Default::default() };
    let begun = world.cluster.volumes().await.resize_volume(resize).await.unwrap().into_inner();
    world.cluster.done(begun).await;
    world.cluster.done(world.roll_back("before").await.unwrap()).await;
    for name in ["a", "b"] {
        let bytes = std::fs::read(world.path(name).await).unwrap();
        assert_eq!((bytes.len(), &bytes[..2]), (1 << 20, &[name.as_bytes()[0], 0][..]));
        assert_eq!(world.volume(name).await.size_bytes, 1 << 20);
    }
    refused(world.roll_back("never").await, Code::NotFound, "snapshot: there is no VM snapshot 'never'");

    // A part may go by itself; then there is nothing to go back to, and the rest can still be deleted.
    world.delete_part("a", "before").await;
    refused(world.roll_back("before").await, Code::FailedPrecondition, "has 1 of its 2 parts");
    assert_eq!(world.list("").await[0].parts.len(), 1);
    let delete = api::DeleteVmRequest { request_id: String::new(), vm: "web".to_owned() };
    let begun = world.cluster.vms().await.delete_vm(delete).await.unwrap().into_inner();
    world.cluster.done(begun).await;
    let [left] = &world.list("").await[..] else { panic!("it outlives its VM") };
    assert_eq!((left.vm_name.as_str(), left.vm_id.as_str()), ("", vm_id.as_str()));
    refused(world.delete("web", "before").await, Code::NotFound, "vm: there is no VM 'web'");
    world.cluster.done(world.delete(&vm_id, "before").await.unwrap()).await;
    assert_eq!(world.list("").await, []);
    assert_eq!(world.volume("b").await.snapshot_count, 0);
}

#[tokio::test]
async fn a_vm_that_runs_on_directories_is_refused_and_nothing_is_left() {
    let world = World::start().await;
    if world.shares_blocks().await {
        // Such a file system keeps a file's content at once.
        world.cluster.done(world.create("before").await.unwrap()).await;
        return;
    }
    refused(
        world.create("before").await,
        Code::FailedPrecondition,
        "vm: volume 'a' is in pool 'default', a directory: its content cannot be kept while VM 'web' runs; valid: a \
         VM that is stopped, or one whose volumes are all in Ceph",
    );
    assert_eq!(world.list("").await, []);
    refused(world.roll_back("before").await, Code::NotFound, "snapshot: there is no VM snapshot 'before'");
    world.stop().await;
    world.cluster.done(world.create("before").await.unwrap()).await;
    let start = api::StartVmRequest { request_id: String::new(), vm: "web".to_owned() };
    let begun = world.cluster.vms().await.start_vm(start).await.unwrap().into_inner();
    world.cluster.done(begun).await;
    refused(world.roll_back("before").await, Code::FailedPrecondition, "VM 'web' runs");
    world.cluster.done(world.delete("web", "before").await.unwrap()).await;
}

impl World {
    async fn shares_blocks(&self) -> bool {
        let request = api::GetPoolRequest { pool: "default".to_owned() };
        let mut pools = api::pools_client::PoolsClient::new(self.cluster.channel().await);
        let pool = pools.get_pool(request).await.unwrap().into_inner();
        pool.capabilities.is_some_and(|can| can.online_snapshot)
    }
}
