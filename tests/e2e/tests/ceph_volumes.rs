//! Several volumes of one VM in Ceph, and storage that does not answer: what clients can ask of both.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Context as _;
use drover_client::{
    Client,
    api::{Operation, SnapshotName, Vm, VmPhase, VmSpec},
    vm_api::{StallAction, StallPolicy},
};
use drover_e2e::{LEASE_DEADLINE, World};
use drover_probe_record::{Claim, OrderedWork, Workload, stamp::Slots, verify_image};
use drover_test_framework::{
    ceph_cluster::{CephOptions, Daemon},
    eventually_async, ledger,
    probe_vm::{IMAGE, STEP_DEADLINE, create_volume, finish},
};
use drover_units::Bytes;

/// Few, so that each is written again and again.
const SLOTS: u64 = 64;
const SEED: u64 = 0x0de2;
const DISKS: [&str; 2] = ["first", "second"];

fn ready() -> bool {
    drover_test_prerequisites::kvm() && drover_test_prerequisites::ceph()
}

/// A VM that writes each number to its first disk, then to its second, then the next one.
struct Ordered {
    vm: Vm,
    volumes: Vec<String>,
}

impl Ordered {
    async fn launch(world: &World, name: &str, stall: Option<StallPolicy>) -> anyhow::Result<Self> {
        let mut volumes = Vec::new();
        for disk in DISKS {
            let volume = create_volume(&world.cluster, &world.client, disk, Bytes::mib(8)).await?;
            volumes.push(volume.id);
        }
        let work = OrderedWork { slots: SLOTS, iops: 0 };
        let workload =
            Workload { seed: SEED, heartbeat_ms: Some(10), ordered: Some(work), ..Workload::default() };
        let spec = VmSpec {
            name: name.to_owned(),
            vcpus: 1,
            memory_bytes: Bytes::mib(64).get(),
            image: IMAGE.to_owned(),
            cmdline: workload.to_string(),
            volumes: volumes.clone(),
            stall,
            ..VmSpec::default()
        };
        finish(&world.client, world.client.create_vm(spec).await?).await?;
        let vm = world.client.get_vm(name).await?;
        Ok(Self { vm, volumes })
    }

    fn written(&self, world: &World) -> anyhow::Result<u64> {
        Ok(ledger::console(&world.cluster, &self.vm.id)?.acked_max())
    }

    async fn writes_more(&self, world: &World) -> anyhow::Result<()> {
        let now = self.written(world)?;
        eventually_async("more writes", LEASE_DEADLINE, || async {
            Ok((self.written(world)? > now + 20).then_some(()))
        })
        .await
    }

    /// The highest number on each disk, or, as `@<snapshot>`, on what was kept of it.
    fn highest(&self, world: &World, kept: [&str; 2]) -> anyhow::Result<[u64; 2]> {
        let ceph = world.cluster.ceph()?;
        let folder = tempfile::tempdir()?;
        let mut highest = [0; 2];
        for ((of, kept), highest) in self.volumes.iter().zip(kept).zip(&mut highest) {
            let copy = folder.path().join(of);
            ceph.export(&format!("{}/volume-{of}{kept}", ceph.pool()), &copy)?;
            let slots = Slots { seed: SEED, count: SLOTS };
            let seen = verify_image(&copy, &Claim { slots, acked_max: 0 })?.max_seq;
            // All numbers up to the highest, as far as later ones have left them.
            let report = verify_image(&copy, &Claim { slots, acked_max: seen })?;
            assert!(report.is_clean(), "{report}");
            *highest = seen;
        }
        Ok(highest)
    }

    /// The second disk never has what the first has not, and lacks at most the last number.
    fn is_of_one_moment([first, second]: [u64; 2]) -> bool {
        second <= first && first <= second + 1
    }

    fn judge(&self, world: &World, snapshot: &str) -> anyhow::Result<[u64; 2]> {
        let kept = format!("@{snapshot}");
        let highest = self.highest(world, [&kept; 2])?;
        assert!(Self::is_of_one_moment(highest) && highest[1] > 0, "{highest:?}");
        Ok(highest)
    }
}

async fn kept(client: &Client, vm: &str, name: &str) -> anyhow::Result<(String, Operation)> {
    let operation = finish(client, client.create_vm_snapshot(vm, name).await?).await?;
    Ok((id_of(client, vm, name).await?, operation))
}

