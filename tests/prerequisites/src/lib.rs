//! What a test may find missing on a machine, and how it says so.
//!
//! A test that needs KVM begins with `if !kvm() { return; }`. A skip is never silent: it is written to the file that
//! `DROVER_SKIPPED` names, and `cargo xtask test` prints and counts what it finds there.
//!
//! [`probe_image`] gives the path of the probe guest, building it once where it has not been built.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a skip must be seen even when the harness collects no file")]

mod footprint;

use std::{
    env,
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
};

pub use footprint::pss_beyond_guest_ram;

/// Names the file that collects skipped tests, one per line: `test name<TAB>reason`.
pub const SKIPPED_VARIABLE: &str = "DROVER_SKIPPED";
/// Names the probe image to use instead of building one.
pub const PROBE_VARIABLE: &str = "DROVER_PROBE";

/// Whether `/dev/kvm` exists. Where it does not, the running test is recorded as skipped.
///
/// A device that exists but may not be opened is a failure of the set-up, not a reason to skip: the test then fails
/// with KVM's own error.
#[must_use]
pub fn kvm() -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        skipped("no /dev/kvm on this machine");
    }
    there
}

/// Debian's packages with what a private Ceph cluster and its clients need; librbd1 and librados2 come with ceph-common.
pub const CEPH_PACKAGES: &str = "ceph-mon ceph-osd ceph-common librbd1 librados2";

/// Whether a Ceph cluster can be started here. Where it cannot, the running test is recorded as skipped.
#[must_use]
pub fn ceph() -> bool {
    const PROGRAMS: [&str; 8] =
        ["ceph-mon", "ceph-osd", "ceph", "rbd", "rados", "crushtool", "osdmaptool", "monmaptool"];
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| !is_installed(program)).collect();
    if !missing.is_empty() {
        skipped(&format!(
            "{} not installed: `cargo xtask setup`, or the packages {CEPH_PACKAGES}",
            missing.join(", ")
        ));
    }
    missing.is_empty()
}

/// Moves the running test's thread, and the threads it starts from now on, into a network namespace of its own in which
/// tap interfaces can be made. Where that is not possible, the running test is recorded as skipped.
#[must_use]
pub fn network_namespace() -> bool {
    if !Path::new("/dev/net/tun").exists() {
        skipped("no /dev/net/tun on this machine");
        return false;
    }
    match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        Ok(()) => true,
        Err(error) => {
            skipped(&format!("no network namespace of its own ({error}): needs CAP_SYS_ADMIN"));
            false
        }
    }
}

/// Debian's packages with what an emulated host is made with.
pub const EMULATED_HOST_PACKAGES: &str = "qemu-system-x86 e2fsprogs util-linux libc-bin binutils";

/// Whether an emulated host can be started here. Where it cannot, the running test is recorded as skipped.
#[must_use]
pub fn emulated_host() -> bool {
    const PROGRAMS: [&str; 6] = ["qemu-system-x86_64", "setpriv", "timeout", "ldd", "apt-get", "dpkg-deb"];
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| !is_installed(program)).collect();
    if !missing.is_empty() {
        skipped(&format!(
            "{} not installed: `cargo xtask setup`, or the packages {EMULATED_HOST_PACKAGES}, on Debian",
            missing.join(", ")
        ));
    }
    missing.is_empty()
}

/// Whether `program` lies in one of the folders of `PATH`.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// Records that the running test was skipped.
///
/// # Panics
/// If the record cannot be written: a skip that nobody counts would look like a pass.
pub fn skipped(reason: &str) {
    let test = thread::current().name().unwrap_or("unnamed test").to_owned();
    eprintln!("skipped: {test}: {reason}");
    if let Some(path) = env::var_os(SKIPPED_VARIABLE) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .expect("the skip record must be writable");
        writeln!(file, "{test}\t{reason}").expect("the skip record must be writable");
    }
}

/// The probe guest's ELF image.
///
/// # Panics
/// If it has to be built and cannot be.
pub fn probe_image() -> PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE
        .get_or_init(|| match env::var_os(PROBE_VARIABLE) {
            Some(path) => PathBuf::from(path),
            None => build_probe().unwrap_or_else(|error| panic!("building the probe guest: {error}")),
        })
        .clone()
}

/// Builds the probe with the host toolchain and returns the image's path.
///
/// Concurrent calls are serialised by cargo's own lock on the target directory; a build with nothing to do takes
/// about 0.1 s.
///
/// # Errors
/// What cargo printed, if it failed.
pub fn build_probe() -> Result<PathBuf, String> {
    let folder = workspace_root().join("guest-images/probe");
    let target = workspace_root().join("target/probe");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(&target)
        .current_dir(&folder)
        // The workspace's own build flags (coverage, sanitizers) do not fit a bare-metal program.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .map_err(|error| format!("cannot run cargo in {}: {error}", folder.display()))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let image = target.join("release/drover-probe");
    File::open(&image).map_err(|error| format!("{}: {error}", image.display()))?;
    Ok(image)
}

/// The root of this workspace.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies two folders below the root").to_owned()
}
