//! `cargo xtask setup`: what the machine lacks, installed where it may be.

use std::{
    collections::BTreeSet,
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use drover_test_prerequisites::{CEPH_PACKAGES, EMULATED_HOST_PACKAGES, is_installed};
use nix::unistd::Uid;

/// A program that Drover's build, tests or benches run, and the distribution packages that have it.
struct Needed {
    program: &'static str,
    packages: &'static str,
    why: &'static str,
}

/// rustc calls `cc` to link; everything else comes from crates.
const TO_BUILD: [Needed; 1] =
    [Needed { program: "cc", packages: "gcc libc6-dev", why: "the Rust compiler links with it" }];

/// Without these, the tests on Ceph and those with Linux are skipped and counted. No daemon starts with these packages: their services are
/// instances of templates, and nobody names an instance.
const TO_TEST: [Needed; 6] = [
    Needed { program: "ceph-mon", packages: CEPH_PACKAGES, why: "tests start a Ceph cluster" },
    Needed { program: "ceph-osd", packages: CEPH_PACKAGES, why: "tests start a Ceph cluster" },
    Needed { program: "rbd", packages: CEPH_PACKAGES, why: "tests look into the images of a Ceph cluster" },
    Needed {
        program: "qemu-system-x86_64",
        packages: EMULATED_HOST_PACKAGES,
        why: "tests boot unmodified Linux in an emulated host",
    },
    Needed {
        program: "setpriv",
        packages: EMULATED_HOST_PACKAGES,
        why: "an emulated host ends with its test",
    },
    Needed { program: "isoinfo", packages: "genisoimage", why: "tests have it read seed disks" },
];

/// Without these, the long form of the tests with Linux leaves out the whole Debian, or its network.
const TO_TEST_LINUX: [Needed; 2] = [
    Needed {
        program: "mmdebstrap",
        packages: "mmdebstrap",
        why: "the long test with Linux builds a Debian guest",
    },
    Needed { program: "iperf3", packages: "iperf3", why: "a Debian guest sends to it" },
];

/// Without one of these, benches leave that peer out and say so.
const TO_COMPARE: [Needed; 3] = [
    Needed { program: "fio", packages: "fio", why: "bench block measures its rbd engine" },
    Needed {
        program: "qemu-system-x86_64",
        packages: "qemu-system-x86 qemu-block-extra",
        why: "bench block measures its rbd driver",
    },
    Needed { program: "qemu-img", packages: "qemu-utils", why: "images are compared with what it makes" },
];

/// Arguments of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also install the programs that benches compare us with
    #[arg(long)]
    bench: bool,
}

/// Installs missing packages if it may, otherwise prints the exact command. Says what KVM is like.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let peers: &[Needed] = if options.bench { &TO_COMPARE } else { &[] };
    install(TO_BUILD.iter().chain(&TO_TEST).chain(peers))?;
    match check_kvm() {
        Ok(()) => eprintln!("setup: /dev/kvm can be used"),
        Err(error) => eprintln!("setup: {error:#}"),
    }
    Ok(())
}

/// Installs what `cargo xtask test` needs. What tests can do without is no reason to stop: they count what they skip.
pub(crate) fn install_missing() -> anyhow::Result<()> {
    install(TO_BUILD.iter())?;
    if let Err(error) = install(TO_TEST.iter()) {
        eprintln!("setup: {error:#}");
    }
    Ok(())
}

/// Installs what only the long form of the tests with Linux needs.
pub(crate) fn install_for_linux() {
    if let Err(error) = install(TO_TEST_LINUX.iter()) {
        eprintln!("setup: {error:#}");
    }
}

fn install<'a>(needed: impl Iterator<Item = &'a Needed>) -> anyhow::Result<()> {
    let missing: Vec<&Needed> = needed.filter(|needed| !is_installed(needed.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for needed in &missing {
        eprintln!("setup: {} is missing: {}", needed.program, needed.why);
    }
    let packages: BTreeSet<&str> = missing.iter().flat_map(|needed| needed.packages.split(' ')).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let command = format!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
    if !Uid::effective().is_root() || !is_installed("apt-get") {
        bail!("run this as root, then try again: apt-get update && {command}");
    }
    shell("apt-get update")?;
    shell(&command)
}

/// Whether this process may use KVM; the error says what to do in one sentence.
pub(crate) fn check_kvm() -> anyhow::Result<()> {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        bail!(
            "this machine has no /dev/kvm: load the kvm_amd or kvm_intel module, or, in a virtual machine, have its host \
             enable nested virtualisation"
        );
    }
    match File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) => Err(error).context(
            "you may not open /dev/kvm: add yourself to its group (usermod -aG kvm $USER, then log in again) or run as root",
        ),
    }
}

fn shell(command: &str) -> anyhow::Result<()> {
    eprintln!("setup: {command}");
    let status = Command::new("sh")
        .args(["-c", command])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("cannot run sh")?;
    if !status.success() {
        bail!("'{command}' failed ({status})");
    }
    Ok(())
}
