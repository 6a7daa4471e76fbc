//! What the `drover` command prints, byte for byte. `UPDATE_EXPECT=1` rewrites the files in `golden`.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

struct Drover {
    server: String,
    folder: tempfile::TempDir,
}

impl Drover {
    async fn new() -> Self {
        Self { server: support::start().await, folder: tempfile::tempdir().unwrap() }
    }

    async fn run(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
        command
            .args(line.split_whitespace())
            .env("DROVER_SERVER", &self.server)
            .current_dir(self.folder.path());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Runs commands, and compares what they print with the golden file of that name.
    async fn check(&self, golden: &str, lines: &[&str]) {
        let mut seen = String::new();
        for line in lines {
            let output = self.run(line).await;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&self.server, "http://SERVER");
            seen.push_str(&format!("$ drover {line}\n{}", text(&output.stdout)));
            for error in text(&output.stderr).lines() {
                seen.push_str(&format!("stderr: {error}\n"));
            }
            seen.push_str(&format!("exit status {}\n\n", output.status.code().unwrap_or(-1)));
        }
        let path = golden_file(golden);
        if env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&path, &seen).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert!(seen == expected, "{} differs (UPDATE_EXPECT=1 rewrites it):\n{seen}", path.display());
    }
}

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"))
}

#[tokio::test]
async fn nodes() {
    let drover = Drover::new().await;
    drover
        .check(
            "node",
            &[
                "node list",
                "node show node-2",
                "node list -o json",
                "node show nope",
                "node label node-1 rack=r1",
                "node cordon node-1",
                "node label node-1 rack",
            ],
        )
        .await;
}

#[tokio::test]
async fn vms() {
    let drover = Drover::new().await;
    let lines = [
        "vm list",
        "vm show web",
        "vm show db",
        "vm list -o json",
        "vm show nope",
        "vm logs web --tail 1K -f",
    ];
    drover.check("vm", &lines).await;
}

#[tokio::test]
async fn operations_on_vms() {
    let drover = Drover::new().await;
    let lines = [
        "vm create web --image probe --memory 256M --volume data",
        "vm create web --image probe -o json",
        "vm create web --image probe --no-wait",
        "vm create huge --image probe --memory 64G",
        "vm create huge --image probe --memory 64G -o json",
        "vm create slow --image probe --timeout 50ms",
        "vm create web --image nope",
        "vm create web --image probe --memory lots",
        "vm stop web",
        "vm start web",
        "vm migrate web --to node-2",
        "vm migrate web --to node-1",
        "vm migrate web -o json",
        "vm delete web",
    ];
    drover.check("vm-operations", &lines).await;
}

#[tokio::test]
async fn volumes_and_images() {
    let drover = Drover::new().await;
    fs::write(drover.folder.path().join("disk.raw"), vec![7; (2 << 20) + 1]).unwrap();
    fs::write(drover.folder.path().join("kernel.elf"), [&b"\x7fELF"[..], &[7; 65_532]].concat()).unwrap();
    let lines = [
        "volume list",
        "volume show data",
        "volume create scratch --size 8M",
        "volume create odd --size 1000",
        "volume create data --size 8M",
        "volume import disk disk.raw",
        "volume import disk disk.raw --size 1M",
        "volume import disk nothing.raw",
        "volume import disk disk.raw --size 1G -o json",
        "volume delete scratch",
        "volume delete data",
        "image import kernel kernel.elf",
        "image list",
        "image delete probe",
    ];
    drover.check("volume-image", &lines).await;
}

#[tokio::test]
async fn pools_snapshots_and_disk_images() {
    let drover = Drover::new().await;
    fs::write(drover.folder.path().join("disk.raw"), vec![7; (2 << 20) + 1]).unwrap();
    let hash = "fedcba9876543210".repeat(4);
    let import = format!("image import debian https://user:secret@example.org/d.qcow2 --sha256 {hash}");
    let lines = [
        "pool list",
        "pool show fast",
        "pool create fast --cluster ceph --ceph-pool vms",
        "pool delete fast",
        "pool list -o json",
        "vm snapshot create web@before",
        "vm snapshot list",
        "vm snapshot list web -o json",
        "vm snapshot show web@before",
        "vm snapshot show web@never",
        "vm snapshot rollback web@before",
        "vm snapshot delete web@before",
        "volume create copy --snapshot data@before",
        "volume create disk --image debian --size 2G",
        "volume create nothing",
        "volume resize data 2G",
        "volume resize data 1M",
        "volume flatten data",
        "snapshot create data@before",
        "snapshot create data@",
        "snapshot list data",
        "snapshot protect data@before -o json",
        "snapshot rollback data@before",
        "snapshot delete data@before",
        "image import debian disk.raw",
        "image import debian disk.raw --sha256 00",
        "image import debian https://example.org/d.qcow2",
        &import,
        "image show debian",
        "image copy debian debian-2 --pool main",
        "image delete debian",
    ];
    drover.check("storage", &lines).await;
}

#[tokio::test]
async fn operations() {
    let drover = Drover::new().await;
    let lines = [
        "operation list",
        "operation list --subject web -o json",
        "operation show op-moved",
        "operation watch op-web",
        "operation watch op-huge",
        "operation cancel op-slow",
        "operation show nope",
    ];
    drover.check("operation", &lines).await;
}

#[tokio::test]
async fn events() {
    let drover = Drover::new().await;
    let lines = [
        "event list",
        "event list --after 3 -o json",
        "event watch --after 5",
        "event watch -o json --subject web",
    ];
    drover.check("event", &lines).await;
}

#[tokio::test]
async fn usage() {
    let drover = Drover::new().await;
    let lines = [
        "--version",
        "no such command",
        "vm create",
        "vm stop web --no-wait --timeout 5m",
        "--server x vm list",
    ];
    drover.check("usage", &lines).await;
}

#[tokio::test]
async fn a_server_that_is_away_is_exit_status_4() {
    let mut drover = Drover::new().await;
    drover.server = "http://127.0.0.1:1".to_owned();
    let output = drover.run("vm list").await;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{words}");
    assert!(words.contains("DROVER_SERVER") && words.contains("refused"), "{words}");
}

#[tokio::test]
async fn completions_name_the_commands() {
    let drover = Drover::new().await;
    for shell in ["bash", "zsh", "fish"] {
        let output = drover.run(&format!("completion {shell}")).await;
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("migrate"), "{shell}");
    }
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_failure() {
    let drover = Drover::new().await;
    let script = format!("{} event watch --after 0 | head -n 1", env!("CARGO_BIN_EXE_drover"));
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", &script]).env("DROVER_SERVER", &drover.server);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
}
