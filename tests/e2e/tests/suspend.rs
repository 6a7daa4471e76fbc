//! A VM that is suspended and resumed through the control plane: one guest, in one life, and never beside its own disks.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests wait for processes, with deadlines")]

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, time::Duration};

use drover_client::api::{Vm, VmPhase};
use drover_e2e::World;
use drover_probe_record::{DirtyWork, DiskWork, Workload};
use drover_test_framework::{
    eventually, eventually_async, ledger,
    observer::OwnershipObserver,
    probe_vm::{Launch, ProbeVm, STEP_DEADLINE, finish},
};
use drover_units::Bytes;

const WRITES: u64 = 50;

/// Where a VM's memory is on its node.
fn file(world: &World, vm: &ProbeVm) -> PathBuf {
    let node = world.cluster.node_index(&vm.vm.node_name).expect("the VM was on one of the nodes");
    world.cluster.node_folder(node).join("suspended").join(format!("{}.vm", vm.vm.id))
}

async fn start(world: &World, vm: &ProbeVm) -> anyhow::Result<Vm> {
    finish(&world.client, world.client.start_vm(vm.name()).await?).await?;
    let now = world.client.get_vm(vm.name()).await?;
    assert_eq!(now.phase(), VmPhase::Running, "{now:?}");
    Ok(now)
}

fn gone(world: &World, vm: &ProbeVm) -> anyhow::Result<()> {
    let path = file(world, vm);
    eventually("the file's removal", STEP_DEADLINE, || Ok((!path.exists()).then_some(())))
}

