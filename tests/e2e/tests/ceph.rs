//! VMs whose disks are in Ceph: fenced, restarted and moved by the whole system.
//!
//! The short form is part of `cargo xtask test`; `cargo xtask test --ceph` sets `DROVER_CEPH_LONG`, which makes it long.
#![forbid(unsafe_code)]

use drover_client::api::{MigrateVmRequest, NodeState, Vm, VmPhase};
use drover_e2e::{LEASE_DEADLINE, World};
use drover_test_framework::{
    VmmdProcess,
    ceph_cluster::{CephOptions, Daemon},
    eventually_async,
    ledger::{self, Subject},
    observer::OwnershipObserver,
    probe_vm::{ProbeVm, finish},
};
use drover_units::Bytes;

const WRITES: u64 = 50;

fn ready() -> bool {
    drover_test_prerequisites::kvm() && drover_test_prerequisites::ceph()
}

fn judge_clean(world: &World, subject: &Subject) -> anyhow::Result<()> {
    let verdict = ledger::judge(&world.cluster, subject)?;
    assert!(verdict.acked() > 0, "nothing was written");
    assert_eq!(verdict.lost(), 0, "{}", verdict.disk);
    assert_eq!(verdict.double_writes(), 0, "{}", verdict.disk);
    assert_eq!(verdict.bad_in_guest(), 0, "the guest found damage");
    Ok(())
}

/// Stops and judges the VM, gives everything back, and looks whether anything is left in Ceph.
async fn ends_clean(world: World, vm: &ProbeVm) -> anyhow::Result<()> {
    finish(&world.client, world.client.stop_vm(vm.name()).await?).await?;
    judge_clean(&world, &vm.subject)?;
    finish(&world.client, world.client.delete_vm(vm.name()).await?).await?;
    world.client.delete_volume(&vm.subject.volume_id).await?;
    let ceph = world.cluster.ceph()?;
    // The control plane lets the fenced in again by itself, once their nodes have said that they are gone.
    eventually_async("nothing to be left in Ceph", LEASE_DEADLINE, || async {
        let leaks = ceph.leaks()?;
        Ok(leaks.is_empty().then_some(()))
    })
    .await?;
    Ok(())
}

async fn restarted(world: &World, before: &Vm) -> anyhow::Result<Vm> {
    eventually_async("the VM to run with a newer epoch", LEASE_DEADLINE, || async {
        let vm = world.client.get_vm(&before.id).await?;
        let newer = vm.phase() == VmPhase::Running && vm.owner_epoch > before.owner_epoch;
        Ok(newer.then_some(vm))
    })
    .await
}

/// The node of a VM dies as far as anybody can see, but its vmmd is only stopped: it wakes up when its VM runs elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_vmmd_that_was_stopped_and_fenced_wakes_up_to_nothing() -> anyhow::Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut world = World::start_on_ceph(2, Bytes::gib(1), &CephOptions::default()).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    let vm = world.launch("sleeper", 1).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let node = world.cluster.node_index(&vm.vm.node_name).expect("a node of this cluster");
    let old = world.cluster.vmmds(node);
    old.iter().try_for_each(VmmdProcess::stop)?;
    world.cluster.kill_agent(node)?;

    let now = restarted(&world, &vm.vm).await?;
    assert!(now.last_fence_evidence.contains("blocklisted"), "{}", now.last_fence_evidence);
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    old.iter().try_for_each(VmmdProcess::cont)?;
    eventually_async("the old process to end by itself", LEASE_DEADLINE, || async {
        Ok(world.cluster.vmmds(node).is_empty().then_some(()))
    })
    .await?;
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    assert_eq!(observer.double_owners(), 0);
    world.cluster.start_agent(node)?;
    world.all_nodes_ready().await?;
    ends_clean(world, &vm).await
}

/// kill -9 of one vmmd: the lock it leaves behind keeps nobody waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_vmmd_that_dies_is_fenced_and_restarted_at_once() -> anyhow::Result<()> {
    if !ready() {
        return Ok(());
    }
    let world = World::start_on_ceph(2, Bytes::gib(1), &CephOptions::default()).await?;
    let vm = world.launch("crashing", 2).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let node = world.cluster.node_index(&vm.vm.node_name).expect("a node of this cluster");
    world.cluster.vmmds(node).iter().try_for_each(VmmdProcess::kill_9)?;
    let now = restarted(&world, &vm.vm).await?;
    assert!(now.last_fence_evidence.contains("storage-fenced"), "{}", now.last_fence_evidence);
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    ends_clean(world, &vm).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_moves_back_and_forth_while_an_osd_dies_and_the_control_plane_restarts() -> anyhow::Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut world = World::start_on_ceph(2, Bytes::gib(1), &CephOptions::three_osds()).await?;
    let vm = world.launch("mover", 3).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let moves = if std::env::var_os("DROVER_CEPH_LONG").is_some() { 50 } else { 5 };
    for round in 0..moves {
        match round {
            1 => world.cluster.ceph()?.kill(Daemon::Osd(2))?,
            2 => {
                world.cluster.ceph()?.spawn(Daemon::Osd(2))?;
                world.cluster.ceph()?.wait_up(Daemon::Osd(2))?;
            }
            3 => {
                world.cluster.kill_control_plane()?;
                world.cluster.start_control_plane()?;
                world.all_nodes_ready().await?;
            }
            _ => {}
        }
        let request = MigrateVmRequest { vm: vm.name().to_owned(), ..MigrateVmRequest::default() };
        let operation = world.client.migrate_vm(request).await?;
        finish(&world.client, operation).await?;
        vm.wait_for_more_writes(&world.cluster, 5)?;
    }
    let now = world.client.get_vm(vm.name()).await?;
    assert_eq!(now.restarts, 0, "it moved, and was not restarted");
    ends_clean(world, &vm).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_has_its_clients_let_in_again() -> anyhow::Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut world = World::start_on_ceph(2, Bytes::gib(1), &CephOptions::default()).await?;
    let vm = world.launch("survivor", 4).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let node = world.cluster.node_index(&vm.vm.node_name).expect("a node of this cluster");
    world.cluster.kill_node(node)?;
    restarted(&world, &vm.vm).await?;
    let fenced = world.cluster.ceph()?.leaks()?.blocklist;
    assert!(!fenced.is_empty(), "the dead node's process is refused");
    // Over a restart of the control plane, too: what is refused is in its store.
    world.cluster.kill_control_plane()?;
    world.cluster.start_control_plane()?;
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    assert!(!world.cluster.ceph()?.leaks()?.blocklist.is_empty(), "for as long as the node is away");
    world.cluster.start_agent(node)?;
    eventually_async("the node to be ready", LEASE_DEADLINE, || async {
        let state = world.client.get_node(&vm.vm.node_id).await?.state();
        Ok((state == NodeState::Ready).then_some(()))
    })
    .await?;
    ends_clean(world, &vm).await
}
