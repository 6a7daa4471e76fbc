//! A whole Debian, built from the recipe in `guest-images/linux`: systemd, cloud-init with a seed disk, a login, disks that are
//! written and verified, reboot and power-off.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use drover_cloud_init::{Seed, Unchecked};
use drover_image_build::{Built, Order, Recipe, build};
use drover_test_emulated_host::{EmulatedHost, ext4, guest::Nonce};
use drover_test_prerequisites::{emulated_host, is_installed, skipped, workspace_root};
use drover_wire::vm::v1 as wire;

use crate::{
    hosts::{self, Given, Progress},
    long,
    vmmd::{Guest, Vmmd},
};

/// systemd and cloud-init's first boot: half a minute here when nothing else runs.
const BOOT_DEADLINE: Duration = Duration::from_secs(600);
/// For one command in the guest.
const COMMAND_DEADLINE: Duration = Duration::from_secs(240);
const HOST_DISK_BYTES: u64 = 4 << 30;
const DATA_BYTES: u64 = 256 << 20;
const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGRyb3ZlcidzIHRlc3Q= ann@desk";

/// The guest, built once and kept: another recipe is another folder.
fn debian() -> anyhow::Result<Built> {
    let recipe = Recipe { packages: vec!["fio".to_owned(), "iperf3".to_owned()], ..Recipe::default() };
    let text: String = ["packages", "before-packages.sh", "after-packages.sh", "pack.sh"]
        .iter()
        .map(|name| fs::read_to_string(workspace_root().join("guest-images/linux").join(name)))
        .collect::<Result<_, _>>()?;
    // FNV-1a: it only has to tell one recipe from the next.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let output = workspace_root().join(format!("target/debian/guest-{hash:016x}"));
    let file = |name: &str| output.join(name);
    if ["root.raw", "vmlinuz", "initrd"].iter().all(|name| file(name).exists()) {
        return Ok(Built { root: file("root.raw"), kernel: file("vmlinuz"), initrd: file("initrd") });
    }
    let progress = |step: &str| eprintln!("        {step}");
    Ok(build(&Order { recipe, output, progress: &progress, cancelled: &AtomicBool::new(false) })?)
}

fn seed(hostname: &str, nonce: &Nonce, password: &Nonce) -> anyhow::Result<Vec<u8>> {
    let user_data = format!(
        "#cloud-config\nchpasswd: {{ expire: false, list: 'root:{}' }}\nwrite_files:\n  \
         - {{ path: /root/told, content: '{}' }}\n",
        password.as_str(),
        nonce.as_str()
    );
    let raw = Unchecked {
        hostname: hostname.to_owned(),
        ssh_keys: vec![SSH_KEY.to_owned()],
        user_data,
        network_config: String::new(),
    };
    Ok(Seed::try_from(raw)?.image("i-0001", "unnamed"))
}

/// A Debian and its console.
struct Session {
    vmmd: Vmmd,
    hostname: &'static str,
    password: Nonce,
    commands: u32,
}

impl Session {
    /// Waits for the login prompt and logs in.
    async fn log_in(&mut self, progress: &Progress) -> anyhow::Result<()> {
        // cloud-init names the guest before anybody can log in, and sets the password some time after.
        self.vmmd.wait_for(&format!("{} login:", self.hostname), BOOT_DEADLINE).await?;
        progress.say("the login prompt is there");
        loop {
            self.vmmd.type_text("root\n").await?;
            self.vmmd.wait_for("Password:", COMMAND_DEADLINE).await?;
            self.vmmd.type_text(&format!("{}\n", self.password.as_str())).await?;
            let said = self.vmmd.wait_for_any(&["Login incorrect", ":~# "], COMMAND_DEADLINE).await?;
            if said.ends_with(":~# ") {
                return Ok(());
            }
            progress.say("not yet");
            self.vmmd.wait_for("login:", COMMAND_DEADLINE).await?;
        }
    }

    /// Runs a command; its output, if it ended well.
    async fn run(&mut self, command: &str) -> anyhow::Result<String> {
        self.commands += 1;
        let mark = format!("ENDED-{}-", self.commands);
        // The line that is typed is echoed, and must not look like its own end.
        self.vmmd.type_text(&format!("{command}; echo ENDED-{}-$?-\n", self.commands)).await?;
        self.vmmd.wait_for("$?-\n", COMMAND_DEADLINE).await?;
        let output = self.vmmd.wait_for(&mark, COMMAND_DEADLINE).await?;
        let status = self.vmmd.wait_for("-\n", COMMAND_DEADLINE).await?;
        anyhow::ensure!(status == "0-\n", "in the guest, '{command}' failed ({status}):\n{output}");
        Ok(output.trim_end_matches(mark.as_str()).trim().to_owned())
    }
}

