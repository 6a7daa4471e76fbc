//! A control plane that answers the same on every run.

use std::{
    pin::Pin,
    time::{Duration, UNIX_EPOCH},
};

use drover_wire::{
    control::v1::{self as api, Operation, OperationState, Vm, VmSpec},
    vm::v1::{BootTimes, ConsoleOutput, StallAction, StallPolicy},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{
    Stream, StreamExt as _, iter, pending, wrappers::ReceiverStream, wrappers::TcpListenerStream,
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Answer<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Starts one; gives back its address.
pub(crate) async fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(
        Server::builder()
            .add_service(api::nodes_server::NodesServer::new(Fake))
            .add_service(api::vms_server::VmsServer::new(Fake))
            .add_service(api::volumes_server::VolumesServer::new(Fake))
            .add_service(api::images_server::ImagesServer::new(Fake))
            .add_service(api::pools_server::PoolsServer::new(Fake))
            .add_service(api::disk_images_server::DiskImagesServer::new(Fake))
            .add_service(api::operations_server::OperationsServer::new(Fake))
            .add_service(api::events_server::EventsServer::new(Fake))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    server
}

#[derive(Clone, Copy)]
struct Fake;

macro_rules! at {
    ($seconds:expr) => {
        Some((UNIX_EPOCH + Duration::from_secs(1_795_353_360 + $seconds)).into())
    };
}

mod pools;

fn vm(name: &str) -> Result<Vm, Status> {
    let names = ["web", "db"];
    let Some(index) = names.iter().position(|known| *known == name) else {
        return Err(Status::not_found(format!("vm '{name}' does not exist")));
    };
    let running = index == 0;
    let phase = if running { api::VmPhase::Running } else { api::VmPhase::Backoff };
    Ok(Vm {
        id: format!("00000000-0000-0000-0000-0000000000a{index}"),
        spec: Some(VmSpec {
            name: name.to_owned(),
            vcpus: 2,
            memory_bytes: 256 << 20,
            image: "probe".into(),
            cmdline: "probe.heartbeat=5".into(),
            volumes: vec!["data".into()],
            anti_affinity_group: "tier".into(),
            stall: Some(StallPolicy { deadline_ms: 10_000, action: StallAction::Pause.into() }),
            priority: 10,
            ..VmSpec::default()
        }),
        phase: phase.into(),
        node_id: if running { "00000000-0000-0000-0000-000000000001".into() } else { String::new() },
        node_name: if running { "node-1".into() } else { String::new() },
        owner_epoch: 3,
        restarts: 1,
        // What a hostile guest or disk could put into an error.
        detail: if running { String::new() } else { "exit \u{1b}[31mstatus 1".into() },
        boot: running.then_some(BootTimes { spawn_to_first_byte_us: 12_345, start_to_first_byte_us: 800 }),
        created_at: at!(0),
        last_fence_evidence: "process death: killed by signal 9".into(),
        pid: if running { 4711 } else { 0 },
        ..Vm::default()
    })
}

fn operation(name: &str) -> Operation {
    Operation {
        id: format!("op-{name}"),
        kind: "vm.create".into(),
        subject_id: "web".into(),
        subject_name: name.into(),
        state: OperationState::Running.into(),
        step: "placing".into(),
        percent: 10,
        created_at: at!(5),
        ..Operation::default()
    }
}

fn ended(name: &str) -> Operation {
    let mut operation = Operation { percent: 100, ended_at: at!(6), placement_us: 42, ..operation(name) };
    operation.set_state(OperationState::Done);
    operation.step = String::new();
    match name {
        "huge" => {
            operation.set_state(OperationState::Failed);
            operation.reason = "no node can take huge".into();
            operation.rejections = [("node-1", 1), ("node-2", 2)]
                .map(|(node, free)| api::NodeRejection {
                    node_id: format!("00000000-0000-0000-0000-00000000000{free}"),
                    node_name: node.into(),
                    reasons: vec![
                        format!("memory: {free} GiB free, 64 GiB needed"),
                        "vcpus: 2 free, 8 needed".into(),
                    ],
                })
                .into();
        }
        "moved" => {
            operation.kind = "vm.migrate".into();
            operation.subject_name = "web".into();
            operation.migration = Some(api::MigrationResult {
                rounds: 4,
                bytes: 300 << 20,
                total_us: 1_900_000,
                downtime_us: 17_400,
                source_node: "node-1".into(),
                target_node: "node-2".into(),
            });
        }
        _ => {}
    }
    operation
}

#[tonic::async_trait]
impl api::nodes_server::Nodes for Fake {
    async fn list_nodes(&self, _: Request<api::ListNodesRequest>) -> Answer<api::ListNodesResponse> {
        let node = |index: u64, state: api::NodeState, evidence: &str| api::Node {
            id: format!("00000000-0000-0000-0000-00000000000{index}"),
            name: format!("node-{index}"),
            address: format!("10.0.0.{index}:7401"),
            state: state.into(),
            vcpus: 8,
            memory_bytes: 16 << 30,
            vcpus_offered: 8,
            memory_offered_bytes: 16 << 30,
            vcpus_used: 2,
            memory_used_bytes: 256 << 20,
            vm_count: 1,
            last_heartbeat_ms: 120 * index,
            fence_evidence: evidence.into(),
            version: "0.1.0".into(),
            ..api::Node::default()
        };
        let nodes = vec![
            node(1, api::NodeState::Ready, ""),
            node(2, api::NodeState::Fenced, "lease expired; locks of 1 volume taken over"),
        ];
        Ok(Response::new(api::ListNodesResponse { nodes, next_page_token: String::new() }))
    }
    async fn get_node(&self, request: Request<api::GetNodeRequest>) -> Answer<api::Node> {
        let name = request.into_inner().node;
        let nodes = self.list_nodes(Request::new(api::ListNodesRequest::default())).await?.into_inner().nodes;
        let found = nodes.into_iter().find(|node| node.name == name);
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("node '{name}' does not exist")))
    }
    async fn update_node(&self, request: Request<api::UpdateNodeRequest>) -> Answer<api::Node> {
        let request = request.into_inner();
        let get = api::GetNodeRequest { node: request.node };
        let node = self.get_node(Request::new(get)).await?.into_inner();
        let labels = request.set_labels;
        Ok(Response::new(api::Node {
            cordoned: request.cordoned.unwrap_or(false),
            labels,
            taints: request.add_taints,
            ..node
        }))
    }
}

