//! The emulator's process.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use drover_hypervisor::TimeSample;

/// How long the time-stamp counter is watched: some microseconds' doubt of either end are then no part in ten thousand.
const MEASURING: Duration = Duration::from_millis(100);

/// QEMU 7.2 emulates SVM well enough for Linux under KVM only without these: its cmpxchg16b corrupts the flags of a
/// nested guest, and what it says of XSAVE is not what a nested guest finds.
const CPU: &str = "EPYC,+svm,+npt,-cx16,-xsave,-avx,-avx2,-f16c,-fma,-xsaveopt,-xgetbv1";

/// What an emulator needs to know.
pub(crate) struct Emulator<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) disk: &'a Path,
    pub(crate) console: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// Port of this machine's loopback address that leads to the door.
    pub(crate) door: u16,
    /// More arguments: a link to another host.
    pub(crate) link: &'a [String],
    /// It is killed then, whatever it does.
    pub(crate) lifetime: Duration,
}

impl Emulator<'_> {
    /// Starts it. It dies with the thread that called this, by the kernel's hand if need be.
    pub(crate) fn start(&self) -> anyhow::Result<Child> {
        let log = File::create(self.log)?;
        let orphan_dies = ["--pdeathsig", "KILL"];
        let mut command = Command::new("setpriv");
        command.args(orphan_dies).args(["timeout", "--signal=KILL"]).arg(self.lifetime.as_secs().to_string());
        command.arg("setpriv").args(orphan_dies).arg("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()]);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initrd);
        // Linux distrusts the TSC of several AMD processors that do not say that it is constant, and reads the emulated HPET
        // instead, each reading of which leaves the guest. An emulator that has to wait for a processor ticks late, which is
        // no reason to give the timer up either.
        let trust = "tsc=reliable no_timer_check";
        // Its counter is this machine's, whose rate it would measure by an emulated timer: on a busy machine its clock then
        // goes several times too fast, and every deadline in it comes too soon. Without a clock to compare with, Linux
        // leaves the rate as it is told (arch/x86/kernel/tsc.c).
        let tsc = format!("tsc_early_khz={} hpet=disable pmtmr=0", tsc_khz());
        // Guarding against speculation costs a third of an emulated processor's time, which does not speculate. Nor is it
        // stuck when it does not come to run.
        let fast = "mitigations=off nowatchdog";
        command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 {fast} {trust} {tsc}"));
        let disk =
            format!("file={},format=raw,if=none,id=d0,cache=unsafe,discard=unmap", self.disk.display());
        command.arg("-drive").arg(disk).args(["-device", "virtio-blk-pci,drive=d0"]);
        let door =
            format!("user,id=door,restrict=on,hostfwd=tcp:127.0.0.1:{}-:{}", self.door, crate::door::PORT);
        command.arg("-netdev").arg(door).args(["-device", "virtio-net-pci,netdev=door,romfile="]);
        command.args(self.link);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("cannot start qemu-system-x86_64 (by way of setpriv and timeout)")
    }
}

/// The rate of this machine's time-stamp counter, the same for every host: a guest that moves between two would not stand
/// more than a little difference.
fn tsc_khz() -> u64 {
    static MEASURED: OnceLock<u64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let begin = TimeSample::now();
        thread::sleep(MEASURING);
        let end = TimeSample::now();
        (end.tsc - begin.tsc) * 1_000_000 / end.ns_since(&begin).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_the_counter_is_a_processors() {
        let khz = tsc_khz();
        assert!((500_000..10_000_000).contains(&khz), "{khz}");
        assert_eq!(tsc_khz(), khz);
    }
}
