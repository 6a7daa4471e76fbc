//! Twenty SIGKILLs at seeded moments: of the control plane, of agents, of vmmds, while VMs are moved, created and deleted. After
//! each the state converges; at the end no acknowledged write is lost and no VM has ever run twice.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "the seed and the story are what one needs to see of a failure")]

use std::{collections::BTreeSet, env, time::Duration};

use anyhow::Context as _;
use drover_client::{
    Client,
    api::{MigrateVmRequest, Operation, VmPhase, VmSpec},
    has_ended,
};
use drover_e2e::World;
use drover_test_framework::{
    VmmdProcess, eventually_async, ledger,
    observer::OwnershipObserver,
    probe_vm::{IMAGE, ProbeVm, STEP_DEADLINE, finish},
};
use fastrand::Rng;

const KILLS: u32 = 20;
/// Repeats a run: `DROVER_SEED=7 cargo test …`.
const SEED_VARIABLE: &str = "DROVER_SEED";
const SEED_DEFAULT: u64 = 20_261_122;
/// Writes that each guest must get done after each kill.
const WRITES_AFTER_EACH: u64 = 20;
/// The kill comes this long after the work has begun, at most: a migration or a start takes about as long.
const LATEST_KILL: Duration = Duration::from_millis(400);
/// A process that is restarted by its supervisor is away this long, at most; within the lease.
const LONGEST_ABSENCE: Duration = Duration::from_millis(800);

