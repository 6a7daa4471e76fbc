//! The `drover` command against a real cluster: what a person types, what a script reads.
#![forbid(unsafe_code)]

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    process::{Command, Output},
};

use drover_e2e::World;
use drover_test_framework::{Binaries, eventually, probe_vm::STEP_DEADLINE};
use drover_test_prerequisites::probe_image;
use drover_units::Bytes;
use serde_json::Value;

struct Cli {
    binaries: Binaries,
    server: String,
}

impl Cli {
    /// A `+` is a space within a word.
    fn run(&self, line: &str) -> Output {
        Command::new(self.binaries.cli())
            .args(line.split_whitespace().map(|word| word.replace('+', " ")))
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

    /// Exit code and standard error of a command that must fail.
    fn failure(&self, line: &str) -> (i32, String) {
        let output = self.run(line);
        let code = output.status.code().expect("it was not killed");
        assert_ne!(code, 0, "drover {line} should have failed");
        (code, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_its_life_from_the_command_line() -> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(2, Bytes::gib(1)).await?;
    let cli = Cli { binaries: Binaries::of_this_build()?, server: world.cluster.server() };

    let nodes = cli.text("node list");
    assert!(nodes.contains("NAME") && nodes.contains("node-1") && nodes.contains("ready"), "{nodes}");

    cli.text(&format!("image import kernel {}", probe_image().display()));
    assert_eq!(cli.json("image list").as_array().map(Vec::len), Some(2), "the probe and its copy");
    let raw = world.cluster.folder().join("disk.raw");
    fs::write(&raw, vec![7; 1 << 20])?;
    cli.text(&format!("volume import data {}", raw.display()));
    cli.text("volume create scratch --size 8M");
    assert_eq!(cli.json("volume list")[0]["size_bytes"], 1 << 20);

    let created =
        cli.json("vm create web --image kernel --memory 64M --volume scratch --cmdline probe.heartbeat=20");
    assert_eq!(created["phase"], "running");
    let before = created["node"].clone();
    eventually("the guest to be heard in the log", STEP_DEADLINE, || {
        Ok(cli.text("vm logs web").contains(r#""ev":"boot""#).then_some(()))
    })?;

    let moved = cli.json("vm migrate web");
    assert_eq!((&moved["state"], &moved["migration"]["source_node"]), (&"done".into(), &before));
    assert_ne!(cli.json("vm show web")["node"], before);

    cli.text("vm stop web");
    assert_eq!(cli.json("vm show web")["phase"], "stopped");
    cli.text("vm start web");
    assert_eq!(cli.json("vm list")[0]["phase"], "running");

    let operations = cli.json("operation list --subject web");
    let kinds: Vec<&str> = operations
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|operation| operation["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["vm.create", "vm.migrate", "vm.stop", "vm.start"]);
    let events = cli.text("event list --subject web");
    assert!(events.contains("web"), "{events}");

    cli.text("vm delete web");
    assert_eq!(cli.json("vm list").as_array().map(Vec::len), Some(0));
    cli.text("volume delete scratch");
    Ok(())
}

/// What a guest that greets says on its connection to a port of the host, and what it says back.
fn greeting(listener: &UnixListener) -> anyhow::Result<UnixStream> {
    let (mut guest, _) = eventually("the guest's connection", STEP_DEADLINE, || Ok(listener.accept().ok()))?;
    guest.set_nonblocking(false)?;
    guest.set_read_timeout(Some(STEP_DEADLINE))?;
    let mut heard = [0; 5];
    guest.read_exact(&mut heard)?;
    assert_eq!(&heard, b"hello");
    guest.write_all(b"is it")?;
    guest.read_exact(&mut heard)?;
    assert_eq!(&heard, b"is it");
    Ok(guest)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_comes_back_from_a_guest_that_is_suspended_meanwhile_and_reaches_its_host()
-> anyhow::Result<()> {
    if !drover_test_prerequisites::kvm() {
        return Ok(());
    }
    let world = World::start(1, Bytes::gib(1)).await?;
    let cli = Cli { binaries: Binaries::of_this_build()?, server: world.cluster.server() };
    let spec = "--image probe --memory 96M --rng --console --balloon --vsock-cid 42";
    let created = cli.json(&format!(
        "vm create web {spec} --cmdline probe.heartbeat=20+probe.balloon=16+probe.vsock=1234"
    ));
    let id = created["id"].as_str().expect("an id");
    // As any process of the node may: the VM's own has to be let in.
    let folder = world.cluster.node_folder(0).join("vms").join(id);
    let listener = UnixListener::bind(folder.join("vsock_1234"))?;
    fs::set_permissions(folder.join("vsock_1234"), Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    // Its guest connects again where it loses its connection.
    let mut before = greeting(&listener)?;

    let inflated = |expect: u64| {
        eventually("so much in the balloon", STEP_DEADLINE, || {
            Ok((cli.json("vm balloon web")["actual_bytes"] == expect).then_some(()))
        })
    };
    assert_eq!(cli.json("vm balloon web --target 8M")["target_bytes"], 8 << 20);
    inflated(8 << 20)?;
    let shown = cli.text("vm balloon web");
    assert!(shown.contains("the guest has one") && shown.contains("8 MiB"), "{shown}");

    assert_eq!(cli.json("vm suspend web")["phase"], "stopped");
    let (code, error) = cli.failure("vm balloon web");
    assert!(code == 1 && error.contains("does not run"), "{code}: {error}");
    assert_eq!(before.read(&mut [0; 1]).unwrap_or(0), 0, "no connection outlives its machine");
    cli.text("vm resume web");
    inflated(8 << 20)?;
    let _after = greeting(&listener)?;
    cli.text("vm balloon web --target 0");
    inflated(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_failures_apart() -> anyhow::Result<()> {
    let world = World::start(1, Bytes::gib(1)).await?;
    let cli = Cli { binaries: Binaries::of_this_build()?, server: world.cluster.server() };

    let (code, error) = cli.failure("vm show nope");
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("nope"), "{error}");

    let (code, error) = cli.failure("volume create odd --size 1000");
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("512"), "{error}");

    let (code, error) = cli.failure("vm create web --image nope");
    assert!(error.contains("image"), "{error}");
    assert_eq!(code, 3, "{error}");

    let (code, error) = cli.failure("vm create huge --image probe --memory 64G");
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("node-1") && error.contains("memory"), "why each node refused: {error}");

    let (code, _) = cli.failure("no such command");
    assert_eq!(code, 2);

    let away = Cli { server: "http://127.0.0.1:1".to_owned(), ..cli };
    let (code, error) = away.failure("vm list");
    assert_eq!(code, 4, "{error}");
    Ok(())
}
