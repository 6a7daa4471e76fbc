//! The control plane as its clients and agents meet it: over loopback, with agents that pretend to run VMs.

mod support;

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, time::Duration};

use drover_control_plane::{ControlPlane, StartError, StateDirError};
use drover_wire::control::v1 as api;
use support::{Cluster, FakeAgent, PATIENCE, kernel, refused, upload, vm_spec};
use tokio_stream::StreamExt as _;
use tonic::{Code, Response};

#[tokio::test]
async fn a_volume_is_made_listed_and_deleted() {
    let cluster = Cluster::start().await;
    let mut volumes = cluster.volumes().await;
    let request = api::CreateVolumeRequest {
        request_id: "one".to_owned(),
        name: "data".to_owned(),
        pool: String::new(),
        size_bytes: 1 << 30,
    };
    let volume = volumes.create_volume(request.clone()).await.unwrap().into_inner();
    assert_eq!((volume.pool.as_str(), volume.size_bytes), ("default", 1 << 30));
    let file = cluster.pool().join("volumes").join(format!("{}.raw", volume.id));
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, 0), "it takes no space");

    let again = volumes.create_volume(request.clone()).await.unwrap().into_inner();
    assert_eq!(again, volume, "one request id, one volume");
    let other = api::CreateVolumeRequest { request_id: "two".to_owned(), ..request };
    refused(volumes.create_volume(other).await, Code::AlreadyExists, "name: the name 'data' is taken");

    for name in ["b", "a", "c"] {
        cluster.create_volume(name).await;
    }
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = volumes.list_volumes(api::ListVolumesRequest { page_size: 3, page_token }).await;
        let page = page.unwrap().into_inner();
        names.extend(page.volumes.into_iter().map(|volume| volume.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "data"]);

    volumes
        .delete_volume(api::DeleteVolumeRequest { volume: "data".to_owned(), request_id: String::new() })
        .await
        .unwrap();
    assert!(!file.exists());
    let gone = api::GetVolumeRequest { volume: volume.id };
    refused(volumes.get_volume(gone).await, Code::NotFound, "volume: there is no volume");
}

#[tokio::test]
async fn a_bad_volume_is_refused_by_field_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let mut volumes = cluster.volumes().await;
    let mut check = async |name: &str, pool: &str, size_bytes, code, expect: &str| {
        let request = api::CreateVolumeRequest {
            request_id: String::new(),
            name: name.to_owned(),
            pool: pool.to_owned(),
            size_bytes,
        };
        refused(volumes.create_volume(request).await, code, expect);
    };
    check("data", "", 1000, Code::InvalidArgument, "size_bytes: it is 1000; valid: a multiple of 512").await;
    check("data", "", 0, Code::InvalidArgument, "size_bytes: ").await;
    check("a/b", "", 512, Code::InvalidArgument, "name: 'a/b' is not a name").await;
    check("data", "fast", 512, Code::NotFound, "pool: there is no pool 'fast'; there is: default").await;
    let token = api::ListVolumesRequest { page_size: 0, page_token: "vm:x".to_owned() };
    refused(volumes.list_volumes(token).await, Code::InvalidArgument, "page_token: ");
    let listed = volumes.list_volumes(api::ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.volumes, []);
}