async fn stop_and_judge(world: &World, vm: &ProbeVm, lives: usize) -> anyhow::Result<()> {
    finish(&world.client, world.client.stop_vm(vm.name()).await?).await?;
    let verdict = ledger::judge(&world.cluster, &vm.subject)?;
    assert!(verdict.acked() > 0, "nothing was written");
    assert_eq!(
        (verdict.lost(), verdict.double_writes(), verdict.bad_in_guest()),
        (0, 0, 0),
        "{}",
        verdict.disk
    );
    assert_eq!(verdict.disk.lives.len(), lives, "{}", verdict.disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_vm_goes_on_where_it_was_under_a_new_epoch() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(2, Bytes::gib(1)).await?;
    let vm = world.launch("sleeper", 1).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let suspended = world.client.suspend_vm(vm.name()).await?;
    assert_eq!((suspended.phase(), suspended.detail.as_str()), (VmPhase::Stopped, "suspended"));
    assert!(file(&world, &vm).exists());
    // Once more changes nothing.
    world.client.suspend_vm(vm.name()).await?;
    let now = start(&world, &vm).await?;
    assert_eq!(now.node_id, vm.vm.node_id);
    assert!(now.owner_epoch > vm.vm.owner_epoch);
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    gone(&world, &vm)?;
    assert_eq!(observer.double_owners(), 0);
    stop_and_judge(&world, &vm, 1).await?;

    // Whoever stops it discards its memory: its guest begins anew. And so does whoever deletes it.
    start(&world, &vm).await?;
    vm.wait_for_more_writes(&world.cluster, 1)?;
    world.client.suspend_vm(vm.name()).await?;
    finish(&world.client, world.client.stop_vm(vm.name()).await?).await?;
    gone(&world, &vm)?;
    start(&world, &vm).await?;
    vm.wait_for_more_writes(&world.cluster, 1)?;
    stop_and_judge(&world, &vm, 3).await?;
    start(&world, &vm).await?;
    vm.wait_for_more_writes(&world.cluster, 1)?;
    world.client.suspend_vm(vm.name()).await?;

    // A memory that is damaged is none: it starts from its disks.
    File::options().write(true).open(file(&world, &vm))?.write_all_at(b"damaged", 0)?;
    start(&world, &vm).await?;
    vm.wait_for_more_writes(&world.cluster, 1)?;
    gone(&world, &vm)?;
    stop_and_judge(&world, &vm, 5).await?;

    start(&world, &vm).await?;
    world.client.suspend_vm(vm.name()).await?;
    assert!(file(&world, &vm).exists());
    finish(&world.client, world.client.delete_vm(vm.name()).await?).await?;
    gone(&world, &vm)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_vm_whose_node_is_gone_starts_from_its_disks_elsewhere() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(2, Bytes::gib(1)).await?;
    let vm = world.launch("sleeper", 1).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    world.client.suspend_vm(vm.name()).await?;
    let node = world.cluster.node_index(&vm.vm.node_name).expect("the VM was on one of the nodes");
    world.cluster.kill_node(node)?;
    // Until the node is given up, the start may wait for it.
    let now = start(&world, &vm).await?;
    assert_ne!(now.node_id, vm.vm.node_id);
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    // Its node comes back with a memory that nobody will ask for.
    assert!(file(&world, &vm).exists());
    world.cluster.start_agent(node)?;
    gone(&world, &vm)?;
    stop_and_judge(&world, &vm, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_suspended_vm_has_what_its_guest_was_promised_and_does_not_cost_its_memory()
-> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(1, Bytes::gib(1)).await?;
    let vm = world.launch("sleeper", 1).await?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    world.client.suspend_vm(vm.name()).await?;
    // Its disks are as after a power failure: nothing that was acknowledged is in its memory only.
    let verdict = ledger::judge(&world.cluster, &vm.subject)?;
    assert_eq!((verdict.lost(), verdict.double_writes()), (0, 0), "{}", verdict.disk);
    let volume = world.cluster.volume_path(&vm.subject.volume_id);
    let then = std::fs::read(&volume)?;
    finish(&world.client, world.client.create_vm_snapshot(vm.name(), "asleep").await?).await?;
    let refused = world.client.rollback_vm_snapshot(vm.name(), "asleep").await.unwrap_err();
    assert!(refused.to_string().contains("is suspended"), "{refused}");
    assert_eq!(std::fs::read(&volume)?, then);

    start(&world, &vm).await?;
    vm.wait_for_more_writes(&world.cluster, WRITES)?;
    stop_and_judge(&world, &vm, 1).await?;
    assert_ne!(std::fs::read(&volume)?, then);
    finish(&world.client, world.client.rollback_vm_snapshot(vm.name(), "asleep").await?).await?;
    assert_eq!(std::fs::read(&volume)?, then, "as it was when it was suspended");
    start(&world, &vm).await?;
    Ok(())
}

/// What came of a suspension whose agent died while the VM was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unseen {
    /// The VM is in its file, and nobody knows.
    InItsFile,
    /// The agent was quicker, and has told.
    Told,
    /// The host was so slow that the lease ran out before the file was written.
    Ended,
}

async fn suspend_unseen(world: &mut World, vm: &ProbeVm) -> anyhow::Result<Unseen> {
    let client = world.cluster.client().await?;
    let name = vm.name().to_owned();
    let path = file(world, vm);
    let suspending = tokio::spawn(async move {
        let answer = tokio::time::timeout(Duration::from_secs(5), client.suspend_vm(&name)).await;
        eprintln!("suspending, while the agent goes away: {answer:?}");
    });
    eventually("a file that is being written", STEP_DEADLINE, || {
        Ok(std::fs::metadata(&path).ok().filter(|file| file.len() > 0).map(|_| ()))
    })?;
    world.cluster.kill_agent(0)?;
    let written = eventually("the file, or the end", STEP_DEADLINE, || {
        let mut magic = [0; 8];
        File::open(&path)?.read_exact_at(&mut magic, 0)?;
        let written = magic != [0; 8];
        Ok((written || world.cluster.vmmds(0).is_empty()).then_some(written))
    })?;
    suspending.await?;
    let now = world.client.get_vm(vm.name()).await?;
    Ok(match written {
        _ if now.phase() == VmPhase::Stopped => Unseen::Told,
        true => Unseen::InItsFile,
        false => Unseen::Ended,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_suspended_while_its_agent_was_away_is_found_however_long_that_was() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(1, Bytes::gib(1)).await?;
    let workload = Workload {
        seed: 5,
        heartbeat_ms: Some(10),
        disk: Some(DiskWork { slots: 4096, iops: 200, queue_depth: 4 }),
        dirty: Some(DirtyWork { mib: 64, mib_per_s: 1000 }),
        ..Workload::default()
    };
    let launch = Launch { name: "sleeper".to_owned(), workload, group: String::new(), vcpus: 1 };
    let vm = ProbeVm::launch(&world.cluster, &world.client, launch).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    let (mut lives, mut tries) = (1, 0);
    for is_given_up in [false, true] {
        loop {
            tries += 1;
            assert!(tries <= 8, "the host is too slow or too fast for this test");
            let outcome = suspend_unseen(&mut world, &vm).await?;
            if !is_given_up {
                // As if it had waited in vain for somebody to read its last words.
                world.cluster.vmmds(0).iter().for_each(|vmmd| _ = vmmd.kill_9());
            }
            // Otherwise it waits longer than it takes until the node is given up.
            eventually("the process's end", STEP_DEADLINE, || {
                Ok(world.cluster.vmmds(0).is_empty().then_some(()))
            })?;
            world.cluster.start_agent(0)?;
            let enough = ledger::console(&world.cluster, &vm.subject.vm_id)?.acked_max() + WRITES;
            eventually_async("a VM that writes again", STEP_DEADLINE, || async {
                if world.client.get_vm(vm.name()).await?.phase() == VmPhase::Stopped {
                    finish(&world.client, world.client.start_vm(vm.name()).await?).await?;
                }
                let acked = ledger::console(&world.cluster, &vm.subject.vm_id)?.acked_max();
                Ok((acked >= enough).then_some(()))
            })
            .await?;
            match outcome {
                Unseen::InItsFile => break,
                Unseen::Told => {}
                Unseen::Ended => lives += 1,
            }
        }
    }
    assert_eq!(observer.double_owners(), 0);
    gone(&world, &vm)?;
    stop_and_judge(&world, &vm, lives).await
}

/// Who dies while a VM is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Vmmd,
    Agent,
    ControlPlane,
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_while_a_vm_is_suspended_its_guest_is_somewhere_once() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let mut world = World::start(1, Bytes::gib(1)).await?;
    let workload = Workload {
        seed: 3,
        heartbeat_ms: Some(10),
        disk: Some(DiskWork { slots: 4096, iops: 200, queue_depth: 4 }),
        dirty: Some(DirtyWork { mib: 128, mib_per_s: 2000 }),
        ..Workload::default()
    };
    let launch = Launch { name: "large".to_owned(), workload, group: String::new(), vcpus: 1 };
    let vm = ProbeVm::launch(&world.cluster, &world.client, launch).await?;
    let observer = OwnershipObserver::start(world.cluster.folder())?;
    vm.wait_for_writes(&world.cluster, WRITES)?;
    for victim in [Victim::Vmmd, Victim::Agent, Victim::ControlPlane] {
        let client = world.cluster.client().await?;
        let name = vm.name().to_owned();
        let suspending = tokio::spawn(async move {
            let answer = client.suspend_vm(&name);
            tokio::time::timeout(Duration::from_secs(5), answer).await
        });
        let path = file(&world, &vm);
        eventually("a file that is being written", STEP_DEADLINE, || {
            Ok(std::fs::metadata(&path).ok().filter(|file| file.len() > 0).map(|_| ()))
        })?;
        match victim {
            Victim::Vmmd => world.cluster.vmmds(0).iter().for_each(|vmmd| _ = vmmd.kill_9()),
            Victim::Agent => {
                world.cluster.kill_agent(0)?;
                world.cluster.start_agent(0)?;
            }
            Victim::ControlPlane => {
                world.cluster.kill_control_plane()?;
                world.cluster.start_control_plane()?;
            }
        }
        // Whatever becomes of it, now or when it has been written: it can be asked to run.
        let _ = suspending.await?;
        let name = vm.name().to_owned();
        world.client = world.cluster.client().await?;
        let enough = ledger::console(&world.cluster, &vm.subject.vm_id)?.acked_max() + WRITES;
        eventually_async("a VM that writes again", STEP_DEADLINE, || async {
            let now = world.client.get_vm(&name).await?;
            if now.phase() == VmPhase::Stopped {
                finish(&world.client, world.client.start_vm(&name).await?).await?;
            }
            let acked = ledger::console(&world.cluster, &vm.subject.vm_id)?.acked_max();
            Ok((acked >= enough).then_some(()))
        })
        .await?;
    }
    assert_eq!(observer.double_owners(), 0);
    finish(&world.client, world.client.stop_vm(vm.name()).await?).await?;
    let verdict = ledger::judge(&world.cluster, &vm.subject)?;
    assert_eq!(
        (verdict.lost(), verdict.double_writes(), verdict.bad_in_guest()),
        (0, 0, 0),
        "{}",
        verdict.disk
    );
    assert!(verdict.disk.lives.len() <= 4, "{}", verdict.disk);
    Ok(())
}