#[tonic::async_trait]
impl api::vms_server::Vms for Fake {
    async fn attach_volume(&self, request: Request<api::AttachVolumeRequest>) -> Answer<api::Vm> {
        self.get_vm(Request::new(api::GetVmRequest { vm: request.into_inner().vm })).await
    }
    async fn attach_nic(&self, request: Request<api::AttachNicRequest>) -> Answer<api::Vm> {
        self.get_vm(Request::new(api::GetVmRequest { vm: request.into_inner().vm })).await
    }
    async fn detach_volume(&self, request: Request<api::DetachVolumeRequest>) -> Answer<api::Vm> {
        self.get_vm(Request::new(api::GetVmRequest { vm: request.into_inner().vm })).await
    }
    async fn detach_nic(&self, request: Request<api::DetachNicRequest>) -> Answer<api::Vm> {
        self.get_vm(Request::new(api::GetVmRequest { vm: request.into_inner().vm })).await
    }
    async fn suspend_vm(
        &self,
        _: tonic::Request<api::SuspendVmRequest>,
    ) -> Result<tonic::Response<api::Vm>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked for"))
    }
    async fn set_balloon(
        &self,
        _: tonic::Request<api::SetBalloonRequest>,
    ) -> Result<tonic::Response<drover_wire::vm::v1::BalloonStatus>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked for"))
    }
    async fn get_balloon(
        &self,
        _: tonic::Request<api::GetBalloonRequest>,
    ) -> Result<tonic::Response<drover_wire::vm::v1::BalloonStatus>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked for"))
    }
    async fn reclaim_free_memory(
        &self,
        _: tonic::Request<api::ReclaimFreeMemoryRequest>,
    ) -> Result<tonic::Response<drover_wire::vm::v1::ReclaimFreeMemoryResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked for"))
    }
    async fn press_power_button(&self, request: Request<api::PressPowerButtonRequest>) -> Answer<api::Vm> {
        self.get_vm(Request::new(api::GetVmRequest { vm: request.into_inner().vm })).await
    }
    async fn set_limits(
        &self,
        request: tonic::Request<api::SetLimitsRequest>,
    ) -> Result<tonic::Response<api::Vm>, tonic::Status> {
        self.get_vm(tonic::Request::new(api::GetVmRequest { vm: request.into_inner().vm })).await
    }

    async fn create_vm_group(&self, _: Request<api::CreateVmGroupRequest>) -> Answer<Operation> {
        Err(Status::unimplemented("no test creates a group"))
    }
    async fn create_vm(&self, request: Request<api::CreateVmRequest>) -> Answer<Operation> {
        let request = request.into_inner();
        assert!(!request.request_id.is_empty());
        let spec = request.spec.unwrap_or_default();
        if spec.image == "nope" {
            return Err(Status::invalid_argument("spec.image: there is no image 'nope'; there is probe"));
        }
        Ok(Response::new(operation(&spec.name)))
    }
    async fn start_vm(&self, request: Request<api::StartVmRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().vm)))
    }
    async fn stop_vm(&self, request: Request<api::StopVmRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().vm)))
    }
    async fn migrate_vm(&self, request: Request<api::MigrateVmRequest>) -> Answer<Operation> {
        let request = request.into_inner();
        if request.target_node == "node-1" {
            return Err(Status::failed_precondition("target_node: web runs on node-1 already"));
        }
        Ok(Response::new(operation("moved")))
    }
    async fn delete_vm(&self, request: Request<api::DeleteVmRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().vm)))
    }
    async fn get_vm(&self, request: Request<api::GetVmRequest>) -> Answer<Vm> {
        vm(&request.into_inner().vm).map(Response::new)
    }
    async fn list_vms(&self, request: Request<api::ListVmsRequest>) -> Answer<api::ListVmsResponse> {
        // One on each page.
        let (name, next) = match request.into_inner().page_token.as_str() {
            "" => ("web", "second"),
            _ => ("db", ""),
        };
        Ok(Response::new(api::ListVmsResponse { vms: vec![vm(name)?], next_page_token: next.into() }))
    }
    async fn create_vm_snapshot(&self, request: Request<api::CreateVmSnapshotRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().vm)))
    }
    async fn list_vm_snapshots(
        &self,
        _: Request<api::ListVmSnapshotsRequest>,
    ) -> Answer<api::ListVmSnapshotsResponse> {
        let part = |volume: &str| api::Snapshot {
            id: "00000000-0000-0000-0000-0000000000d0".into(),
            name: "before".into(),
            volume_id: "00000000-0000-0000-0000-0000000000b0".into(),
            volume_name: volume.into(),
            size_bytes: 1 << 30,
            state: api::SnapshotState::Ready.into(),
            created_at: at!(4),
            part_of_vm_id: "00000000-0000-0000-0000-0000000000a0".into(),
            ..api::Snapshot::default()
        };
        let whole = |name: &str, vm_name: &str, parts, hold| api::VmSnapshot {
            id: "00000000-0000-0000-0000-0000000000d0".into(),
            name: name.into(),
            vm_id: "00000000-0000-0000-0000-0000000000a0".into(),
            vm_name: vm_name.into(),
            state: api::SnapshotState::Ready.into(),
            parts,
            part_count: 2,
            hold,
            created_at: at!(4),
        };
        let hold = Some(api::Hold { drained_us: 1_200, lasted_us: 41_000 });
        let snapshots = vec![
            whole("before", "web", vec![part("root"), part("data")], hold),
            whole("old", "", vec![part("root")], None),
        ];
        Ok(Response::new(api::ListVmSnapshotsResponse { snapshots, next_page_token: String::new() }))
    }
    async fn rollback_vm_snapshot(
        &self,
        request: Request<api::RollbackVmSnapshotRequest>,
    ) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().vm)))
    }
    async fn delete_vm_snapshot(&self, _: Request<api::DeleteVmSnapshotRequest>) -> Answer<Operation> {
        Err(Status::failed_precondition("snapshot: its part in volume 'data' is protected"))
    }
    type ConsoleStream = Messages<ConsoleOutput>;
    async fn console(&self, request: Request<Streaming<api::ConsoleRequest>>) -> Answer<Self::ConsoleStream> {
        let mut input = request.into_inner();
        let first = input.message().await?.unwrap_or_default();
        vm(&first.vm)?;
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            sender.send(Ok(ConsoleOutput { data: b"login: ".to_vec(), lost: 0 })).await.ok();
            while let Ok(Some(typed)) = input.message().await {
                let bye = typed.data.starts_with(b"bye");
                sender.send(Ok(ConsoleOutput { data: typed.data.to_ascii_uppercase(), lost: 0 })).await.ok();
                if bye {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
    type LogsStream = Messages<ConsoleOutput>;
    async fn logs(&self, request: Request<api::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        vm(&request.vm)?;
        let text = format!("tail {} follow {}\n", request.tail_bytes, request.follow);
        let parts = [("{\"ev\":\"boot\"}\n".to_owned(), 0), (text, 3)];
        let parts = parts.map(|(text, lost)| Ok(ConsoleOutput { data: text.into_bytes(), lost }));
        Ok(Response::new(Box::pin(iter(parts))))
    }
}

fn volume(name: &str, size_bytes: u64) -> api::Volume {
    api::Volume {
        id: "00000000-0000-0000-0000-0000000000b0".into(),
        name: name.into(),
        pool: "main".into(),
        size_bytes,
        vm_name: if name == "data" { "web".into() } else { String::new() },
        created_at: at!(1),
        ..api::Volume::default()
    }
}

/// Name, announced size and number of bytes of an upload.
async fn receive(request: Request<Streaming<api::ImportRequest>>) -> Result<(String, u64, u64), Status> {
    let mut parts = request.into_inner();
    let (mut name, mut announced, mut bytes) = (String::new(), 0, 0);
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(api::import_request::Part::Header(header)) => {
                (name, announced) = (header.name, header.size_bytes)
            }
            Some(api::import_request::Part::Data(data)) => bytes += data.len() as u64,
            None => return Err(Status::invalid_argument("an empty part")),
        }
    }
    Ok((name, announced, bytes))
}

