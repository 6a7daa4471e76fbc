//! Kernels and busybox as Debian ships them: downloaded once with `apt-get download`, unpacked below `target/`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context as _, ensure};
use drover_test_prerequisites::workspace_root;

use crate::{command::output_of, kernel_image::unpack_bzimage};

/// One at a time in this process; a lock file keeps other processes away.
static UNPACKING: Mutex<()> = Mutex::new(());

/// Names the folder to keep packages in, instead of one below `target/`.
pub const CACHE_VARIABLE: &str = "DROVER_DEBIAN_CACHE";

/// A kernel series, by the package that always depends on its newest build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Debian 12's own kernel.
    Bookworm,
    /// The kernel of Debian 13, as it is offered for Debian 12.
    V6_12,
}

impl Series {
    fn package(self) -> &'static str {
        match self {
            Self::Bookworm => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }
}

/// An unmodified Debian kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says in a guest that runs it.
    pub version: String,
    /// The compressed image as packaged.
    pub bzimage: PathBuf,
    /// The 64-bit ELF image inside it.
    pub vmlinux: PathBuf,
    /// `/lib/modules/<version>/kernel`
    modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series, downloaded if it is not at hand.
    ///
    /// # Errors
    /// If the package cannot be had: no apt, no such series in its sources, no network.
    pub fn newest(series: Series) -> anyhow::Result<Self> {
        let cache = Cache::open()?;
        let package = cache.dependency_of(series.package())?;
        let version = package.strip_prefix("linux-image-").context("not a kernel package")?.to_owned();
        let root = cache.unpacked(&package)?;
        cache.remember(series.package(), &package)?;
        let (bzimage, vmlinux) = (root.join(format!("boot/vmlinuz-{version}")), root.join("vmlinux"));
        if !vmlinux.exists() {
            let packed = fs::read(&bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
            let image = unpack_bzimage(&packed).with_context(|| bzimage.display().to_string())?;
            write_whole(&vmlinux, &image)?;
        }
        let modules = root.join("lib/modules").join(&version).join("kernel");
        Ok(Self { version, bzimage, vmlinux, modules })
    }

    /// Uncompressed modules of these names, in this order. Those that the kernel does not have (because they are built
    /// in) are left out.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in names {
            let Some(path) = find_module(&self.modules, name)? else { continue };
            let content = if path.extension().is_some_and(|extension| extension == "xz") {
                let busybox = busybox()?;
                output_of(Command::new(&busybox).args(["xz", "-dc"]).arg(&path))?
            } else {
                fs::read(&path)?
            };
            found.push(((*name).to_owned(), content));
        }
        Ok(found)
    }
}

/// Debian's static busybox, which also runs on this machine.
///
/// # Errors
/// If the package cannot be had.
pub fn busybox() -> anyhow::Result<PathBuf> {
    // Debian 12 has it in /bin, Debian 13 in /usr/bin.
    let root = Cache::open()?.unpacked("busybox-static")?;
    let places = [root.join("bin/busybox"), root.join("usr/bin/busybox")];
    places.into_iter().find(|path| path.exists()).context("busybox-static has no busybox")
}

/// Unpacked packages, kept from one run to the next. One process at a time changes it.
struct Cache {
    folder: PathBuf,
    _lock: File,
    _unpacking: std::sync::MutexGuard<'static, ()>,
}

impl Cache {
    fn open() -> anyhow::Result<Self> {
        let folder = std::env::var_os(CACHE_VARIABLE)
            .map_or_else(|| workspace_root().join("target/debian"), PathBuf::from);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let unpacking = UNPACKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lock = File::create(folder.join("lock"))?;
        lock.lock()?;
        Ok(Self { folder, _lock: lock, _unpacking: unpacking })
    }

    /// The package that a metapackage stands for.
    fn dependency_of(&self, metapackage: &str) -> anyhow::Result<String> {
        if let Ok(package) = fs::read_to_string(self.remembered(metapackage)) {
            return Ok(package);
        }
        let mut listed = depends(metapackage, &[]);
        if listed.is_err() {
            listed = self.update_lists().and_then(|()| depends(metapackage, &self.private_lists()));
        }
        listed.with_context(|| format!("apt does not know the package {metapackage}"))
    }

    /// For next time, which then needs no network.
    fn remember(&self, metapackage: &str, package: &str) -> io::Result<()> {
        write_whole(&self.remembered(metapackage), package.as_bytes())
    }

    fn remembered(&self, metapackage: &str) -> PathBuf {
        self.folder.join(format!("{metapackage}.newest"))
    }

    fn unpacked(&self, package: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(package);
        if folder.exists() {
            return Ok(folder);
        }
        let download = tempfile::tempdir_in(&self.folder)?;
        let get = |lists: &[String]| {
            let mut command = Command::new("apt-get");
            output_of(command.args(lists).args(["download", package]).current_dir(download.path()))
        };
        if get(&[]).is_err() {
            self.update_lists()?;
            get(&self.private_lists()).with_context(|| format!("cannot download {package}"))?;
        }
        let file = fs::read_dir(download.path())?.next().context("apt-get downloaded nothing")??.path();
        let unpacking = download.path().join("unpacked");
        output_of(Command::new("dpkg-deb").arg("--extract").args([&file, &unpacking]))?;
        fs::rename(&unpacking, &folder)?;
        Ok(folder)
    }

    /// apt's lists of packages in our own folder: a container often has none, and not everybody may write the system's.
    fn private_lists(&self) -> [String; 4] {
        let lists = self.folder.join("lists");
        let folder = lists.display();
        [
            "-o".to_owned(),
            format!("Dir::State::lists={folder}"),
            "-o".to_owned(),
            format!("Dir::Cache={folder}"),
        ]
    }

    fn update_lists(&self) -> anyhow::Result<()> {
        fs::create_dir_all(self.folder.join("lists/partial"))?;
        output_of(Command::new("apt-get").args(self.private_lists()).arg("update"))?;
        Ok(())
    }
}

fn depends(metapackage: &str, lists: &[String]) -> anyhow::Result<String> {
    let listed = output_of(Command::new("apt-cache").args(lists).args(["depends", metapackage]))?;
    let listed = String::from_utf8_lossy(&listed);
    let package = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.context("it depends on nothing")?.to_owned();
    ensure!(package.starts_with("linux-image-"), "it depends on {package}, which is no kernel");
    Ok(package)
}

fn find_module(folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if let Some(file) = path.file_name().and_then(|file| file.to_str())
            && (file.strip_suffix(".ko").or(file.strip_suffix(".ko.xz")) == Some(name))
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Written beside its place and moved there: whoever sees it sees all of it.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("writing");
    fs::write(&beside, content)?;
    fs::rename(beside, path)
}
