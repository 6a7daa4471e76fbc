//! Placement as an operator meets it: on real processes and real KVM, from the command line.
#![forbid(unsafe_code)]

use std::process::{Command, Output};

use drover_e2e::World;
use drover_probe_record::{DiskWork, Workload};
use drover_test_framework::{
    Binaries, eventually, ledger,
    probe_vm::{Launch, ProbeVm, STEP_DEADLINE, finish},
};
use drover_units::Bytes;
use serde_json::Value;

struct Cli {
    binaries: Binaries,
    server: String,
}

impl Cli {
    fn of(world: &World) -> anyhow::Result<Self> {
        Ok(Self { binaries: Binaries::of_this_build()?, server: world.cluster.server() })
    }

    fn run(&self, line: &str) -> Output {
        Command::new(self.binaries.cli())
            .args(line.split_whitespace())
            .env("DROVER_SERVER", &self.server)
            .output()
            .expect("the drover command starts")
    }

    /// Standard output of a command that must succeed.
    fn text(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "drover {line}: {}\n{out}{err}", output.status);
        out.into_owned()
    }

    fn json(&self, line: &str) -> Value {
        let text = self.text(&format!("{line} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("drover {line} -o json: {error}: {text}"))
    }

    /// Standard error of a command that must fail.
    fn failure(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(!output.status.success(), "drover {line} should have failed");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn node_of(&self, vm: &str) -> String {
        self.json(&format!("vm show {vm}"))["node"].as_str().unwrap_or_default().to_owned()
    }

    fn create(&self, name: &str, flags: &str) {
        self.text(&format!(
            "vm create {name} --image probe --memory 64M --cmdline probe.heartbeat=50 {flags}"
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_of_live_vms_and_loses_nothing() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(3, Bytes::gib(1)).await?;
    let cli = Cli::of(&world)?;
    for (node, rack) in [("node-1", "a"), ("node-2", "a"), ("node-3", "b")] {
        cli.text(&format!("node label {node} rack={rack}"));
    }
    let workload = Workload {
        seed: 3,
        heartbeat_ms: Some(10),
        disk: Some(DiskWork { slots: 1024, iops: 200, queue_depth: 4 }),
        ..Workload::default()
    };
    let launch = Launch { name: "disk".to_owned(), workload, group: String::new(), vcpus: 1 };
    let writer = ProbeVm::launch(&world.cluster, &world.client, launch).await?;
    let node = cli.node_of("disk");
    cli.text("vm create web --count 2 --image probe --memory 64M --cmdline probe.heartbeat=50");
    for vm in ["web-1", "web-2"] {
        assert_eq!(cli.node_of(vm), node, "'pack' fills one node");
    }
    let explained = cli.json("vm explain web-1");
    assert_eq!(explained["chosen"]["node"], node.as_str(), "{explained}");
    assert_eq!((&explained["policy"], &explained["considered"]), (&"pack".into(), &3.into()), "{explained}");

    let plan = cli.json(&format!("node drain {node} --dry-run"));
    assert_eq!(plan.as_array().map(Vec::len), Some(3), "{plan}");
    assert_eq!(cli.node_of("disk"), node, "a dry run moves nothing");
    writer.wait_for_more_writes(&world.cluster, 20)?;
    let drained = cli.json(&format!("node drain {node} --parallel 2"));
    assert_eq!((&drained["kind"], &drained["state"]), (&"node.drain".into(), &"done".into()), "{drained}");
    let shown = cli.json(&format!("node show {node}"));
    assert_eq!((&shown["vm_count"], &shown["cordoned"]), (&0.into(), &true.into()), "{shown}");
    for vm in ["disk", "web-1", "web-2"] {
        let shown = cli.json(&format!("vm show {vm}"));
        assert_ne!(shown["node"], node.as_str());
        assert_eq!(
            (&shown["restarts"], &shown["phase"]),
            (&0.into(), &"running".into()),
            "moved live: {shown}"
        );
    }
    writer.wait_for_more_writes(&world.cluster, 20)?;
    cli.text(&format!("node undrain {node}"));
    assert_eq!(cli.json(&format!("node show {node}"))["cordoned"], false);

    // Nothing fits beside these: no rack can be drained, and nothing moves.
    cli.create("large-1", "--vcpus 4");
    cli.create("large-2", "--vcpus 4");
    let refused = cli.failure("rack drain a");
    assert!(refused.contains("nothing has been moved") && refused.contains("vCPU"), "{refused}");
    assert!(cli.json("node list").as_array().into_iter().flatten().all(|node| node["draining"] == false));

    finish(&world.client, world.client.stop_vm("disk").await?).await?;
    let verdict = ledger::judge(&world.cluster, &writer.subject)?;
    assert!(verdict.acked() > 0, "it wrote nothing");
    assert_eq!((verdict.lost(), verdict.double_writes()), (0, 0), "{}", verdict.disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_policies_rules_and_priorities_hold() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(2, Bytes::gib(1)).await?;
    let cli = Cli::of(&world)?;

    // All or none: two of three would have fitted.
    let refused = cli.failure("vm create trio --count 3 --vcpus 3 --image probe --memory 64M");
    assert!(refused.contains("2 of 3"), "{refused}");
    eventually("none of the three to be left", STEP_DEADLINE, || {
        Ok(cli.json("vm list").as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;

    // A rule holds when a VM starts again.
    cli.create("ha-a", "--group ha --apart group:ha");
    cli.create("ha-b", "--group ha --apart group:ha");
    assert_ne!(cli.node_of("ha-a"), cli.node_of("ha-b"));
    let why = cli.failure("vm create ha-c --image probe --memory 64M --group ha --apart group:ha");
    assert!(why.contains("'ha-") && why.contains("nearest"), "{why}");
    cli.text("vm stop ha-b");
    cli.text("vm start ha-b");
    assert_ne!(cli.node_of("ha-a"), cli.node_of("ha-b"));
    cli.text("vm delete ha-c");

    // A change of policy needs no restart.
    cli.create("one", "");
    let tight = cli.node_of("one");
    cli.text("placement policy set mine --weight spread=100");
    cli.text("placement set --policy mine");
    let question = cli.json("placement explain next --memory 64M");
    assert_ne!(question["chosen"]["node"], tight.as_str(), "{question}");
    cli.create("two", "");
    assert_ne!(cli.node_of("two"), tight);
    assert!(cli.failure("placement policy delete mine").contains("the cluster"));
    cli.text("placement set --policy pack");
    cli.text("placement policy delete mine");

    // Six of eight vCPUs are free, two and two of them apart: a VM of four takes a place, if it may.
    cli.text("project set team --vms 1");
    let vip = "--vcpus 4 --priority 9 --image probe --memory 64M --cmdline probe.heartbeat=50 --project team";
    let refused = cli.failure(&format!("vm create vip {vip}"));
    assert!(refused.contains("vCPU"), "{refused}");
    cli.text("vm delete vip");
    cli.text(&format!("vm create vip {vip} --preempt"));
    assert!(!cli.node_of("vip").is_empty());
    assert!(cli.text("event list").contains("vm.preempted"));
    let over = cli.failure(&format!("vm create vip-2 {vip}"));
    assert!(over.contains("limit"), "{over}");
    let status = cli.json("placement status");
    assert!(status["decisions"].as_u64() > Some(5) && status["preemptions"].as_u64() > Some(0), "{status}");
    Ok(())
}