#[tokio::test]
async fn an_imported_volume_has_the_bytes_and_holes_where_there_are_none() {
    let cluster = Cluster::start().await;
    let mut volumes = cluster.volumes().await;
    let mut bytes = vec![0; 3 << 20];
    bytes[..4].copy_from_slice(b"head");
    bytes[(3 << 20) - 4..].copy_from_slice(b"tail");
    let imported = volumes.import_volume(upload("disk", 4 << 20, &bytes)).await.unwrap().into_inner();
    let file = cluster.pool().join("volumes").join(format!("{}.raw", imported.id));
    assert!(fs::metadata(&file).unwrap().blocks() * 512 < 1 << 20, "zeros take space");
    bytes.resize(4 << 20, 0);
    assert!(fs::read(&file).unwrap() == bytes, "the bytes differ");

    let small = volumes.import_volume(upload("small", 1 << 20, &bytes)).await;
    refused(small, Code::InvalidArgument, "data: more bytes came than size_bytes, 1048576");
    let headless = tokio_stream::iter([api::ImportRequest { part: None }]);
    refused(
        volumes.import_volume(headless).await,
        Code::InvalidArgument,
        "part: the first message is not a header",
    );
    // A client that waits for the answer before it sends more.
    let waiting = upload("a/b", 512, &[]).chain(tokio_stream::pending());
    let answer =
        tokio::time::timeout(PATIENCE, volumes.import_volume(waiting)).await.expect("it is refused at once");
    refused(answer, Code::InvalidArgument, "name: 'a/b' is not a name");
    let left: Vec<_> = fs::read_dir(cluster.pool().join("volumes")).unwrap().collect();
    assert_eq!(left.len(), 1, "a refused import left something: {left:?}");
}

#[tokio::test]
async fn an_empty_message_is_not_the_end_of_an_import() {
    use api::import_request::Part;
    let cluster = Cluster::start().await;
    let parts =
        [&b"ab"[..], b"", b"cd"].map(|data| api::ImportRequest { part: Some(Part::Data(data.to_vec())) });
    let requests = upload("disk", 512, &[]).chain(tokio_stream::iter(parts));
    let imported = cluster.volumes().await.import_volume(requests).await.unwrap().into_inner();
    let file = cluster.pool().join("volumes").join(format!("{}.raw", imported.id));
    assert!(fs::read(file).unwrap().starts_with(b"abcd\0"));
}

