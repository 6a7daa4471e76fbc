//! The machine that was measured on.

use std::{fs, path::Path, process::Command, thread};

use serde::Serialize;

/// Modules that make `/dev/kvm`, from the most specific.
const KVM_MODULES: [&str; 4] = ["kvm_amd", "kvm_intel", "kvm_pvm", "kvm"];

/// What a figure depends on besides the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cores: usize,
    /// Release of the running kernel.
    pub kernel: String,
    /// The module behind `/dev/kvm`, `built-in`, or `none` where there is no such device.
    pub kvm: String,
}

impl Host {
    /// This machine. What it does not tell is `unknown`.
    #[must_use]
    pub fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: model_name(&cpuinfo).unwrap_or_else(|| "unknown".to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: if kernel.is_empty() { "unknown".to_owned() } else { kernel.trim().to_owned() },
            kvm: kvm(Path::new("/dev/kvm"), Path::new("/sys/module")),
        }
    }
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kvm(device: &Path, modules: &Path) -> String {
    if !device.exists() {
        return "none".to_owned();
    }
    // A module that a kernel has built in has a folder only if it has parameters: `initstate` tells a loaded one.
    let loaded = |module: &&&str| modules.join(module).join("initstate").exists();
    KVM_MODULES.iter().find(loaded).map_or_else(|| "built-in".to_owned(), |module| (*module).to_owned())
}

/// The commit of the source tree, with `-dirty` after it where tracked files differ from it; `unknown` outside a repository.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-dirty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cpus_model_name_is_taken() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(model_name(cpuinfo).as_deref(), Some("AMD EPYC"));
        assert_eq!(model_name("processor: 0\n"), None);
    }

    #[test]
    fn the_module_behind_the_device_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (device, modules) = (folder.path().join("kvm"), folder.path().join("module"));
        assert_eq!(kvm(&device, &modules), "none");
        fs::write(&device, "").unwrap();
        assert_eq!(kvm(&device, &modules), "built-in");
        for module in ["kvm", "kvm_pvm"] {
            fs::create_dir_all(modules.join(module)).unwrap();
            fs::write(modules.join(module).join("initstate"), "live\n").unwrap();
        }
        assert_eq!(kvm(&device, &modules), "kvm_pvm");
    }
}
