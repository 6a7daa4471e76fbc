//! A Debian that runs in an emulated host, and its console.

use std::{path::PathBuf, sync::Arc, time::Duration};

use drover_test_emulated_host::{EmulatedHost, HostDisk, guest::Nonce};
use drover_wire::vm::v1 as wire;

use super::image;
use crate::{
    hosts::{self, Given, Progress},
    vmmd::{Guest, Vmmd},
};

/// systemd's boot with cloud-init's first run: about a minute of a processor here, and others may have it.
pub(super) const BOOT_DEADLINE: Duration = Duration::from_secs(1800);
/// For one command in the guest.
pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(900);

/// The address of a Debian's first interface, which is in the last slot of its bus and named after that. By its name alone:
/// what cloud-init of Debian 12 writes for networkd knows no patterns.
pub(super) const NETWORK: &str = "version: 2\nethernets:\n  ens31: { addresses: [192.168.7.2/24] }\n";

/// What a Debian is told beside its tasks: to leave out what costs an emulated processor much of its time and does nothing
/// for it, which is guarding against speculation, and loading drivers of instructions. An emulator that waits for a
/// processor lets its guests stand still, which is no news.
pub(super) const CMDLINE: &str = "root=LABEL=root rw console=ttyS0 quiet panic=-1 mitigations=off nowatchdog \
    rcupdate.rcu_cpu_stall_suppress=1 modprobe.blacklist=aesni_intel,crc32_pclmul,crct10dif_pclmul,\
    ghash_clmulni_intel,intel_rapl_msr,kvm_amd,sha1_ssse3,sha256_ssse3,sha512_ssse3";

/// Disks of a guest besides its root, by their paths in the host; the last is read only where it is a seed.
pub(super) fn guest(disks: &[(&str, bool)], more: &str) -> Guest {
    let all = [&[("/disk/root.raw", false)][..], disks].concat();
    Guest {
        vcpus: 2,
        memory_mib: 512,
        kernel: "/disk/vmlinuz".to_owned(),
        initrd: "/disk/initrd".to_owned(),
        cmdline: format!("{CMDLINE} {more}"),
        disks: all.iter().map(|(path, read_only)| ((*path).to_owned(), *read_only)).collect(),
        ..Guest::default()
    }
}

/// A host with a Debian's files on its disk.
pub(super) fn host(progress: &Progress) -> anyhow::Result<Arc<EmulatedHost>> {
    host_with(progress, Vec::new())
}

/// The same, with more programs of this machine.
pub(super) fn host_with(
    progress: &Progress,
    programs: Vec<(String, PathBuf)>,
) -> anyhow::Result<Arc<EmulatedHost>> {
    let disk = image::host_disk()?;
    progress.say("the guest is built");
    let disk = Some(HostDisk::CopyOf(disk));
    let host = hosts::start(Given { disk, memory_mib: 1280, programs, ..Given::default() })?;
    progress.say("the host is up");
    Ok(Arc::new(host))
}

/// A Debian and its console.
pub(super) struct Session {
    pub(super) vmmd: Vmmd,
    commands: u32,
    /// Which boot of the guest it is.
    boot: String,
}

impl Session {
    /// Boots a Debian.
    pub(super) async fn boot(host: &Arc<EmulatedHost>, guest: &Guest) -> anyhow::Result<Self> {
        let mut vmmd = Vmmd::spawn(host, "debian").await?;
        vmmd.boot(guest).await?;
        Ok(Self { vmmd, commands: 0, boot: String::new() })
    }

    /// Waits for the login prompt and logs in, with a password that cloud-init has set.
    pub(super) async fn log_in(&mut self, hostname: &str, password: &Nonce) -> anyhow::Result<()> {
        // The prompt may be there before the password, and is shown again.
        self.vmmd.wait_for("running 'modules:final'", BOOT_DEADLINE).await?;
        self.vmmd.type_text("\n").await?;
        loop {
            self.vmmd.wait_for(&format!("{hostname} login:"), BOOT_DEADLINE).await?;
            self.vmmd.type_text("root\n").await?;
            self.vmmd.wait_for("Password:", COMMAND_DEADLINE).await?;
            self.vmmd.type_text(&format!("{}\n", password.as_str())).await?;
            // A slow machine is logged out again: it takes a minute.
            let ends = ["Login incorrect", "Login timed out", ":~# "];
            let said = self.vmmd.wait_for_any(&ends, COMMAND_DEADLINE).await?;
            if said.ends_with(":~# ") {
                break;
            }
        }
        // A shell that repeats what is typed as it is, however long a line.
        self.vmmd.type_text("exec sh\n").await?;
        // What is typed before it has the terminal is not repeated.
        self.vmmd.wait_for("# ", COMMAND_DEADLINE).await?;
        self.settle().await
    }

    /// Waits for the shell that [`image::SHELL`] starts, in a boot that has not been seen yet.
    pub(super) async fn at_shell(&mut self) -> anyhow::Result<()> {
        self.vmmd.wait_for("SHELL-OF-BOOT ", BOOT_DEADLINE).await?;
        let boot = self.vmmd.wait_for("\n", COMMAND_DEADLINE).await?;
        anyhow::ensure!(self.boot != boot, "the shell has been started again, not the guest");
        self.boot = boot;
        self.settle().await
    }

    async fn settle(&mut self) -> anyhow::Result<()> {
        self.run("stty -onlcr; dmesg -n 1").await.map(drop)
    }

    /// Runs a command; its output, if it ended well.
    pub(super) async fn run(&mut self, command: &str) -> anyhow::Result<String> {
        self.commands += 1;
        let mark = format!("ENDED-{}-", self.commands);
        // The line that is typed is echoed, and must not look like its own end.
        self.vmmd.type_text(&format!("{command}; echo ENDED-{}-$?-\n", self.commands)).await?;
        self.vmmd.wait_for("$?-\n", COMMAND_DEADLINE).await?;
        let output = self.vmmd.wait_for(&mark, COMMAND_DEADLINE).await?;
        let status = self.vmmd.wait_for("-", COMMAND_DEADLINE).await?;
        let output = output.trim_end_matches(mark.as_str()).trim().to_owned();
        anyhow::ensure!(status == "0-", "in the guest, '{command}' failed ({status}):\n{output}");
        Ok(output)
    }

    /// Presses the power button, and waits until the guest has switched itself off for that.
    pub(super) async fn power_off_by_button(mut self) -> anyhow::Result<()> {
        // Only who listens can obey.
        self.run("until systemctl -q is-active systemd-logind; do sleep 1; done").await?;
        self.run("grep -q 'Power Button' /proc/bus/input/devices").await?;
        self.vmmd.press_power_button().await?;
        self.switched_off().await
    }

    /// Waits until the guest has switched itself off.
    pub(super) async fn switched_off(self) -> anyhow::Result<()> {
        let info = self.vmmd.ends(COMMAND_DEADLINE).await?;
        anyhow::ensure!(info.stop_reason() == wire::StopReason::GuestShutdown, "{info:?}");
        Ok(())
    }
}