/// What is in flight when the kill comes.
#[derive(Clone, Copy, Debug)]
enum Work {
    Nothing,
    Migrate(usize),
    StopAndStart(usize),
    CreateAndDelete,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    ControlPlane,
    Agent(usize),
    Vmmd(usize),
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_nothing_and_run_nothing_twice() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let seed = env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(SEED_DEFAULT);
    eprintln!("{SEED_VARIABLE}={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut world = World::start(3, drover_units::Bytes::gib(1)).await?;
    let vms = [world.launch("chaos-a", 1).await?, world.launch("chaos-b", 2).await?];
    let observer = OwnershipObserver::start(world.cluster.folder())?;

    for kill in 1..=KILLS {
        let work = choose_work(&mut rng);
        let victim = choose_victim(&mut rng, world.cluster.nodes());
        let moment = LATEST_KILL.mul_f64(rng.f64());
        let absence = LONGEST_ABSENCE.mul_f64(rng.f64());
        eprintln!("kill {kill}: {victim:?} {moment:?} into {work:?}, back after {absence:?}");
        let operation = begin(&world.client, work, &vms, kill).await?;
        tokio::time::sleep(moment).await;
        strike(&mut world, victim, &vms, absence).await?;
        converge(&mut world, operation, &vms).await.with_context(|| {
            format!("after kill {kill} ({victim:?} {moment:?} into {work:?}), seed {seed}")
        })?;
        clean_up(&world.client, work, &vms, kill).await?;
        assert_eq!(observer.double_owners(), 0, "a VM ran twice after kill {kill}, seed {seed}");
    }

    for vm in &vms {
        finish(&world.client, world.client.stop_vm(vm.name()).await?).await?;
        let verdict = ledger::judge(&world.cluster, &vm.subject)?;
        eprintln!("{}: {} acknowledged; {}", vm.name(), verdict.acked(), verdict.disk);
        assert!(verdict.acked() > 0, "{} wrote nothing", vm.name());
        assert_eq!(verdict.lost(), 0, "seed {seed}: {}", verdict.disk);
        assert_eq!(verdict.double_writes(), 0, "seed {seed}: {}", verdict.disk);
        assert_eq!(verdict.bad_in_guest(), 0, "seed {seed}: the guest found damage");
    }
    assert!(observer.rounds() > 0, "nobody was observing");
    Ok(())
}

fn choose_work(rng: &mut Rng) -> Work {
    match rng.u8(0..5) {
        0 => Work::Nothing,
        1 | 2 => Work::Migrate(rng.usize(0..2)),
        3 => Work::StopAndStart(rng.usize(0..2)),
        _ => Work::CreateAndDelete,
    }
}

fn choose_victim(rng: &mut Rng, nodes: usize) -> Victim {
    match rng.u8(0..3) {
        0 => Victim::ControlPlane,
        1 => Victim::Agent(rng.usize(0..nodes)),
        _ => Victim::Vmmd(rng.usize(0..2)),
    }
}

fn scratch_name(kill: u32) -> String {
    format!("scratch-{kill}")
}

async fn begin(client: &Client, work: Work, vms: &[ProbeVm], kill: u32) -> anyhow::Result<Option<Operation>> {
    Ok(match work {
        Work::Nothing => None,
        Work::Migrate(vm) => {
            let request = MigrateVmRequest { vm: vms[vm].name().to_owned(), ..MigrateVmRequest::default() };
            Some(client.migrate_vm(request).await?)
        }
        Work::StopAndStart(vm) => Some(client.stop_vm(vms[vm].name()).await?),
        Work::CreateAndDelete => {
            let spec = VmSpec {
                name: scratch_name(kill),
                vcpus: 1,
                memory_bytes: 32 << 20,
                image: IMAGE.to_owned(),
                cmdline: "probe.heartbeat=50".to_owned(),
                ..VmSpec::default()
            };
            Some(client.create_vm(spec).await?)
        }
    })
}

async fn strike(world: &mut World, victim: Victim, vms: &[ProbeVm], absence: Duration) -> anyhow::Result<()> {
    match victim {
        Victim::ControlPlane => {
            world.cluster.kill_control_plane()?;
            tokio::time::sleep(absence).await;
            world.cluster.start_control_plane()
        }
        Victim::Agent(node) => {
            world.cluster.kill_agent(node)?;
            tokio::time::sleep(absence).await;
            world.cluster.start_agent(node)
        }
        // In the middle of a migration there are two: both may die.
        Victim::Vmmd(vm) => processes(world, &vms[vm]).iter().try_for_each(VmmdProcess::kill_9),
    }
}

fn processes(world: &World, vm: &ProbeVm) -> Vec<VmmdProcess> {
    let mut all = world.cluster.all_vmmds();
    all.retain(|process| process.run_dir.components().any(|part| part.as_os_str() == &*vm.subject.vm_id));
    all
}

/// Waits until the operation has ended, every node is ready, every VM runs (in one process) and writes.
async fn converge(world: &mut World, operation: Option<Operation>, vms: &[ProbeVm]) -> anyhow::Result<()> {
    world.cluster.check_alive()?;
    if let Some(operation) = operation {
        eventually_async("the operation to end, well or not", STEP_DEADLINE, || async {
            let now = world.client.get_operation(&operation.id).await?;
            Ok(has_ended(&now).then_some(()))
        })
        .await?;
    }
    world.all_nodes_ready().await?;
    for vm in vms {
        // A stop that was in flight may have been done: start it again.
        if world.client.get_vm(vm.name()).await?.phase() == VmPhase::Stopped {
            finish(&world.client, world.client.start_vm(vm.name()).await?).await?;
        }
        eventually_async(&format!("{} to run in one process", vm.name()), STEP_DEADLINE, || async {
            let phase = world.client.get_vm(vm.name()).await?.phase();
            Ok((phase == VmPhase::Running && processes(world, vm).len() == 1).then_some(()))
        })
        .await?;
        vm.wait_for_more_writes(&world.cluster, WRITES_AFTER_EACH)?;
    }
    Ok(())
}

/// Deletes what the work created, and checks that nothing of it is left.
async fn clean_up(client: &Client, work: Work, vms: &[ProbeVm], kill: u32) -> anyhow::Result<()> {
    let scratch = scratch_name(kill);
    let names = |all: Vec<drover_client::api::Vm>| -> BTreeSet<String> {
        all.into_iter().filter_map(|vm| vm.spec).map(|spec| spec.name).collect()
    };
    if matches!(work, Work::CreateAndDelete) && names(client.list_vms().await?).contains(&scratch) {
        finish(client, client.delete_vm(&scratch).await?).await?;
    }
    let expected: BTreeSet<String> = vms.iter().map(|vm| vm.name().to_owned()).collect();
    assert_eq!(names(client.list_vms().await?), expected, "VMs that nobody asked for, or that are gone");
    Ok(())
}