async fn id_of(client: &Client, vm: &str, name: &str) -> anyhow::Result<String> {
    let found = client.list_vm_snapshots(Some(vm)).await?;
    let found = found.into_iter().find(|snapshot| snapshot.name == name).context("it is listed")?;
    assert_eq!((found.parts.len(), found.part_count), (2, 2));
    Ok(found.id)
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_are_kept_together_are_of_one_moment() -> anyhow::Result<()> {
    if !ready() {
        return Ok(());
    }
    let mut world = World::start_on_ceph(1, Bytes::gib(1), &CephOptions::default()).await?;
    let vm = Ordered::launch(&world, "pair", None).await?;
    vm.writes_more(&world).await?;
    let rounds = if std::env::var_os("DROVER_CEPH_LONG").is_some() { 50 } else { 6 };
    let mut held = Vec::new();
    for round in 0..rounds {
        let (id, operation) = kept(&world.client, "pair", &format!("round-{round}")).await?;
        let hold = operation.hold.context("the VM ran, so it was held")?;
        assert!(hold.lasted_us >= hold.drained_us);
        held.push(hold.lasted_us);
        vm.judge(&world, &id)?;
        vm.writes_more(&world).await?;
    }
    held.sort_unstable();
    println!("VM held for a snapshot of 2 volumes, us: {held:?}, median {}", held[held.len() / 2]);

    // Volumes that are kept one after the other are not, and it shows.
    let mut alone = [String::new(), String::new()];
    for (of, alone) in vm.volumes.iter().zip(&mut alone) {
        let name = SnapshotName { volume: of.clone(), snapshot: "alone".to_owned() };
        finish(&world.client, world.client.create_snapshot(name).await?).await?;
        let found = world.client.list_snapshots(Some(of)).await?;
        let found = found.into_iter().find(|snapshot| snapshot.name == "alone").context("it is listed")?;
        *alone = format!("@{}", found.id);
        vm.writes_more(&world).await?;
    }
    let highest = vm.highest(&world, [&alone[0], &alone[1]])?;
    assert!(!Ordered::is_of_one_moment(highest), "the judge sees a difference: {highest:?}");

    // A control plane that is killed in between: its successor begins again.
    for (round, delay_ms) in [0, 15, 40, 80, 160].into_iter().enumerate() {
        let name = format!("killed-{round}");
        let begun = world.client.create_vm_snapshot("pair", &name).await?;
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        world.cluster.kill_control_plane()?;
        world.cluster.start_control_plane()?;
        world.all_nodes_ready().await?;
        finish(&world.client, begun).await?;
        vm.judge(&world, &id_of(&world.client, "pair", &name).await?)?;
        vm.writes_more(&world).await?;
    }
    ends_clean(world, vm, rounds).await
}

/// Goes back to one of the snapshots, and leaves nothing.
async fn ends_clean(world: World, vm: Ordered, rounds: usize) -> anyhow::Result<()> {
    let client = &world.client;
    let first = id_of(client, "pair", "round-0").await?;
    let expect = vm.judge(&world, &first)?;
    let runs = client.rollback_vm_snapshot("pair", "round-0").await.expect_err("the VM runs");
    assert!(runs.to_string().contains("VM 'pair' runs"), "{runs}");
    finish(client, client.stop_vm("pair").await?).await?;
    finish(client, client.rollback_vm_snapshot("pair", "round-0").await?).await?;
    assert_eq!(vm.highest(&world, [""; 2])?, expect);
    let listed = client.list_vm_snapshots(None).await?;
    assert_eq!(listed.len(), rounds + 5);
    for snapshot in listed {
        finish(client, client.delete_vm_snapshot("pair", &snapshot.name).await?).await?;
    }
    for of in &vm.volumes {
        let alone = SnapshotName { volume: of.clone(), snapshot: "alone".to_owned() };
        finish(client, client.delete_snapshot(alone).await?).await?;
    }
    finish(client, client.delete_vm("pair").await?).await?;
    for of in &vm.volumes {
        client.delete_volume(of).await?;
    }
    eventually_async("nothing to be left in Ceph", LEASE_DEADLINE, || async {
        Ok(world.cluster.ceph()?.leaks()?.is_empty().then_some(()))
    })
    .await
}

/// What a client says becomes of a VM whose storage does not answer reaches vmmd.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_stands_still_while_its_storage_is_away_if_its_owner_wants_that() -> anyhow::Result<()> {
    if !ready() {
        return Ok(());
    }
    let world = World::start_on_ceph(1, Bytes::gib(1), &CephOptions::default()).await?;
    let stall = StallPolicy { deadline_ms: 1000, action: StallAction::Pause.into() };
    let vm = Ordered::launch(&world, "calm", Some(stall)).await?;
    assert_eq!(vm.vm.spec.as_ref().and_then(|spec| spec.stall), Some(stall));
    vm.writes_more(&world).await?;
    world.cluster.ceph()?.kill(Daemon::Osd(0))?;
    eventually_async("the stall to be told", STEP_DEADLINE, || async {
        let events = world.client.list_events(0, Some("calm")).await?;
        Ok(events.iter().any(|event| event.kind == "vm.storage-stalled").then_some(()))
    })
    .await?;
    let beats = || Ok::<_, anyhow::Error>(ledger::console(&world.cluster, &vm.vm.id)?.heartbeats());
    // It stands shortly after that: then a hundred of its heartbeats fail to come.
    eventually_async("its clock to stand still", STEP_DEADLINE, || async {
        let before = beats()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok((beats()? == before).then_some(()))
    })
    .await?;
    world.cluster.ceph()?.spawn(Daemon::Osd(0))?;
    world.cluster.ceph()?.wait_up(Daemon::Osd(0))?;
    vm.writes_more(&world).await?;
    let now = world.client.get_vm("calm").await?;
    assert_eq!((now.phase(), now.restarts), (VmPhase::Running, 0));
    finish(&world.client, world.client.delete_vm("calm").await?).await?;
    Ok(())
}
