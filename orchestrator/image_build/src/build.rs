//! The steps of a build.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
};

use nix::unistd::{Uid, User};

use crate::{
    BuildError, Order, Recipe,
    error::io_error,
    program::{is_installed, run},
};

const PACKAGES: &str = include_str!("../../../guest-images/linux/packages");
const BEFORE_PACKAGES: &str = include_str!("../../../guest-images/linux/before-packages.sh");
const AFTER_PACKAGES: &str = include_str!("../../../guest-images/linux/after-packages.sh");
const PACK: &str = include_str!("../../../guest-images/linux/pack.sh");

/// What has to be there, and the packages that have it.
const PROGRAMS: [(&str, &str); 4] =
    [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar"), ("unshare", "util-linux")];
/// Besides these, for who is not root.
const UNPRIVILEGED: [(&str, &str); 1] = [("newuidmap", "uidmap")];
/// The files of a guest.
const FILES: [&str; 3] = ["root.raw", "vmlinuz", "initrd"];
/// Least size of a root disk: what Debian with cloud-init takes, and some room.
const DISK_BYTES_MIN: u64 = 1 << 30;

/// Where a guest's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// An ext4 file system labelled `root`, to be the first disk.
    pub root: PathBuf,
    /// Debian's kernel, as packaged (a bzImage).
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

/// Carries out an order.
///
/// # Errors
/// [`BuildError`]; nothing has been made then.
pub fn build(order: &Order<'_>) -> Result<Built, BuildError> {
    let as_root = Uid::effective().is_root();
    check(&order.recipe)?;
    check_machine(as_root)?;
    let [root, kernel, initrd] = FILES.map(|name| order.output.join(name));
    for path in [&root, &kernel, &initrd] {
        if path.exists() {
            return Err(BuildError::Exists { path: path.clone() });
        }
    }
    fs::create_dir_all(&order.output)
        .map_err(io_error(format!("cannot make the folder {}", order.output.display())))?;
    // Beside the result, so that it can be moved there; removed with everything in it when this function ends.
    let work = tempfile::Builder::new()
        .prefix(".drover-build-")
        // The root of the user namespace is another user, who has to get through here.
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in(&order.output)
        .map_err(io_error(format!("cannot write in {}", order.output.display())))?;
    let archive = bootstrap(order, work.path(), as_root)?;
    pack(order, work.path(), &archive, as_root)?;
    if order.cancelled.load(Ordering::Relaxed) {
        return Err(BuildError::Cancelled);
    }
    for (name, place) in FILES.iter().zip([&root, &kernel, &initrd]) {
        fs::rename(work.path().join(name), place)
            .map_err(io_error(format!("cannot move a file to {}", place.display())))?;
    }
    Ok(Built { root, kernel, initrd })
}

fn check(recipe: &Recipe) -> Result<(), BuildError> {
    let invalid = |field, value: &str, valid| BuildError::Invalid { field, value: value.to_owned(), valid };
    if recipe.disk_bytes < DISK_BYTES_MIN || !recipe.disk_bytes.is_multiple_of(4096) {
        return Err(invalid("size", &recipe.disk_bytes.to_string(), "at least 1 GiB, a multiple of 4 KiB"));
    }
    // What mmdebstrap, apt or a shell would take for something else than a name.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-.:".contains(c);
    for package in &recipe.packages {
        if package.is_empty() || package.starts_with('-') || !package.chars().all(is_name) {
            return Err(invalid("package", package, "the name of a Debian package"));
        }
    }
    for mirror in [&recipe.mirror, &recipe.security_mirror] {
        let scheme = ["http://", "https://", "file:/"].iter().any(|scheme| mirror.starts_with(scheme));
        if !scheme || mirror.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(invalid("mirror", mirror, "an http, https or file URL"));
        }
    }
    Ok(())
}

fn check_machine(as_root: bool) -> Result<(), BuildError> {
    let more = if as_root { &[][..] } else { &UNPRIVILEGED[..] };
    let missing: Vec<_> = PROGRAMS.iter().chain(more).filter(|(program, _)| !is_installed(program)).collect();
    if !missing.is_empty() {
        let join = |words: Vec<&str>, by| words.join(by);
        return Err(BuildError::Missing {
            programs: join(missing.iter().map(|(program, _)| *program).collect(), ", "),
            packages: join(missing.iter().map(|(_, package)| *package).collect(), " "),
        });
    }
    if as_root {
        return Ok(());
    }
    let uid = Uid::effective();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let has = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .any(|line| line.split(':').next().is_some_and(|who| who == user || who == uid.to_string()))
    };
    if has("/etc/subuid") && has("/etc/subgid") { Ok(()) } else { Err(BuildError::NoSubUids { user }) }
}