#[tokio::test]
async fn an_import_that_breaks_off_leaves_nothing() {
    let cluster = Cluster::start().await;
    let address = cluster.address().to_owned();
    let client = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut volumes = api::volumes_client::VolumesClient::connect(address).await.unwrap();
            let endless = upload("disk", 64 << 20, &vec![1; 1 << 20]).chain(tokio_stream::pending());
            let import = volumes.import_volume(endless);
            tokio::time::timeout(Duration::from_millis(300), import)
                .await
                .map(drop)
                .expect_err("it has not ended");
        });
        // Its connections end with the runtime, as those of a killed process do.
    });
    client.await.unwrap();
    let gone = async {
        let mut volumes = cluster.volumes().await;
        loop {
            let listed = volumes.list_volumes(api::ListVolumesRequest::default()).await.unwrap().into_inner();
            if listed.volumes.is_empty() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the half-made volume stays");
    assert_eq!(fs::read_dir(cluster.pool().join("volumes")).unwrap().count(), 0);
    cluster.create_volume("disk").await;
}

#[tokio::test]
async fn an_image_is_checked_before_anybody_can_boot_it() {
    let cluster = Cluster::start().await;
    let image = cluster.import_image("probe", kernel()).await.unwrap();
    assert_eq!((image.min_memory_bytes, image.sha256.len()), (4 << 20, 64));
    assert_eq!(fs::read(cluster.pool().join("images/probe")).unwrap(), kernel());

    let again = cluster.import_image("probe", kernel()).await;
    refused(again, Code::AlreadyExists, "name: the name 'probe' is taken");
    let hostile = cluster.import_image("text", b"#!/bin/sh\n".repeat(1000)).await;
    refused(hostile, Code::InvalidArgument, "data: it is not an ELF file, no bzImage and no initramfs");
    let mut images = cluster.images().await;
    let short = images.import_image(upload("short", 5000, &kernel())).await;
    refused(short, Code::InvalidArgument, "size_bytes: it is 5000, and 4096 bytes came");
    let long = images.import_image(upload("long", 4000, &kernel())).await;
    refused(long, Code::InvalidArgument, "size_bytes: it is 4000, and more bytes came");
    let huge = images.import_image(upload("huge", u64::MAX, &kernel())).await;
    refused(huge, Code::InvalidArgument, "size_bytes: ");
    let escape = cluster.import_image("../../etc/passwd", kernel()).await;
    refused(escape, Code::InvalidArgument, "name: '../../etc/passwd' is not a name");
    assert_eq!(fs::read_dir(cluster.pool().join("images")).unwrap().count(), 1);

    images
        .delete_image(api::DeleteImageRequest { image: "probe".to_owned(), request_id: String::new() })
        .await
        .unwrap();
    assert!(!cluster.pool().join("images/probe").exists());
}

#[tokio::test]
async fn a_vm_lives_from_its_creation_to_its_end() {
    let cluster = Cluster::start().await;
    let (agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    cluster.create_volume("disk").await;
    let created = cluster.done(cluster.create_vm("web", &["disk"]).await.unwrap()).await;
    assert!(created.placement_us > 0 && created.ended_at.is_some(), "{created:?}");
    let vm = cluster.vm("web").await.unwrap();
    assert_eq!(
        (vm.phase(), vm.node_name.as_str(), vm.owner_epoch, vm.pid),
        (api::VmPhase::Running, "n1", 1, 42)
    );
    assert_eq!(agent.vms().len(), 1);
    assert_eq!(cluster.vm(&vm.id).await.unwrap().id, vm.id, "found by id as well");

    let mut volumes = cluster.volumes().await;
    let in_use = volumes
        .delete_volume(api::DeleteVolumeRequest { volume: "disk".to_owned(), request_id: String::new() })
        .await;
    refused(in_use, Code::FailedPrecondition, "volume 'disk' is attached to VM 'web'");
    let twice = cluster.create_vm("other", &["disk"]).await;
    refused(twice, Code::FailedPrecondition, "spec.volumes: volume 'disk' is attached to VM 'web'");
    let mut images = cluster.images().await;
    let booted = images
        .delete_image(api::DeleteImageRequest { image: "probe".to_owned(), request_id: String::new() })
        .await;
    refused(booted, Code::FailedPrecondition, "image 'probe' is used by VM 'web'");

    let mut vms = cluster.vms().await;
    let by_name = |vm: &str| vm.to_owned();
    let stop = api::StopVmRequest { vm: by_name("web"), ..api::StopVmRequest::default() };
    cluster.done(vms.stop_vm(stop).await.unwrap().into_inner()).await;
    assert_eq!(cluster.vm("web").await.unwrap().phase(), api::VmPhase::Stopped);
    assert!(agent.vms().is_empty());
    let start = api::StartVmRequest { request_id: String::new(), vm: by_name("web") };
    cluster.done(vms.start_vm(start).await.unwrap().into_inner()).await;
    assert_eq!(cluster.vm("web").await.unwrap().owner_epoch, 2);

    let delete = api::DeleteVmRequest { request_id: "bye".to_owned(), vm: by_name("web") };
    let deleted = cluster.done(vms.delete_vm(delete.clone()).await.unwrap().into_inner()).await;
    refused(cluster.vm("web").await, Code::NotFound, "vm: there is no VM 'web'");
    assert_eq!(
        vms.delete_vm(delete).await.unwrap().into_inner().id,
        deleted.id,
        "asked again: the same operation"
    );

    let mut operations = cluster.operations().await;
    let about = api::ListOperationsRequest { subject: "web".to_owned(), ..Default::default() };
    let listed = operations.list_operations(about).await.unwrap().into_inner().operations;
    let kinds: Vec<&str> = listed.iter().map(|operation| operation.kind.as_str()).collect();
    assert_eq!(kinds, ["vm.create", "vm.stop", "vm.start", "vm.delete"]);
}

#[tokio::test]
async fn a_volume_of_a_deleted_vm_can_be_attached_to_another() {
    use drover_dir_volume::{DirPool, Owner, VolumeLock, read_record};
    let cluster = Cluster::start().await;
    let (_agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    let volume = cluster.create_volume("disk").await;
    cluster.done(cluster.create_vm("first", &["disk"]).await.unwrap()).await;
    let first = cluster.vm("first").await.unwrap();
    // What its vmmd does.
    let (pool, id) = (DirPool::open(cluster.pool()).unwrap(), volume.id.parse().unwrap());
    let file = fs::OpenOptions::new().read(true).write(true).open(pool.volume_path(id)).unwrap();
    let node = first.node_id.parse().unwrap();
    let owner = Owner { vm: first.id.parse().unwrap(), node, epoch: drover_ids::OwnerEpoch::new(1), pid: 1 };
    let lock = VolumeLock::acquire(&file, &pool.sidecar_path(id), owner).unwrap();

    let mut vms = cluster.vms().await;
    let delete = api::DeleteVmRequest { request_id: String::new(), vm: "first".to_owned() };
    cluster.done(vms.delete_vm(delete).await.unwrap().into_inner()).await;
    let held = cluster.create_vm("second", &["disk"]).await;
    refused(held, Code::FailedPrecondition, "is in use by VM");
    lock.release();
    cluster.done(cluster.create_vm("second", &["disk"]).await.unwrap()).await;
    let second = cluster.vm("second").await.unwrap().id;
    let record = read_record(&pool.sidecar_path(id)).unwrap();
    assert!(record.is_none_or(|record| record.vm().to_string() == second), "{record:?}");
}

#[tokio::test]
async fn a_bad_vm_is_refused_by_field_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let (_agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    let mut vms = cluster.vms().await;
    let mut check = async |change: &dyn Fn(&mut api::VmSpec), code, expect: &str| {
        let mut spec = vm_spec("web", &[]);
        change(&mut spec);
        let request = api::CreateVmRequest { request_id: String::new(), spec: Some(spec) };
        refused(vms.create_vm(request).await, code, expect);
    };
    check(
        &|spec| spec.image = "nope".to_owned(),
        Code::NotFound,
        "spec.image: there is no image 'nope'; there is: probe",
    )
    .await;
    check(&|spec| spec.memory_bytes = 2 << 20, Code::InvalidArgument, "is less than image 'probe' needs")
        .await;
    check(&|spec| spec.vcpus = 0, Code::InvalidArgument, "spec.vcpus: it is 0; valid: 1 to").await;
    check(&|spec| spec.volumes = vec!["nope".to_owned()], Code::NotFound, "spec.volumes: there is no volume")
        .await;
    check(&|spec| spec.name = String::new(), Code::InvalidArgument, "spec.name: ").await;
    let seed = |user_data: &str| {
        Some(api::CloudInit { user_data: user_data.to_owned(), ..api::CloudInit::default() })
    };
    let told_nothing = "spec.cloud_init: user_data: cloud-init would ignore";
    check(&|spec| spec.cloud_init = seed("echo hello"), Code::InvalidArgument, told_nothing).await;
    refused(
        vms.create_vm(api::CreateVmRequest::default()).await,
        Code::InvalidArgument,
        "spec: it is missing",
    );
    let listed = vms.list_vms(api::ListVmsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.vms, []);

    let large = api::VmSpec { vcpus: 64, ..vm_spec("large", &[]) };
    let request = api::CreateVmRequest { request_id: String::new(), spec: Some(large) };
    let failed = cluster.ended(vms.create_vm(request).await.unwrap().into_inner()).await;
    assert_eq!(failed.state(), api::OperationState::Failed);
    assert_eq!(failed.rejections.len(), 1, "{failed:?}");
    assert!(failed.rejections[0].reasons[0].contains("64 vCPU"), "{failed:?}");
}

#[tokio::test]
async fn what_a_guest_is_told_reaches_its_node_and_is_not_told_to_clients() {
    let cluster = Cluster::start().await;
    let (agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    let told = api::CloudInit {
        hostname: "web-1".to_owned(),
        user_data: "#cloud-config\npassword: s3cret\n".to_owned(),
        network_config: "version: 2 # s3cret\n".to_owned(),
        ..api::CloudInit::default()
    };
    let spec = api::VmSpec { cloud_init: Some(told), ..vm_spec("web", &[]) };
    let request = api::CreateVmRequest { request_id: String::new(), spec: Some(spec) };
    let mut vms = cluster.vms().await;
    cluster.done(vms.create_vm(request).await.unwrap().into_inner()).await;
    let vm = cluster.vm("web").await.unwrap();
    let shown = vm.spec.clone().unwrap().cloud_init.unwrap();
    assert_eq!(shown, api::CloudInit { hostname: "web-1".to_owned(), ..api::CloudInit::default() });
    let seed = agent.seed(&vm.id).expect("the agent has a seed");
    let holds = |text: &[u8]| seed.windows(text.len()).any(|window| window == text);
    assert!(holds(b"CIDATA") && holds(b"password: s3cret") && holds(vm.id.as_bytes()) && holds(b"web-1"));
}

#[tokio::test]
async fn console_and_log_come_from_the_node_that_runs_the_vm() {
    let cluster = Cluster::start().await;
    let (_agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    cluster.done(cluster.create_vm("web", &[]).await.unwrap()).await;
    let mut vms = cluster.vms().await;
    let typed = |vm: &str, data: &[u8]| api::ConsoleRequest { vm: vm.to_owned(), data: data.to_vec() };
    let input = tokio_stream::iter([typed("web", b"hel"), typed("", b"lo")]);
    let output: Vec<_> = vms.console(input).await.unwrap().into_inner().collect().await;
    let text: Vec<u8> = output.into_iter().flat_map(|part| part.unwrap().data).collect();
    assert_eq!(text, b"HELLO");
    refused(vms.console(tokio_stream::iter([typed("nope", b"")])).await, Code::NotFound, "no VM 'nope'");

    let request = api::LogsRequest { vm: "web".to_owned(), follow: false, tail_bytes: 7 };
    let mut log = vms.logs(request).await.unwrap().into_inner();
    let id = cluster.vm("web").await.unwrap().id;
    assert_eq!(log.message().await.unwrap().unwrap().data, format!("{id} false 7").into_bytes());
}

#[tokio::test]
async fn the_vms_of_a_dead_node_run_elsewhere_and_the_evidence_is_shown() {
    let cluster = Cluster::start().await;
    let (first, first_tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    cluster.create_volume("disk").await;
    cluster.done(cluster.create_vm("web", &["disk"]).await.unwrap()).await;
    assert_eq!(first.vms().len(), 1);
    let (second, _second_tasks) = FakeAgent::start(&cluster, 2).await;
    cluster.event("node.ready", "n2").await;
    drop(first_tasks);

    cluster.event("node.fenced", "n1").await;
    let message = cluster.event("vm.restarted", "web").await;
    assert!(message.contains("on node n2, epoch 2, allowed by self-fence-lease-expired"), "{message}");
    let restarted = async {
        loop {
            let vm = cluster.vm("web").await.unwrap();
            if vm.phase() == api::VmPhase::Running {
                return vm;
            }
            tokio::task::yield_now().await;
        }
    };
    let vm = tokio::time::timeout(PATIENCE, restarted).await.expect("it runs again");
    assert_eq!((vm.node_name.as_str(), vm.owner_epoch, vm.restarts), ("n2", 2, 1));
    assert!(vm.last_fence_evidence.contains("refuses epochs before"), "{vm:?}");
    assert_eq!(second.vms().len(), 1);
    let mut nodes = cluster.nodes().await;
    let node = nodes.get_node(api::GetNodeRequest { node: "n1".to_owned() }).await.unwrap().into_inner();
    assert_eq!((node.state(), node.vm_count), (api::NodeState::Fenced, 0));
    assert!(node.fence_evidence.starts_with("self-fence-lease-expired"), "{node:?}");
    let listed = nodes.list_nodes(api::ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    let names: BTreeSet<&str> = listed.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2"].into());
}

#[tokio::test]
async fn a_control_plane_that_starts_again_goes_on_where_it_was() {
    let mut cluster = Cluster::start().await;
    let (agent, tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.import_image("probe", kernel()).await.unwrap();
    let request = api::CreateVmRequest { request_id: "one".to_owned(), spec: Some(vm_spec("web", &[])) };
    let created = cluster.vms().await.create_vm(request.clone()).await.unwrap().into_inner();
    cluster.done(created.clone()).await;
    cluster.event("vm.running", "web").await;
    let listed = |events: Response<api::ListEventsResponse>| events.into_inner().events;
    let before = listed(cluster.events().await.list_events(api::ListEventsRequest::default()).await.unwrap());
    let last = before.last().unwrap().sequence;

    let mut stream = cluster.events().await;
    let watch = api::WatchEventsRequest { after_sequence: last, subject: String::new() };
    let mut stream = stream.watch_events(watch.clone()).await.unwrap().into_inner();
    cluster.stop().await;
    let ended = tokio::time::timeout(PATIENCE, stream.message()).await.expect("streams end with the process");
    assert!(ended.is_err() || matches!(ended, Ok(None)), "{ended:?}");
    drop(tasks);
    cluster.start_again().await;

    let vm = cluster.vm("web").await.unwrap();
    assert_eq!((vm.phase(), vm.owner_epoch), (api::VmPhase::Running, 1));
    let repeated = cluster.vms().await.create_vm(request).await.unwrap().into_inner();
    assert_eq!((repeated.id.as_str(), repeated.state()), (created.id.as_str(), api::OperationState::Done));
    let after = listed(cluster.events().await.list_events(api::ListEventsRequest::default()).await.unwrap());
    assert_eq!(after[..before.len()], before, "the log is the same");
    cluster.events().await.watch_events(watch).await.expect("a watch resumes where it was");
    let lost = api::WatchEventsRequest { after_sequence: last + 1, subject: String::new() };
    refused(cluster.events().await.watch_events(lost).await, Code::OutOfRange, "after_sequence: ");
    assert_eq!(agent.vms().len(), 1);
}

#[tokio::test]
async fn a_second_control_plane_on_the_same_state_is_refused() {
    let mut cluster = Cluster::start().await;
    let error = ControlPlane::start(cluster.config()).await.expect_err("one is enough");
    let StartError::StateDir(StateDirError::InUse { pid, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*pid, std::process::id().to_string());
    cluster.stop().await;
    cluster.start_again().await;
}

#[tokio::test]
async fn an_agent_that_is_not_known_is_told_to_register() {
    use drover_wire::node::v1 as node;
    let cluster = Cluster::start().await;
    let mut registry = node::node_registry_client::NodeRegistryClient::new(cluster.channel().await);
    let node_id = drover_ids::NodeId::from_u128(9).to_string();
    let unknown = node::HeartbeatRequest { node_id: node_id.clone(), ..Default::default() };
    refused(registry.heartbeat(unknown).await, Code::NotFound, "call Register first");
    let garbled = node::HeartbeatRequest { node_id: "me".to_owned(), ..Default::default() };
    refused(registry.heartbeat(garbled).await, Code::InvalidArgument, "node_id: 'me' is not a node id");
    let empty = node::RegisterRequest { node_id, ..Default::default() };
    refused(registry.register(empty).await, Code::InvalidArgument, "capacity: it is missing");
}

#[tokio::test]
async fn reflection_and_health_are_served() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    let cluster = Cluster::start().await;
    let request = HealthCheckRequest { service: "drover.control.v1.Vms".to_owned() };
    let health = HealthClient::new(cluster.channel().await).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(cluster.channel().await);
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([list])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(
        names.contains("drover.control.v1.Vms") && names.contains("drover.node.v1.NodeRegistry"),
        "{names:?}"
    );
}

#[tokio::test]
async fn placement_is_steered_and_explained() {
    use drover_wire::placement::v1 as shared;
    let cluster = Cluster::start().await;
    let (_agent, _tasks) = FakeAgent::start(&cluster, 1).await;
    cluster.event("node.ready", "n1").await;
    let mut nodes = cluster.nodes().await;
    let mut placement = api::placement_client::PlacementClient::new(cluster.channel().await);

    let label = |key: &str, value: &str| shared::Label { key: key.to_owned(), value: value.to_owned() };
    let change = api::UpdateNodeRequest {
        node: "n1".to_owned(),
        set_labels: vec![label("rack", "r1")],
        cordoned: Some(true),
        vcpu_overcommit_percent: Some(200),
        ..Default::default()
    };
    let node = nodes.update_node(change.clone()).await.unwrap().into_inner();
    assert_eq!((node.cordoned, node.vcpus, node.vcpus_offered), (true, 4, 8));
    assert_eq!(node.labels, [label("rack", "r1")]);
    let wrong = api::UpdateNodeRequest { vcpu_overcommit_percent: Some(1), ..change.clone() };
    refused(nodes.update_node(wrong).await, Code::InvalidArgument, "vcpu_overcommit_percent: it is 1");

    let spec = api::VmSpec { vcpus: 6, memory_bytes: 64 << 20, ..api::VmSpec::default() };
    let question = api::ExplainRequest { spec: Some(spec.clone()), ..Default::default() };
    let answer = placement.explain(question.clone()).await.unwrap().into_inner();
    let said = &answer.explanations[0];
    assert_eq!((said.considered, said.feasible, said.chosen.is_some()), (1, 0, false));
    assert!(said.nearest[0].remedy.contains("uncordon"), "{said:?}");
    let uncordon =
        api::UpdateNodeRequest { node: "n1".to_owned(), cordoned: Some(false), ..Default::default() };
    nodes.update_node(uncordon).await.unwrap();
    let answer = placement.explain(question).await.unwrap().into_inner();
    assert_eq!(answer.explanations[0].chosen.as_ref().map(|chosen| chosen.node_name.as_str()), Some("n1"));

    let policy =
        |base: &str| shared::Policy { name: "mine".to_owned(), base: base.to_owned(), ..Default::default() };
    let set = |policy| api::SetPolicyRequest { policy: Some(policy) };
    refused(
        placement.set_policy(set(policy("best"))).await,
        Code::InvalidArgument,
        "policy: there is no policy 'best'",
    );
    placement.set_policy(set(policy("energy"))).await.unwrap();
    let use_it = api::UpdateSettingsRequest { policy: Some("mine".to_owned()), ..Default::default() };
    let settings = placement.update_settings(use_it).await.unwrap().into_inner();
    assert_eq!((settings.policy.as_str(), settings.rebalance()), ("mine", shared::RebalanceMode::Manual));
    let policies = placement.list_policies(api::ListPoliciesRequest {}).await.unwrap().into_inner().policies;
    assert_eq!(policies.len(), 7);
    let mine = policies.iter().find(|one| !one.built_in).unwrap();
    assert_eq!(mine.used_by, ["the cluster"]);
    let delete = api::DeletePolicyRequest { name: "mine".to_owned() };
    refused(placement.delete_policy(delete).await, Code::FailedPrecondition, "is used by the cluster");

    let nowhere = api::DrainRequest { rack: "r9".to_owned(), ..Default::default() };
    refused(placement.drain(nowhere).await, Code::NotFound, "rack: there is no rack 'r9'; there is: r1");
    let empty = api::DrainRequest { rack: "r1".to_owned(), ..Default::default() };
    let drained = placement.drain(empty).await.unwrap().into_inner();
    assert_eq!((drained.moves.len(), drained.operation.map(|o| o.kind)), (0, Some("rack.drain".to_owned())));
}
