//! The whole system in one emulated host: what `drover image build debian` makes is imported, run by the control plane and an
//! agent in a jail that is required, told by a seed disk who it is, reached through a bridge, and switched off by its power
//! button.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use drover_test_emulated_host::{EmulatedHost, Running, ext4, guest::Nonce};
use drover_test_prerequisites::{is_installed, skipped};

use super::{
    image::wanted,
    session::{self, BOOT_DEADLINE, CMDLINE, COMMAND_DEADLINE},
};
use crate::hosts::{self, Progress, keep_words};

const PROGRAMS: [&str; 3] = ["drover", "drover-control-plane", "drover-node-agent"];
const DEADLINE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(500);
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGRyb3ZlcidzIHRlc3Q= ann@desk";

/// Says on the console who it is, and sends some megabytes to the host.
fn user_data(nonce: &Nonce) -> String {
    format!(
        "#cloud-config\nssh_genkeytypes: [ed25519]\n\
         write_files:\n  - {{ path: /root/told, content: '{}' }}\n\
         runcmd:\n  - [sh, -c, 'grep -q ann@desk /home/debian/.ssh/authorized_keys && echo TOLD $(hostname) $(cat /root/told) >/dev/ttyS0']\n  \
         - [sh, -c, 'iperf3 --client 192.168.7.1 --bytes 8M >/root/iperf 2>&1; echo SENT $? >/dev/ttyS0']\n",
        nonce.as_str()
    )
}

/// The control plane and an agent.
struct System {
    host: Arc<EmulatedHost>,
    control_plane: Running,
    agent: Running,
    /// It has done what it should.
    well: bool,
}

impl System {
    fn start(host: &Arc<EmulatedHost>) -> anyhow::Result<Self> {
        let pool = "local=dir:/disk/pool";
        host.shell("mkdir -p /disk/pool /disk/state && brctl addbr br0", DEADLINE)?;
        host.shell("ip link set br0 up && ip address add 192.168.7.1/24 dev br0", DEADLINE)?;
        // One processor emulates all of this: what is late here is not lost.
        let timers =
            ["--pause-after-ms=40000", "--kill-after-ms=60000", "--t-fence-ms=80000", "--suspect-ms=20000"];
        let arguments = [&["--state-dir", "/disk/state/control-plane", "--pool", pool][..], &timers].concat();
        let mut control_plane = host.spawn("/programs/drover-control-plane", &arguments)?;
        control_plane.wait_for("the control plane serves", DEADLINE)?;
        let agent = host.spawn(
            "/programs/drover-node-agent",
            &[
                "--name=one",
                "--state-dir=/disk/state/agent",
                "--control-plane=http://127.0.0.1:7400",
                "--pool=local=dir:/disk/pool",
                "--vcpus=2",
                "--memory=768M",
                "--network=lan=br0",
                "--jail=required",
            ],
        )?;
        let system = Self { host: Arc::clone(host), control_plane, agent, well: false };
        let end = Instant::now() + DEADLINE;
        while !system.drover("node list")?.to_lowercase().contains("ready") {
            anyhow::ensure!(Instant::now() < end, "the node does not become ready");
            std::thread::sleep(LOOK);
        }
        Ok(system)
    }

    /// What the command said.
    fn drover(&self, arguments: &str) -> anyhow::Result<String> {
        self.host.shell(&format!("/programs/drover {arguments}"), COMMAND_DEADLINE)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.well {
            return;
        }
        let console = self.drover("vm logs web").unwrap_or_default();
        let vmmd = self.host.shell("cat /disk/state/agent/vms/*/vmmd.log", DEADLINE).unwrap_or_default();
        self.control_plane.catch_up();
        self.agent.catch_up();
        let (control_plane, agent) = (self.control_plane.said(), self.agent.said());
        let words = format!(
            "---- control plane\n{control_plane}\n---- agent\n{agent}\n---- vmmd\n{vmmd}\n---- guest\n{console}"
        );
        keep_words("system", &words);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_image_build_makes_runs_under_the_control_plane() -> anyhow::Result<()> {
    if !wanted() {
        return Ok(());
    }
    if !is_installed("iperf3") {
        skipped("iperf3 is not installed: `cargo xtask test --linux`, or the package iperf3");
        return Ok(());
    }
    let progress = Progress::begin();
    let mut programs = vec![("iperf3".to_owned(), "/usr/bin/iperf3".into())];
    for name in PROGRAMS {
        programs.push((name.to_owned(), hosts::program(name)?));
    }
    let host = session::host_with(&progress, programs)?;
    let mut system = System::start(&host)?;
    progress.say("the control plane has a node");
    for (image, file) in [("debian-kernel", "vmlinuz"), ("debian-initrd", "initrd")] {
        system.drover(&format!("image import {image} /disk/{file}"))?;
    }
    system.drover("volume import web /disk/root.raw")?;
    progress.say("what was built is imported");

    let nonce = Nonce::random();
    host.put("/disk/user-data", 0o600, user_data(&nonce).as_bytes())?;
    host.put("/disk/network", 0o600, session::NETWORK.as_bytes())?;
    host.put("/disk/key.pub", 0o600, format!("{KEY}\n").as_bytes())?;
    let mut server = host.spawn("/programs/iperf3", &["--server", "--forceflush"])?;
    server.wait_for("listening", DEADLINE)?;
    system.drover(&format!(
        "vm create web --image debian-kernel --initrd debian-initrd --vcpus 2 --memory 512M --volume web \
         --cmdline '{CMDLINE}' --nic network=lan,queues=2 \
         --hostname web-1 --ssh-key /disk/key.pub --user-data /disk/user-data --network-config /disk/network",
    ))?;
    progress.say("the VM is created");
    let mut console = host.spawn("/programs/drover", &["vm", "logs", "--follow", "web"])?;
    console.wait_for("web-1 login:", BOOT_DEADLINE)?;
    progress.say("a login prompt is there");
    console.wait_for(&format!("TOLD web-1 {}", nonce.as_str()), BOOT_DEADLINE)?;
    progress.say("cloud-init has done what the control plane's seed says");
    console.wait_for("SENT 0", BOOT_DEADLINE)?;
    progress.say("iperf has reached the host through the bridge");
    let jailed =
        host.shell("grep -E 'Seccomp:|NoNewPrivs|Uid:|CapEff' /proc/$(pidof drover-vmmd)/status", DEADLINE)?;
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        anyhow::ensure!(jailed.contains(line), "no '{line}' in:\n{jailed}");
    }
    system.drover("vm stop --graceful --within 10m web")?;
    system.well = true;
    progress.say("vm stop --graceful has ended it");

    // All of them have files open on the disk.
    drop((console, server, system));
    let image = host.power_off()?;
    let folder = tempfile::tempdir_in(drover_test_prerequisites::workspace_root().join("target"))?;
    let root = folder.path().join("root.raw");
    ext4::dump(&image, &ext4::only_file(&image, "/pool/volumes", ".raw")?, &root)?;
    ext4::check(&root)?;
    assert_eq!(String::from_utf8(ext4::read(&root, "/root/told")?)?, nonce.as_str());
    progress.say("what it was told is on its volume, which is whole");
    Ok(())
}