/// Installs the packages into an archive.
fn bootstrap(order: &Order<'_>, work: &Path, as_root: bool) -> Result<PathBuf, BuildError> {
    let recipe = &order.recipe;
    let [before, after] =
        [("before", BEFORE_PACKAGES), ("after", AFTER_PACKAGES)].map(|(name, text)| script(work, name, text));
    let (before, after) = (before?, after?);
    let archive = work.join("root.tar");
    let packages: Vec<&str> = PACKAGES.lines().chain(recipe.packages.iter().map(String::as_str)).collect();
    let suite = recipe.suite.name();
    let (mirror, security) = (&recipe.mirror, &recipe.security_mirror);
    (order.progress)(&format!("building Debian {suite} from {mirror}"));
    let mut command = Command::new("mmdebstrap");
    command
        .arg(if as_root { "--mode=root" } else { "--mode=unshare" })
        .args(["--variant=minbase", "--format=tar", &format!("--include={}", packages.join(","))])
        .args([
            format!("--essential-hook={}", before.display()),
            format!("--customize-hook={}", after.display()),
        ])
        .args([suite.as_ref(), archive.as_os_str()])
        .arg(format!("deb {mirror} {suite} main"))
        .arg(format!("deb {mirror} {suite}-updates main"))
        .arg(format!("deb {security} {suite}-security main"))
        .env("TMPDIR", work);
    // "I: " begins the lines in which it says what it does.
    run(&mut command, order, |line| {
        if let Some(step) = line.strip_prefix("I: ") {
            (order.progress)(step);
        }
    })?;
    Ok(archive)
}

/// From the archive to the disk.
fn pack(order: &Order<'_>, work: &Path, archive: &Path, as_root: bool) -> Result<(), BuildError> {
    (order.progress)("making the root disk");
    let script = script(work, "pack", PACK)?;
    let mut command = Command::new(if as_root { "sh" } else { "unshare" });
    if !as_root {
        command.args(["--user", "--map-root-user", "--map-auto", "sh"]);
    }
    command.arg(script).arg(archive).arg(work).arg(order.recipe.disk_bytes.to_string());
    run(&mut command, order, |_| {})?;
    let root = work.join("root.raw");
    let disk = File::open(&root).and_then(|disk| disk.sync_all());
    disk.map_err(io_error("cannot write the root disk"))
}

fn script(work: &Path, name: &str, text: &str) -> Result<PathBuf, BuildError> {
    let path = work.join(format!("{name}.sh"));
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
        .map_err(io_error(format!("cannot write {}", path.display())))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_recipe_that_cannot_be_meant_is_refused_by_its_part() {
        let refused = |change: fn(&mut Recipe), field: &str| {
            let mut recipe = Recipe::default();
            change(&mut recipe);
            match check(&recipe) {
                Ok(()) => assert_eq!(field, ""),
                Err(error) => assert!(error.to_string().starts_with(field), "{error}"),
            }
        };
        refused(|_| {}, "");
        refused(|recipe| recipe.disk_bytes = 1 << 20, "size");
        refused(|recipe| recipe.packages = vec!["--hook=x".to_owned()], "package");
        refused(|recipe| recipe.packages = vec!["a b".to_owned()], "package");
        refused(|recipe| recipe.mirror = "deb.debian.org".to_owned(), "mirror");
        refused(|recipe| recipe.security_mirror = "http://x/ $(id)".to_owned(), "mirror");
    }

    #[test]
    fn a_program_that_is_no_longer_wanted_ends_with_all_that_it_started() {
        let cancelled = AtomicBool::new(false);
        let order = Order {
            recipe: Recipe::default(),
            output: PathBuf::new(),
            progress: &|_| {},
            cancelled: &cancelled,
        };
        let mut grandchild = None;
        let ended = run(Command::new("sh").args(["-c", "sleep 1000 & echo $!; wait"]), &order, |line| {
            grandchild = line.parse::<i32>().ok();
            cancelled.store(true, Ordering::Relaxed);
        });
        assert!(matches!(ended, Err(BuildError::Cancelled)), "{ended:?}");
        let pid = nix::unistd::Pid::from_raw(grandchild.expect("a process"));
        // It may be dead and not yet reaped by whoever inherits it.
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let order = Order {
            recipe: Recipe::default(),
            output: PathBuf::new(),
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        let error = run(Command::new("sh").args(["-c", "echo E: no room >&2; exit 3"]), &order, |_| {});
        let text = error.expect_err("failed").to_string();
        assert!(text.contains("no room") && text.contains('3'), "{text}");
    }
}