#[tonic::async_trait]
impl api::volumes_server::Volumes for Fake {
    async fn create_volume(&self, request: Request<api::CreateVolumeRequest>) -> Answer<api::Volume> {
        let request = request.into_inner();
        if !request.size_bytes.is_multiple_of(512) {
            return Err(Status::invalid_argument("size_bytes: 1000 is not a multiple of 512"));
        }
        if request.name == "data" {
            return Err(Status::already_exists("name: there is a volume 'data' already"));
        }
        Ok(Response::new(volume(&request.name, request.size_bytes)))
    }
    async fn import_volume(&self, request: Request<Streaming<api::ImportRequest>>) -> Answer<api::Volume> {
        let (name, announced, bytes) = receive(request).await?;
        assert!(announced >= bytes && announced.is_multiple_of(512));
        Ok(Response::new(volume(&name, announced)))
    }
    async fn list_volumes(&self, _: Request<api::ListVolumesRequest>) -> Answer<api::ListVolumesResponse> {
        let volumes = vec![volume("data", 1 << 30), volume("scratch", 8 << 20)];
        Ok(Response::new(api::ListVolumesResponse { volumes, next_page_token: String::new() }))
    }
    async fn get_volume(&self, request: Request<api::GetVolumeRequest>) -> Answer<api::Volume> {
        Ok(Response::new(volume(&request.into_inner().volume, 1 << 30)))
    }
    async fn delete_volume(
        &self,
        request: Request<api::DeleteVolumeRequest>,
    ) -> Answer<api::DeleteVolumeResponse> {
        match request.into_inner().volume.as_str() {
            "data" => Err(Status::failed_precondition("volume 'data' is attached to web")),
            _ => Ok(Response::new(api::DeleteVolumeResponse::default())),
        }
    }
    async fn clone_volume(&self, request: Request<api::CloneVolumeRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().name)))
    }
    async fn resize_volume(&self, request: Request<api::ResizeVolumeRequest>) -> Answer<Operation> {
        let request = request.into_inner();
        if request.size_bytes < 1 << 30 {
            return Err(Status::invalid_argument("size_bytes: a volume is not made smaller"));
        }
        Ok(Response::new(operation(&request.volume)))
    }
    async fn flatten_volume(&self, request: Request<api::FlattenVolumeRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().volume)))
    }
    async fn create_snapshot(&self, request: Request<api::CreateSnapshotRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().volume)))
    }
    async fn list_snapshots(
        &self,
        _: Request<api::ListSnapshotsRequest>,
    ) -> Answer<api::ListSnapshotsResponse> {
        let snapshots = vec![api::Snapshot {
            id: "00000000-0000-0000-0000-0000000000c0".into(),
            name: "before".into(),
            volume_id: "00000000-0000-0000-0000-0000000000b0".into(),
            volume_name: "data".into(),
            size_bytes: 1 << 30,
            is_protected: true,
            state: api::SnapshotState::Ready.into(),
            clones: vec!["copy".into()],
            created_at: at!(4),
            part_of_vm_id: String::new(),
        }];
        Ok(Response::new(api::ListSnapshotsResponse { snapshots, next_page_token: String::new() }))
    }
    async fn protect_snapshot(&self, request: Request<api::ProtectSnapshotRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().snapshot.unwrap_or_default().volume)))
    }
    async fn rollback_snapshot(&self, request: Request<api::RollbackSnapshotRequest>) -> Answer<Operation> {
        Ok(Response::new(operation(&request.into_inner().snapshot.unwrap_or_default().volume)))
    }
    async fn delete_snapshot(&self, _: Request<api::DeleteSnapshotRequest>) -> Answer<Operation> {
        Err(Status::failed_precondition("snapshot: snapshot 'before' is protected"))
    }
}

