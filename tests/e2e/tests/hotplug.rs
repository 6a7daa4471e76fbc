//! Devices that come to a running VM and go from it, and what becomes of them when it moves, when its node dies, and when the
//! control plane does: one story, because its processes take longer to start than its parts take.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "how fast a limited disk is, is a matter of time")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use drover_client::{
    Waited,
    api::{
        AttachNicRequest, AttachVolumeRequest, DetachNicRequest, DetachVolumeRequest, MigrateVmRequest, Nic,
        Vm, VmPhase, VmSpec, Volume,
    },
    vm_api::DeviceBus,
};
use drover_e2e::{LEASE_DEADLINE, World, refusal};
use drover_probe_record::{
    Claim, ConsoleLog, DiskWork, VisitorState, VisitorWork, Workload, stamp::Slots, verify_image,
};
use drover_tap::Interface;
use drover_test_framework::{
    Binaries, eventually, eventually_async,
    ledger::{self, Subject},
    observer::OwnershipObserver,
    probe_vm::{IMAGE, STEP_DEADLINE, create_volume, finish},
};
use drover_test_prerequisites::{kvm, network_namespace};
use drover_units::Bytes;

const SLOTS: u64 = 256;
const SEED: u64 = 0x607;
const VM: &str = "host";
/// Of the disk that comes, in a second, where it is not limited.
const WRITES: u64 = 300;
const LIMIT: u64 = 40;

struct Story {
    world: World,
    home: Volume,
    visitor: Volume,
    has_network: bool,
}

impl Story {
    async fn begin(has_network: bool) -> anyhow::Result<Self> {
        let network = || vec!["--network".to_owned(), "lan=br-e2e".to_owned()];
        let agents = if has_network { network() } else { Vec::new() };
        let world = World::start_with(2, Bytes::gib(1), agents).await?;
        let home = create_volume(&world.cluster, &world.client, "home", Bytes::mib(2)).await?;
        let visitor = create_volume(&world.cluster, &world.client, "visitor", Bytes::mib(2)).await?;
        let workload = Workload {
            seed: SEED,
            heartbeat_ms: Some(10),
            disk: Some(DiskWork { slots: SLOTS, iops: 100, queue_depth: 2 }),
            visitor: Some(VisitorWork { slots: SLOTS, iops: WRITES, keeps: false }),
            ..Workload::default()
        };
        let spec = VmSpec {
            name: VM.to_owned(),
            vcpus: 1,
            memory_bytes: Bytes::mib(64).get(),
            image: IMAGE.to_owned(),
            cmdline: workload.to_string(),
            volumes: vec![home.id.clone()],
            bus: DeviceBus::VirtioPci.into(),
            ..VmSpec::default()
        };
        finish(&world.client, world.client.create_vm(spec).await?).await?;
        Ok(Self { world, home, visitor, has_network })
    }

    async fn vm(&self) -> anyhow::Result<Vm> {
        Ok(self.world.client.get_vm(VM).await?)
    }

    async fn console(&self) -> anyhow::Result<ConsoleLog> {
        ledger::console(&self.world.cluster, &self.vm().await?.id)
    }

    async fn events(&self) -> anyhow::Result<Vec<VisitorState>> {
        let console = self.console().await?;
        Ok(console.lives.last().map(|life| life.visitor.story.clone()).unwrap_or_default())
    }

    /// Both disks are written on.
    async fn writes_more(&self, on_visitor: u64) -> anyhow::Result<()> {
        let before = self.console().await?;
        let enough = (before.acked_max() + 20, before.visitor_kept_max() + on_visitor);
        let vm = self.vm().await?.id;
        eventually("writes on both disks", STEP_DEADLINE, || {
            let now = ledger::console(&self.world.cluster, &vm)?;
            Ok((now.acked_max() >= enough.0 && now.visitor_kept_max() >= enough.1).then_some(()))
        })
    }

    /// The disk that comes takes no more than its limit allows: a slow machine makes it slower.
    async fn is_limited(&self) -> anyhow::Result<()> {
        // What was allowed before the limit has been used up.
        self.writes_more(LIMIT / 4).await?;
        let (began, first) = (Instant::now(), self.console().await?.visitor_kept_max());
        self.writes_more(LIMIT * 3 / 2).await?;
        let (took, last) = (began.elapsed(), self.console().await?.visitor_kept_max());
        let rate = (last - first) as f64 / took.as_secs_f64();
        eprintln!(
            "the limited disk takes {rate:.0} writes in a second of {LIMIT} allowed and {WRITES} wanted"
        );
        // A twentieth of a second's may come at once, and what was written before it was acknowledged.
        let most = LIMIT as f64 * took.as_secs_f64() + 12.0;
        ensure!((last - first) as f64 <= most, "{} writes in {took:?}", last - first);
        Ok(())
    }

    fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(Binaries::of_this_build()?.cli())
            .args(arguments)
            .env("DROVER_SERVER", self.world.cluster.server())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "drover {arguments:?}: {said}");
        Ok(said)
    }

    async fn migrate(&self) -> anyhow::Result<()> {
        let request = MigrateVmRequest { vm: VM.to_owned(), ..MigrateVmRequest::default() };
        let operation = self.world.client.migrate_vm(request).await?;
        self.world.client.wait_operation(&operation.id, Waited::at_most(LEASE_DEADLINE), |_| {}).await?;
        Ok(())
    }

    async fn detach(&self, force: bool) -> anyhow::Result<()> {
        let (vm, volume) = (VM.to_owned(), self.visitor.id.clone());
        let request = DetachVolumeRequest { vm, volume, force, wait_ms: 15_000 };
        let vm = self.world.client.detach_volume(request).await?;
        ensure!(vm.spec.is_some_and(|spec| spec.volumes.len() == 1), "it is the VM's still");
        Ok(())
    }

    /// Everything that the guest was told is durable is on the disk that has gone.
    async fn visitor_is_whole(&self) -> anyhow::Result<()> {
        let claim = Claim {
            slots: Slots { seed: SEED, count: SLOTS },
            acked_max: self.console().await?.visitor_kept_max(),
        };
        let report = verify_image(&self.world.cluster.volume_path(&self.visitor.id), &claim)?;
        ensure!(report.is_clean(), "{report}");
        Ok(())
    }

    /// The ends of what all said, for whoever looks for the reason.
    fn show_logs(&self) {
        let cluster = &self.world.cluster;
        let agents = (0..cluster.nodes())
            .map(|node| cluster.folder().join(format!("{}.log", cluster.node_name(node))));
        let vms = (0..cluster.nodes()).flat_map(|node| fs::read_dir(cluster.node_folder(node).join("vms")));
        let vms = vms.flat_map(|folder| folder.flatten()).map(|vm| vm.path());
        let vms = vms.flat_map(|vm| [vm.join("vmmd.log"), vm.join("console.log")]);
        for log in agents.chain([cluster.folder().join("control-plane.log")]).chain(vms) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<_> = text.lines().filter(|line| !line.contains("\"hb\"")).collect();
            eprintln!("---- {}\n{}", log.display(), lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }

    /// Taps of VMs of these nodes.
    fn taps(&self) -> anyhow::Result<usize> {
        let interfaces = fs::read_to_string("/proc/thread-self/net/dev")?;
        Ok(interfaces.lines().filter(|line| line.trim_start().starts_with("dv")).count())
    }

    async fn taps_become(&self, count: usize) -> anyhow::Result<()> {
        eventually_async(&format!("{count} taps"), STEP_DEADLINE, || async {
            Ok((self.taps()? == count).then_some(()))
        })
        .await
    }

    /// An interface comes to a VM in its jail.
    async fn attach_nic(&self) -> anyhow::Result<()> {
        if !self.has_network {
            return Ok(());
        }
        let nic = Nic { network: "lan".to_owned(), mac: "52:54:00:00:06:07".to_owned(), ..Nic::default() };
        let request = AttachNicRequest { vm: VM.to_owned(), nic: Some(nic) };
        // Whoever has lost the answer asks again.
        for _ in 0..2 {
            let vm = self.world.client.attach_nic(request.clone()).await?;
            assert_eq!(vm.spec.map(|spec| spec.nics.len()), Some(1));
        }
        self.taps_become(1).await?;
        let elsewhere = Nic { network: "wan".to_owned(), ..Nic::default() };
        let request = AttachNicRequest { vm: VM.to_owned(), nic: Some(elsewhere) };
        let why = refusal(self.world.client.attach_nic(request).await);
        assert!(why.contains("no bridge into network 'wan'"), "{why}");
        assert_eq!(self.vm().await?.spec.map(|spec| spec.nics.len()), Some(1), "nothing has come of it");
        Ok(())
    }

    async fn detach_nic(&self) -> anyhow::Result<()> {
        if !self.has_network {
            return Ok(());
        }
        self.taps_become(1).await?;
        let (vm, mac) = (VM.to_owned(), "52:54:00:00:06:07".to_owned());
        self.world.client.detach_nic(DetachNicRequest { vm, mac, force: true, wait_ms: 0 }).await?;
        self.taps_become(0).await
    }
}

