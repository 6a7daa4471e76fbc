//! Bad input: an error that names the field and what would be valid, and nothing has changed.
#![forbid(unsafe_code)]

use drover_client::{
    Client, Waited,
    api::{CreateVolumeRequest, MigrateVmRequest, NodeState, Operation, VmSpec},
};
use drover_e2e::{LEASE_DEADLINE, World, refusal};
use drover_test_framework::{
    eventually_async,
    probe_vm::{IMAGE, STEP_DEADLINE, create_volume, finish},
};
use drover_units::Bytes;

/// What must not change: every VM and volume, with what is said of it.
async fn picture(client: &Client) -> anyhow::Result<String> {
    let mut vms = client.list_vms().await?;
    for vm in &mut vms {
        // Times, counters and the present step of a VM that runs go on.
        vm.boot = None;
        vm.migration = None;
        vm.detail.clear();
    }
    Ok(format!("{vms:?} {:?} {:?}", client.list_volumes().await?, client.list_images().await?))
}

fn check(case: &str, words: &str, expect: &[&str]) {
    for word in expect {
        assert!(words.contains(word), "{case}: '{words}' does not say '{word}'");
    }
}

fn spec(name: &str) -> VmSpec {
    VmSpec {
        name: name.to_owned(),
        vcpus: 1,
        memory_bytes: 64 << 20,
        image: IMAGE.to_owned(),
        cmdline: "probe.heartbeat=50".to_owned(),
        ..VmSpec::default()
    }
}

async fn create(client: &Client, spec: VmSpec) -> drover_client::Result<Operation> {
    let operation = client.create_vm(spec).await?;
    client.wait_operation(&operation.id, Waited::at_most(STEP_DEADLINE), |_| {}).await
}

async fn migrate(client: &Client, vm: &str, target: &str) -> drover_client::Result<Operation> {
    let request =
        MigrateVmRequest { vm: vm.to_owned(), target_node: target.to_owned(), ..MigrateVmRequest::default() };
    let operation = client.migrate_vm(request).await?;
    client.wait_operation(&operation.id, Waited::at_most(STEP_DEADLINE), |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name_and_changes_nothing() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(1, Bytes::mib(512)).await?;
    let client = &world.client;
    create_volume(&world.cluster, client, "data", Bytes::mib(16)).await?;
    create_volume(&world.cluster, client, "spare", Bytes::mib(16)).await?;
    create(client, VmSpec { volumes: vec!["data".to_owned()], ..spec("first") }).await?;
    let before = picture(client).await?;

    let unknown_image = VmSpec { image: "nope".to_owned(), ..spec("second") };
    check("unknown image", &refusal(create(client, unknown_image).await), &["image", "nope", IMAGE]);

    let no_memory = VmSpec { memory_bytes: 1 << 20, ..spec("second") };
    check("too little memory", &refusal(create(client, no_memory).await), &["memory", "1 MiB"]);

    let no_vcpus = VmSpec { vcpus: 0, ..spec("second") };
    check("no vCPUs", &refusal(create(client, no_vcpus).await), &["vcpus"]);

    check("VM name taken", &refusal(create(client, spec("first")).await), &["name", "first"]);
    check("no name", &refusal(create(client, spec("")).await), &["name"]);

    let attached = VmSpec { volumes: vec!["data".to_owned()], ..spec("second") };
    check("attached elsewhere", &refusal(create(client, attached).await), &["volume", "data", "first"]);

    let twice = VmSpec { volumes: vec!["spare".to_owned(), "spare".to_owned()], ..spec("second") };
    check("attached twice", &refusal(create(client, twice).await), &["volume", "spare"]);

    let no_volume = VmSpec { volumes: vec!["nope".to_owned()], ..spec("second") };
    check("unknown volume", &refusal(create(client, no_volume).await), &["volume", "nope"]);

    let volume = |name: &str, size_bytes| CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes,
        ..CreateVolumeRequest::default()
    };
    let odd = client.create_volume(volume("odd", 1000)).await;
    check("not whole sectors", &refusal(odd), &["size", "1000", "512"]);
    let empty = client.create_volume(volume("empty", 0)).await;
    check("empty volume", &refusal(empty), &["size"]);
    let taken = client.create_volume(volume("data", 4096)).await;
    check("volume name taken", &refusal(taken), &["name", "data"]);
    let elsewhere = CreateVolumeRequest { pool: "nope".to_owned(), ..volume("else", 4096) };
    check(
        "unknown pool",
        &refusal(client.create_volume(elsewhere).await),
        &["pool", "nope", world.cluster.pool()],
    );

    check("delete attached", &refusal(client.delete_volume("data").await), &["data", "first"]);
    check("unknown VM", &refusal(client.get_vm("nope").await), &["nope"]);
    check("unknown node", &refusal(migrate(client, "first", "nope").await), &["target_node", "nope"]);
    check("same node", &refusal(migrate(client, "first", "node-1").await), &["target_node", "node-1"]);

    assert_eq!(picture(client).await?, before, "something changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_fits_nowhere_is_refused_with_every_nodes_reasons() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(2, Bytes::mib(512)).await?;
    let huge = VmSpec { memory_bytes: 8 << 30, ..spec("huge") };
    let operation = world.client.create_vm(huge).await?;
    let error = world.client.wait_operation(&operation.id, Waited::at_most(STEP_DEADLINE), |_| {}).await;
    let Err(drover_client::Error::OperationFailed(operation)) = error else {
        panic!("should have failed: {error:?}")
    };
    assert_eq!(operation.rejections.len(), 2, "{operation:?}");
    for rejection in &operation.rejections {
        check("reasons", &rejection.reasons.join("; "), &["memory"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_to_a_full_node_or_one_that_is_down_is_refused() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(3, Bytes::mib(512)).await?;
    // 256 MiB of 512 on one node; 400 fit only on another one.
    create(&world.client, VmSpec { memory_bytes: 256 << 20, ..spec("mover") }).await?;
    create(&world.client, VmSpec { memory_bytes: 400 << 20, ..spec("filler") }).await?;
    let mover = world.client.get_vm("mover").await?;
    let full = world.client.get_vm("filler").await?.node_name;
    assert_ne!(mover.node_name, full);
    check("full", &refusal(migrate(&world.client, "mover", &full).await), &["target_node", &full, "memory"]);

    let spare = (0..3).find(|node| {
        let name = world.cluster.node_name(*node);
        name != full && name != mover.node_name
    });
    let spare = spare.expect("three nodes, two of them used");
    world.cluster.kill_node(spare)?;
    let down = world.cluster.node_name(spare);
    eventually_async("the node to be seen as down", LEASE_DEADLINE, || async {
        Ok((world.client.get_node(&down).await?.state() != NodeState::Ready).then_some(()))
    })
    .await?;
    check("down", &refusal(migrate(&world.client, "mover", &down).await), &["target_node", &down]);

    let now = world.client.get_vm("mover").await?;
    assert_eq!((now.node_id, now.owner_epoch), (mover.node_id, mover.owner_epoch), "the VM moved");
    finish(&world.client, world.client.delete_vm("mover").await?).await?;
    Ok(())
}
