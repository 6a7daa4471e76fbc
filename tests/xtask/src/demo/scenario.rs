//! What happens in the demo, step by step.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use drover_client::{
    Client,
    api::{MigrateVmRequest, NodeState, Vm, VmPhase},
};
use drover_probe_record::{DirtyWork, DiskWork, Workload};
use drover_test_framework::{
    CephCluster, TestCluster, eventually, eventually_async,
    ledger::{self, Verdict},
    observer::OwnershipObserver,
    probe_vm::{Launch, ProbeVm, STEP_DEADLINE, finish, import_probe},
};
use drover_test_prerequisites::pss_beyond_guest_ram;
use drover_units::Bytes;

use super::report::{HaSummary, MigrationSummary, Summary, Timeline, rounded};

/// A volume of 64 MiB.
const SLOTS: u64 = 16_384;
/// What migration has to keep up with, in a guest of 256 MiB.
const DIRTY: DirtyWork = DirtyWork { mib: 128, mib_per_s: 64 };
/// The resolution with which the guest sees its own blackouts.
const HEARTBEAT_MS: u64 = 5;
/// Enough to be busy, little enough that two guests share two cores with everything else.
const DISK_IOPS: u64 = 400;
const QUEUE_DEPTH: u64 = 4;
/// Acknowledged writes to wait for before something is done to a guest, and again afterwards.
const WRITES_TO_SEE: u64 = 200;

/// Runs the scenario on a cluster that is up.
pub(super) async fn run(
    cluster: &mut TestCluster,
    storage: &str,
    timeline: &Timeline,
) -> anyhow::Result<Summary> {
    let client = cluster.client().await?;
    let observer = OwnershipObserver::start(cluster.folder())?;
    import_probe(&client).await?;
    timeline.say("imported the probe as a boot image");

    let first = launch(cluster, &client, timeline, "demo-a", workload(0xa, Some(DIRTY))).await?;
    let second = launch(cluster, &client, timeline, "demo-b", workload(0xb, None)).await?;
    ensure!(
        first.vm.node_id != second.vm.node_id,
        "anti-affinity was broken: both VMs are on {}",
        first.vm.node_name
    );
    let overhead = pss_beyond_guest_ram(u32::try_from(first.vm.pid).context("a pid fits 32 bits")?);
    let overhead = Bytes::new(overhead.context("cannot see what a vmmd costs")?);
    timeline.say(&format!(
        "vmmd of demo-a takes {overhead} beyond its guest's RAM (PSS); it had its guest's first byte {:.1} ms after spawn",
        boot_ms(&first.vm)
    ));
    for running in [&first, &second] {
        running.wait_for_writes(cluster, WRITES_TO_SEE)?;
    }
    timeline.say("both guests write their disks and have acknowledged writes");

    let migration = migrate(cluster, &client, timeline, &first).await?;
    let ha = kill_a_node(cluster, &client, timeline, &second).await?;
    for running in [&first, &second] {
        running.wait_for_more_writes(cluster, WRITES_TO_SEE)?;
    }
    timeline.say("both guests write on");

    let verdicts = stop_and_judge(cluster, &client, timeline, &[&first, &second]).await?;
    if let Ok(ceph) = cluster.ceph() {
        leave_nothing(&client, ceph, &[&first, &second]).await?;
        timeline.say("everything was given back: no image, lock, watcher or blocklist entry is left in Ceph");
    }
    let acked_writes = verdicts.iter().map(Verdict::acked).sum();
    let lost_writes: u64 = verdicts.iter().map(Verdict::lost).sum();
    let bad: u64 = verdicts.iter().map(Verdict::bad_in_guest).sum();
    let double_owner_observations =
        observer.double_owners() + verdicts.iter().map(Verdict::double_writes).sum::<u64>();
    timeline.say(&format!(
        "{acked_writes} acknowledged writes, {lost_writes} lost; looked {} times, saw {double_owner_observations} double owners",
        observer.rounds()
    ));
    ensure!(bad == 0, "the guests found {bad} blocks or pages that did not hold what they had written");
    Ok(Summary {
        ok: lost_writes == 0 && double_owner_observations == 0 && acked_writes > 0,
        vms: 2,
        placement_us: first.placement_us,
        boot_ms: rounded(boot_ms(&first.vm)),
        vmmd_overhead_mib: rounded(overhead.get() as f64 / f64::from(1 << 20)),
        migration,
        ha,
        acked_writes,
        lost_writes,
        double_owner_observations,
        storage: storage.to_owned(),
    })
}

/// Both guests write their disks; the one that is going to move dirties memory too.
fn workload(seed: u64, dirty: Option<DirtyWork>) -> Workload {
    Workload {
        seed,
        heartbeat_ms: Some(HEARTBEAT_MS),
        disk: Some(DiskWork { slots: SLOTS, iops: DISK_IOPS, queue_depth: QUEUE_DEPTH }),
        dirty,
        ..Workload::default()
    }
}

async fn launch(
    cluster: &TestCluster,
    client: &Client,
    timeline: &Timeline,
    name: &str,
    workload: Workload,
) -> anyhow::Result<ProbeVm> {
    let launch = Launch { name: name.to_owned(), workload, group: "demo".to_owned(), vcpus: 2 };
    let running = ProbeVm::launch(cluster, client, launch).await?;
    timeline.say(&format!(
        "{name} runs on {} (epoch {}); placed in {} us, booted in {:.1} ms from spawn to the guest's first byte",
        running.vm.node_name,
        running.vm.owner_epoch,
        running.placement_us,
        boot_ms(&running.vm)
    ));
    Ok(running)
}