/// The control plane dies while a volume is on its way, at some moment or other.
async fn attach_while_the_control_plane_dies(story: &mut Story) -> anyhow::Result<()> {
    let request =
        AttachVolumeRequest { vm: VM.to_owned(), volume: story.visitor.id.clone(), read_only: false };
    let (client, asked) = (story.world.client.clone(), request.clone());
    let under_way = tokio::spawn(async move { client.attach_volume(asked).await });
    // As soon as it is kept, or done.
    let client = &story.world.client;
    eventually_async("the volume to be the VM's", STEP_DEADLINE, || async {
        Ok(client.get_vm(VM).await?.spec.filter(|spec| spec.volumes.len() == 2))
    })
    .await?;
    story.world.cluster.kill_control_plane()?;
    under_way.abort();
    story.world.cluster.start_control_plane()?;
    story.world.all_nodes_ready().await?;
    // Nobody asks again: the successor goes on with it.
    story.writes_more(20).await?;
    story.world.client.attach_volume(request).await?;
    Ok(())
}

async fn tell() -> anyhow::Result<()> {
    let has_network = network_namespace();
    if has_network {
        Interface::find("lo".parse()?)?.set_up(true)?;
        Interface::create_bridge("br-e2e".parse()?)?.set_up(true)?;
    }
    let mut story = Story::begin(has_network).await?;
    let told = play(&mut story).await;
    if told.is_err() {
        story.show_logs();
    }
    told
}

async fn play(story: &mut Story) -> anyhow::Result<()> {
    let observer = OwnershipObserver::start(story.world.cluster.folder())?;
    story.cli(&["vm", "attach", VM, "--volume", "visitor"])?;
    story.writes_more(20).await?;
    let why = refusal(story.world.client.delete_volume("visitor").await);
    assert!(why.contains("attached"), "{why}");
    story.attach_nic().await?;

    story.migrate().await?;
    story.writes_more(20).await?;
    let limit = LIMIT.to_string();
    story.cli(&["vm", "limit", VM, "--volume", "visitor", "--write-iops", &limit])?;
    story.is_limited().await?;
    story.migrate().await?;
    story.is_limited().await?;

    let before = story.vm().await?;
    let kept = story.console().await?.visitor_kept_max();
    let node = story.world.cluster.node_index(&before.node_name).context("it is on one of the nodes")?;
    story.world.cluster.kill_node(node)?;
    eventually_async("the VM to run elsewhere", LEASE_DEADLINE, || async {
        let vm = story.vm().await?;
        Ok((vm.phase() == VmPhase::Running && vm.owner_epoch > before.owner_epoch).then_some(()))
    })
    .await?;
    let fence = story.vm().await?.last_fence_evidence;
    assert!(fence.contains(&story.visitor.id) && fence.contains(&story.home.id), "{fence}");
    story.is_limited().await?;
    let console = story.console().await?;
    let found = console.lives.last().map_or(0, |life| life.visitor.found);
    assert!(console.lives.len() > 1 && found >= kept, "{found} of {kept}");
    assert!(console.lost_at_restarts().is_empty(), "{:?}", console.lost_at_restarts());
    story.cli(&["vm", "limit", VM, "--volume", "visitor"])?;
    story.world.cluster.start_agent(node)?;

    story.detach(false).await?;
    assert_eq!(story.events().await?, [VisitorState::Came, VisitorState::Asked, VisitorState::LetGo]);
    story.visitor_is_whole().await?;
    attach_while_the_control_plane_dies(story).await?;
    story.detach(true).await?;
    story.visitor_is_whole().await?;
    story.detach_nic().await?;
    assert_eq!(observer.double_owners(), 0);

    finish(&story.world.client, story.world.client.stop_vm(VM).await?).await?;
    let vm = story.vm().await?;
    let disk = Some(DiskWork { slots: SLOTS, iops: 100, queue_depth: 2 });
    let workload = Workload { seed: SEED, disk, ..Workload::default() };
    let subject = Subject { vm_id: vm.id, volume_id: story.home.id.clone(), workload };
    let verdict = ledger::judge(&story.world.cluster, &subject)?;
    assert_eq!(
        (verdict.lost(), verdict.double_writes(), verdict.bad_in_guest()),
        (0, 0, 0),
        "{}",
        verdict.disk
    );
    story.world.client.delete_volume("visitor").await?;
    Ok(())
}

/// In a network namespace of its own, where that can be: its threads and processes are all in it.
#[test]
fn devices_come_and_go_whoever_dies_meanwhile() -> anyhow::Result<()> {
    if !kvm() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = runtime.block_on(tell());
    runtime.shutdown_timeout(Duration::from_secs(1));
    told
}
