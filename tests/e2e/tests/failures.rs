//! What dies, and what that does to VMs: nothing, or a restart with a new epoch and evidence.
#![forbid(unsafe_code)]

use drover_client::{
    Waited,
    api::{MigrateVmRequest, NodeState, Vm, VmPhase},
};
use drover_e2e::{LEASE_DEADLINE, World};
use drover_test_framework::{
    VmmdProcess, eventually_async,
    ledger::{self, Subject},
    observer::OwnershipObserver,
    probe_vm::{ProbeVm, finish},
};
use drover_units::Bytes;

const WRITES: u64 = 50;

fn judge_clean(world: &World, subject: &Subject) -> anyhow::Result<()> {
    let verdict = ledger::judge(&world.cluster, subject)?;
    assert!(verdict.acked() > 0, "nothing was written");
    assert_eq!(verdict.lost(), 0, "{}", verdict.disk);
    assert_eq!(verdict.double_writes(), 0, "{}", verdict.disk);
    assert_eq!(verdict.bad_in_guest(), 0, "the guest found damage");
    Ok(())
}

async fn stop_and_judge(world: &World, vm: &ProbeVm) -> anyhow::Result<()> {
    finish(&world.client, world.client.stop_vm(vm.name()).await?).await?;
    judge_clean(world, &vm.subject)
}

async fn restarted(world: &World, before: &Vm) -> anyhow::Result<Vm> {
    eventually_async("the VM to run with a newer epoch", LEASE_DEADLINE, || async {
        let vm = world.client.get_vm(&before.id).await?;
        let newer = vm.phase() == VmPhase::Running && vm.owner_epoch > before.owner_epoch;
        Ok(newer.then_some(vm))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_does_not_stop_its_vms() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(1, Bytes::gib(1)).await?;
    let vm = world.launch("steady", 1).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    world.cluster.kill_agent(0)?;
    world.cluster.start_agent(0)?;
    world.all_nodes_ready().await?;
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    let now = world.client.get_vm(vm.name()).await?;
    assert_eq!((now.pid, now.owner_epoch, now.restarts), (vm.vm.pid, vm.vm.owner_epoch, 0));
    stop_and_judge(&world, &vm).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_restarts_does_not_stop_vms_and_still_knows_them() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(1, Bytes::gib(1)).await?;
    let vm = world.launch("steady", 1).await?;
    world.cluster.kill_control_plane()?;
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    world.cluster.start_control_plane()?;
    world.all_nodes_ready().await?;
    let now = world.client.get_vm(vm.name()).await?;
    assert_eq!((now.phase(), now.pid, now.restarts), (VmPhase::Running, vm.vm.pid, 0));
    stop_and_judge(&world, &vm).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmmd_that_dies_is_restarted_with_evidence_and_others_do_not_notice() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(2, Bytes::gib(1)).await?;
    let (victim, other) = (world.launch("victim", 1).await?, world.launch("other", 2).await?);
    victim.wait_for_writes(&world.cluster, WRITES)?;
    for process in world.cluster.all_vmmds() {
        if u64::from(process.pid) == victim.vm.pid {
            process.kill_9()?;
        }
    }
    let now = restarted(&world, &victim.vm).await?;
    assert_eq!(now.restarts, 1);
    assert!(now.last_fence_evidence.contains("process"), "{}", now.last_fence_evidence);
    victim.wait_for_more_writes(&world.cluster, WRITES)?;
    let untouched = world.client.get_vm(other.name()).await?;
    assert_eq!((untouched.pid, untouched.restarts), (other.vm.pid, 0));
    stop_and_judge(&world, &victim).await?;
    stop_and_judge(&world, &other).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_is_fenced_and_its_vm_runs_elsewhere() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(2, Bytes::gib(1)).await?;
    let vm = world.launch("precious", 1).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let node = world.cluster.node_index(&vm.vm.node_name).expect("the VM is on one of the nodes");
    world.cluster.kill_node(node)?;
    let now = restarted(&world, &vm.vm).await?;
    assert_ne!(now.node_id, vm.vm.node_id);
    assert!(now.last_fence_evidence.contains("lease"), "{}", now.last_fence_evidence);
    assert!(now.last_fence_evidence.contains(&vm.subject.volume_id), "{}", now.last_fence_evidence);
    eventually_async("the node to be fenced", LEASE_DEADLINE, || async {
        let state = world.client.get_node(&vm.vm.node_id).await?.state();
        Ok((state == NodeState::Fenced).then_some(()))
    })
    .await?;
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    world.cluster.start_agent(node)?;
    world.all_nodes_ready().await?;
    assert_eq!(observer.double_owners(), 0);
    stop_and_judge(&world, &vm).await
}

/// The agent is gone for good, its vmmd lives on: the vmmd ends itself, so that the VM may run elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_vmmd_whose_agent_stays_away_fences_itself_before_the_vm_runs_elsewhere() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(2, Bytes::gib(1)).await?;
    let vm = world.launch("orphan", 1).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    let node = world.cluster.node_index(&vm.vm.node_name).expect("the VM is on one of the nodes");
    world.cluster.kill_agent(node)?;
    let now = restarted(&world, &vm.vm).await?;
    assert_ne!(now.node_id, vm.vm.node_id);
    let left: Vec<VmmdProcess> = world.cluster.vmmds(node);
    assert!(left.is_empty(), "still there: {left:?}");
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    assert_eq!(observer.double_owners(), 0);
    stop_and_judge(&world, &vm).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_moves_ten_times_loses_nothing_and_is_never_restarted() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(2, Bytes::gib(1)).await?;
    let vm = world.launch("nomad", 1).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    let mut node = vm.vm.node_id.clone();
    for hop in 1..=10 {
        let request = MigrateVmRequest { vm: vm.name().to_owned(), ..MigrateVmRequest::default() };
        let operation = world.client.migrate_vm(request).await?;
        world.client.wait_operation(&operation.id, Waited::at_most(LEASE_DEADLINE), |_| {}).await?;
        let now = world.client.get_vm(vm.name()).await?;
        assert_ne!(now.node_id, node, "hop {hop} went nowhere");
        node = now.node_id;
        vm.wait_for_more_writes(&world.cluster, WRITES)?;
    }
    let now = world.client.get_vm(vm.name()).await?;
    assert_eq!(now.restarts, 0);
    assert_eq!(ledger::console(&world.cluster, &now.id)?.lives.len(), 1, "the guest was booted again");
    assert_eq!(observer.double_owners(), 0);
    stop_and_judge(&world, &vm).await
}