async fn migrate(
    cluster: &TestCluster,
    client: &Client,
    timeline: &Timeline,
    running: &ProbeVm,
) -> anyhow::Result<MigrationSummary> {
    let name = running.name();
    let before = ledger::console(cluster, &running.subject.vm_id)?;
    let last_before = before.lives.last().map_or(0, |life| life.heartbeats + life.heartbeats_missing);
    let request = MigrateVmRequest { vm: name.to_owned(), ..MigrateVmRequest::default() };
    let operation = client.migrate_vm(request).await?;
    let operation = finish(client, operation).await?;
    let result = operation.migration.context("a migration that is done has a result")?;
    running.wait_for_more_writes(cluster, WRITES_TO_SEE)?;

    let after = ledger::console(cluster, &running.subject.vm_id)?;
    let life = after.lives.last().context("the guest has a console")?;
    ensure!(after.lives.len() == before.lives.len(), "the guest was restarted where it should have moved");
    ensure!(
        life.heartbeats + life.heartbeats_missing > last_before,
        "the guest's heart stopped with the migration"
    );
    let gap = life.longest_gap_since(last_before).context("the guest has no heartbeats to measure by")?;
    let vm = client.get_vm(name).await?;
    timeline.say(&format!(
        "{name} moved live from {} to {} (epoch {}): {} rounds, {} in {:.0} ms; blackout {:.1} ms by the guest's own heartbeat, \
         {:.1} ms by the VMM",
        running.vm.node_name,
        vm.node_name,
        vm.owner_epoch,
        result.rounds,
        Bytes::new(result.bytes),
        millis(result.total_us),
        gap.length.as_secs_f64() * 1e3,
        millis(result.downtime_us),
    ));
    Ok(MigrationSummary {
        rounds: result.rounds,
        bytes: result.bytes,
        total_ms: rounded(millis(result.total_us)),
        downtime_ms: rounded(gap.length.as_secs_f64() * 1e3),
        vmm_downtime_ms: rounded(millis(result.downtime_us)),
    })
}

async fn kill_a_node(
    cluster: &mut TestCluster,
    client: &Client,
    timeline: &Timeline,
    running: &ProbeVm,
) -> anyhow::Result<HaSummary> {
    let name = running.name();
    let vm = client.get_vm(name).await?;
    let node = cluster.node_index(&vm.node_name).context("the VM is on a node of this cluster")?;
    let lives = ledger::console(cluster, &running.subject.vm_id)?.lives.len();

    let killed = Instant::now();
    cluster.kill_node(node)?;
    timeline.say(&format!("killed {} with SIGKILL: its agent and every vmmd", vm.node_name));

    eventually_async("the control plane to declare the node dead", STEP_DEADLINE, || async {
        let state = client.get_node(&vm.node_id).await?.state();
        Ok(matches!(state, NodeState::Fencing | NodeState::Fenced).then_some(()))
    })
    .await?;
    let detected = killed.elapsed();
    timeline.say(&format!("the control plane declared it dead after {:.1} s", detected.as_secs_f64()));

    eventually("the guest's first line on its new node", STEP_DEADLINE, || {
        let now = ledger::console(cluster, &running.subject.vm_id)?.lives.len();
        Ok((now > lives).then_some(()))
    })?;
    let restarted = killed.elapsed();
    let vm = eventually_async("the VM to run again", STEP_DEADLINE, || async {
        let vm = client.get_vm(name).await?;
        Ok((vm.phase() == VmPhase::Running).then_some(vm))
    })
    .await?;
    ensure!(!vm.last_fence_evidence.is_empty(), "{name} was restarted without fence evidence");
    timeline.say(&format!(
        "{name} runs on {} (epoch {}) {:.1} s after the kill; allowed by: {}",
        vm.node_name,
        vm.owner_epoch,
        restarted.as_secs_f64(),
        vm.last_fence_evidence
    ));

    cluster.start_agent(node)?;
    let node_name = cluster.node_name(node);
    eventually_async("the killed node to be ready again", STEP_DEADLINE, || async {
        let state = client.get_node(&node_name).await?.state();
        Ok((state == NodeState::Ready).then_some(()))
    })
    .await?;
    timeline.say(&format!("{node_name} came back and is ready for work"));
    Ok(HaSummary {
        detect_ms: rounded(detected.as_secs_f64() * 1e3),
        fence_evidence: vm.last_fence_evidence,
        restart_ms: rounded(restarted.as_secs_f64() * 1e3),
    })
}

async fn stop_and_judge(
    cluster: &TestCluster,
    client: &Client,
    timeline: &Timeline,
    all: &[&ProbeVm],
) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for running in all {
        let operation = client.stop_vm(running.name()).await?;
        finish(client, operation).await?;
        let verdict = ledger::judge(cluster, &running.subject)?;
        timeline.say(&format!("{} stopped; its disk: {}", running.name(), verdict.disk));
        if let Some(error) = verdict.console.lives.iter().flat_map(|life| &life.errors).next() {
            bail!("{}: the guest reported: {error}", running.name());
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

/// Gives the VMs and their volumes back, and waits until the cluster holds nothing of them: the control plane lets the fenced in
/// again by itself, once their node has said that they are gone.
async fn leave_nothing(client: &Client, ceph: &CephCluster, all: &[&ProbeVm]) -> anyhow::Result<()> {
    for running in all {
        finish(client, client.delete_vm(running.name()).await?).await?;
        client.delete_volume(&running.subject.volume_id).await?;
    }
    let mut leaks = ceph.leaks()?;
    eventually("nothing to be left in Ceph", STEP_DEADLINE, || {
        leaks = ceph.leaks()?;
        Ok(leaks.is_empty().then_some(()))
    })
    .with_context(|| leaks.to_string())
}

fn boot_ms(vm: &Vm) -> f64 {
    millis(vm.boot.as_ref().map_or(0, |boot| boot.spawn_to_first_byte_us))
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}