fn image(name: &str, size_bytes: u64) -> api::Image {
    api::Image {
        name: name.into(),
        pool: "main".into(),
        size_bytes,
        sha256: "0123456789abcdef".repeat(4),
        min_memory_bytes: 4 << 20,
        created_at: at!(2),
    }
}

#[tonic::async_trait]
impl api::images_server::Images for Fake {
    async fn import_image(&self, request: Request<Streaming<api::ImportRequest>>) -> Answer<api::Image> {
        let (name, announced, bytes) = receive(request).await?;
        assert_eq!(announced, bytes);
        Ok(Response::new(image(&name, bytes)))
    }
    async fn list_images(&self, _: Request<api::ListImagesRequest>) -> Answer<api::ListImagesResponse> {
        let images = vec![image("probe", 65_536)];
        Ok(Response::new(api::ListImagesResponse { images, next_page_token: String::new() }))
    }
    async fn delete_image(&self, _: Request<api::DeleteImageRequest>) -> Answer<api::DeleteImageResponse> {
        Ok(Response::new(api::DeleteImageResponse {}))
    }
}

#[tonic::async_trait]
impl api::operations_server::Operations for Fake {
    async fn get_operation(&self, request: Request<api::GetOperationRequest>) -> Answer<Operation> {
        let id = request.into_inner().id;
        match id.strip_prefix("op-") {
            Some(name) => Ok(Response::new(ended(name))),
            None => Err(Status::not_found(format!("operation '{id}' does not exist"))),
        }
    }
    async fn list_operations(
        &self,
        _: Request<api::ListOperationsRequest>,
    ) -> Answer<api::ListOperationsResponse> {
        let operations = vec![ended("web"), ended("huge"), operation("slow")];
        Ok(Response::new(api::ListOperationsResponse { operations, next_page_token: String::new() }))
    }
    type WatchOperationStream = Messages<Operation>;
    async fn watch_operation(
        &self,
        request: Request<api::GetOperationRequest>,
    ) -> Answer<Self::WatchOperationStream> {
        let id = request.into_inner().id;
        let name = id.trim_start_matches("op-").to_owned();
        let first = iter([Ok(operation(&name))]);
        if name == "slow" {
            return Ok(Response::new(Box::pin(first.chain(pending()))));
        }
        Ok(Response::new(Box::pin(first.chain(iter([Ok(ended(&name))])))))
    }
    async fn cancel_operation(&self, request: Request<api::CancelOperationRequest>) -> Answer<Operation> {
        let id = request.into_inner().id;
        let mut cancelled = ended(id.trim_start_matches("op-"));
        cancelled.set_state(OperationState::Cancelled);
        cancelled.reason = "cancelled by request".into();
        Ok(Response::new(cancelled))
    }
}

fn event(sequence: u64) -> api::Event {
    api::Event {
        sequence,
        at: at!(sequence),
        kind: ["vm.placed", "vm.running"][sequence as usize % 2].into(),
        subject_id: "00000000-0000-0000-0000-0000000000a0".into(),
        subject_name: "web".into(),
        message: format!("on node-1, the {sequence}th"),
    }
}

#[tonic::async_trait]
impl api::events_server::Events for Fake {
    async fn list_events(&self, request: Request<api::ListEventsRequest>) -> Answer<api::ListEventsResponse> {
        // Two on each page.
        let after = request.into_inner().after_sequence;
        let events = (after + 1..=5).take(2).map(event).collect();
        Ok(Response::new(api::ListEventsResponse { events }))
    }
    type WatchEventsStream = Messages<api::Event>;
    async fn watch_events(
        &self,
        request: Request<api::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        // Breaks after each event, so that the watcher has to resume.
        let next = request.into_inner().after_sequence + 1;
        if next > 8 {
            return Err(Status::out_of_range("the log is empty from here on"));
        }
        Ok(Response::new(Box::pin(iter([Ok(event(next)), Err(Status::unavailable("restarting"))]))))
    }
}