/// Writes and verifies a disk in ways that reach every kind of request.
async fn exercise_disk(session: &mut Session, disk: &str) -> anyhow::Result<()> {
    for (pattern, block, options) in [
        ("randwrite", "4k", "--iodepth=16"),
        ("randrw", "4k-64k", "--iodepth=8 --fsync=16"),
        ("write", "1M", "--iodepth=4"),
    ] {
        session
            .run(&format!(
                "fio --name=v --filename={disk} --rw={pattern} --bsrange={block} --size=24M --direct=1 \
                 --ioengine=libaio {options} --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal >/dev/null"
            ))
            .await?;
    }
    session.run(&format!("blkdiscard {disk} && blkdiscard --zeroout {disk}")).await?;
    session.run(&format!("mkfs.ext4 -q {disk} && mkdir -p /data && mount {disk} /data")).await?;
    session.run("cp -r /usr/bin /data/ && sync && fstrim /data").await?;
    session.run("diff -r /usr/bin /data/bin && umount /data").await?;
    session.run(&format!("fsck.ext4 -f -n {disk}")).await?;
    Ok(())
}

fn host_with(debian: &Built, seed: &[u8], folder: &Path) -> anyhow::Result<EmulatedHost> {
    let disk: PathBuf = folder.join("disk");
    fs::create_dir(&disk)?;
    for (from, name) in [(&debian.root, "root.raw"), (&debian.kernel, "vmlinuz"), (&debian.initrd, "initrd")]
    {
        fs::copy(from, disk.join(name))?;
    }
    fs::write(disk.join("seed.iso"), seed)?;
    fs::File::create(disk.join("data.raw"))?.set_len(DATA_BYTES)?;
    let host = hosts::start(Given {
        disk: &disk,
        disk_bytes: HOST_DISK_BYTES,
        memory_mib: 1536,
        link: None,
        libraries: Vec::new(),
    })?;
    // It is on the host's disk now.
    fs::remove_dir_all(&disk)?;
    Ok(host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_with_cloud_init_boots_to_a_login_works_its_disks_and_ends_as_asked() -> anyhow::Result<()> {
    if !long() || !emulated_host() {
        return Ok(());
    }
    if !is_installed("mmdebstrap") {
        skipped("mmdebstrap is not installed: the package mmdebstrap");
        return Ok(());
    }
    let progress = Progress::begin();
    let debian = debian()?;
    progress.say("the guest is built");
    let folder = tempfile::tempdir_in(workspace_root().join("target"))?;
    let (nonce, password) = (Nonce::random(), Nonce::random());
    let hostname = "web-1";
    let seed = seed(hostname, &nonce, &password)?;
    let host = Arc::new(host_with(&debian, &seed, folder.path())?);
    progress.say("the host is up");

    let path = |name: &str| format!("/disk/{name}");
    let guest = Guest {
        vcpus: 2,
        memory_mib: 512,
        kernel: path("vmlinuz"),
        initrd: path("initrd"),
        cmdline: "root=LABEL=root rw console=ttyS0 quiet panic=-1".to_owned(),
        disks: vec![(path("root.raw"), false), (path("data.raw"), false), (path("seed.iso"), true)],
        reset_ends: false,
    };
    let mut vmmd = Vmmd::spawn(&host, "debian").await?;
    vmmd.boot(&guest).await?;
    let mut session = Session { vmmd, hostname, password, commands: 0 };
    session.log_in(&progress).await?;
    session.run("cloud-init status --wait >/dev/null; cloud-init status | grep -q done").await?;
    assert_eq!(session.run("cat /root/told").await?, nonce.as_str());
    assert_eq!(
        session.run("cat /run/cloud-init/result.json | grep -c 'DataSourceNoCloud.*seed=/dev/vdc'").await?,
        "1"
    );
    assert!(session.run("cat /home/debian/.ssh/authorized_keys").await?.contains(SSH_KEY));
    assert_eq!(session.run("nproc").await?, "2");
    assert_eq!(session.run("findmnt -no SOURCE /").await?, "/dev/vda");
    progress.say("cloud-init has done what it was told");
    exercise_disk(&mut session, "/dev/vdb").await?;
    progress.say("fio, mkfs and fsck found every byte");
    session.run("echo kept > /root/kept").await?;
    session.vmmd.type_text("reboot\n").await?;
    session.log_in(&progress).await?;
    progress.say("reboot started it anew");
    assert_eq!(session.run("cat /root/kept").await?, "kept");
    session.run("tr a-f A-F < /root/told > /root/answer; systemctl is-system-running --wait || systemctl --failed").await?;
    session.vmmd.type_text("poweroff\n").await?;
    let info = session.vmmd.ends(COMMAND_DEADLINE).await?;
    anyhow::ensure!(info.stop_reason() == wire::StopReason::GuestShutdown, "{info:?}");
    progress.say("poweroff ended the VM");

    let image = host.power_off()?;
    let root = folder.path().join("root.raw");
    ext4::dump(&image, "/root.raw", &root)?;
    ext4::check(&root)?;
    let answer = String::from_utf8(ext4::read(&root, "/root/answer")?)?;
    assert_eq!(answer.trim(), nonce.as_str().to_uppercase());
    progress.say("its answer is on the disk");
    Ok(())
}
