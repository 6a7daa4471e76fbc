//! `cargo xtask setup`: what the machine lacks, installed where it may be.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;

/// A program that Drover's build or tests run, and the distribution package that has it.
struct Needed {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

/// rustc calls `cc` to link; everything else comes from crates.
const NEEDED: [Needed; 1] =
    [Needed { program: "cc", package: "gcc libc6-dev", why: "the Rust compiler links with it" }];

/// Installs missing packages if it may, otherwise prints the exact command. Says what KVM is like.
pub(crate) fn run() -> anyhow::Result<()> {
    install_missing()?;
    match check_kvm() {
        Ok(()) => eprintln!("setup: /dev/kvm can be used"),
        Err(error) => eprintln!("setup: {error:#}"),
    }
    Ok(())
}

/// Installs the packages whose programs are missing.
pub(crate) fn install_missing() -> anyhow::Result<()> {
    let missing: Vec<&Needed> = NEEDED.iter().filter(|needed| !is_installed(needed.program)).collect();
    if missing.is_empty() {
        eprintln!("setup: every program that is needed is here");
        return Ok(());
    }
    for needed in &missing {
        eprintln!("setup: {} is missing: {}", needed.program, needed.why);
    }
    let packages: Vec<&str> = missing.iter().flat_map(|needed| needed.package.split(' ')).collect();
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

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
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
