//! What placement is told of the host: what is found in /sys and /proc, and what its operator says on the command line
//! or in a file. The command line wins over the file where only one can be right; lists add up.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use drover_tap::TapName;
use drover_units::Bytes;
use drover_wire::placement::v1::{HostFacts, Hugepages, Label, NumaNode, Reserve, Taint, TaintEffect};
use serde::Deserialize;

/// What an operator says of the host.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct HostArgs {
    /// A label of this host, such as rack=r1 or zone=eu-1 (repeat for several)
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Keeps VMs away that do not tolerate it: KEY[=VALUE]:refuse or KEY[=VALUE]:avoid (repeat for several)
    #[arg(long = "taint", value_name = "TAINT")]
    taints: Vec<String>,
    /// A network this host reaches, and its bridge into it, where VMs here may have interfaces in it (repeat for several)
    #[arg(long = "network", value_name = "NAME[=BRIDGE]")]
    networks: Vec<String>,
    /// How often a virtual CPU may be given away, such as 2.5 [default: 1]
    #[arg(long, value_name = "FACTOR")]
    vcpu_overcommit: Option<f64>,
    /// How often memory may be given away, such as 1.2 [default: 1]
    #[arg(long, value_name = "FACTOR")]
    memory_overcommit: Option<f64>,
    /// Virtual CPUs kept for the host itself, of those it offers [default: 0]
    #[arg(long, value_name = "N")]
    reserved_vcpus: Option<u32>,
    /// Memory kept for the host itself, of what it offers, such as 2G [default: 0]
    #[arg(long, value_name = "SIZE")]
    reserved_memory: Option<Bytes>,
    /// A TOML file that says the same: labels = { rack = "r1" }, taints, networks, vcpu_overcommit and so on
    #[arg(long, value_name = "FILE")]
    host_config: Option<PathBuf>,
}

/// A network that VMs of this node may have interfaces in.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) bridge: TapName,
}

/// The same, from a file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    taints: Vec<String>,
    #[serde(default)]
    networks: Vec<String>,
    vcpu_overcommit: Option<f64>,
    memory_overcommit: Option<f64>,
    reserved_vcpus: Option<u32>,
    reserved_memory: Option<String>,
}

/// Where the kernel says what a host is made of.
#[derive(Clone, Debug)]
pub(crate) struct HostFolders {
    sys: PathBuf,
    proc: PathBuf,
}

impl Default for HostFolders {
    fn default() -> Self {
        Self { sys: PathBuf::from("/sys"), proc: PathBuf::from("/proc") }
    }
}

impl HostArgs {
    /// The networks that VMs here may have interfaces in.
    pub(crate) fn bridged_networks(&self) -> anyhow::Result<Vec<Network>> {
        let mut networks: Vec<Network> = Vec::new();
        for text in self.file()?.networks.iter().chain(&self.networks) {
            let Some((name, bridge)) = text.split_once('=') else { continue };
            check_name("--network", name)?;
            ensure!(
                networks.iter().all(|other| other.name != name),
                "--network: '{name}' has two bridges: give one"
            );
            let bridge = bridge.parse().with_context(|| format!("--network: the bridge of '{name}'"))?;
            networks.push(Network { name: name.to_owned(), bridge });
        }
        Ok(networks)
    }

    fn file(&self) -> anyhow::Result<HostFile> {
        let Some(path) = &self.host_config else { return Ok(HostFile::default()) };
        let text = fs::read_to_string(path)
            .with_context(|| format!("--host-config: {} cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("--host-config: {}", path.display()))
    }

    /// Everything that is to be told of the host.
    pub(crate) fn resolve(&self, folders: &HostFolders) -> anyhow::Result<HostFacts> {
        let file = self.file()?;
        let mut labels = file.labels;
        for text in &self.labels {
            let (key, value) =
                text.split_once('=').with_context(|| format!("--label: '{text}' is not KEY=VALUE"))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        for (key, value) in &labels {
            check_name("--label", key)?;
            check_name("--label", value)?;
        }
        let taints = file.taints.iter().chain(&self.taints).map(|text| taint(text));
        let name = |text: &String| text.split('=').next().unwrap_or_default().to_owned();
        let networks: Vec<String> = file.networks.iter().chain(&self.networks).map(name).collect();
        networks.iter().try_for_each(|network| check_name("--network", network))?;
        let reserved_memory = match (self.reserved_memory, &file.reserved_memory) {
            (Some(bytes), _) => bytes,
            (None, Some(text)) => {
                text.parse().with_context(|| format!("reserved_memory: '{text}' is no size"))?
            }
            (None, None) => Bytes::ZERO,
        };
        let reserved_vcpus = self.reserved_vcpus.or(file.reserved_vcpus).unwrap_or(0);
        let (cores, threads) = cores_and_threads(&folders.sys);
        let reserved = Reserve { vcpus: reserved_vcpus, memory_bytes: reserved_memory.get() };
        Ok(HostFacts {
            labels: labels.into_iter().map(|(key, value)| Label { key, value }).collect(),
            taints: taints.collect::<anyhow::Result<_>>()?,
            cores,
            threads,
            numa: numa_nodes(&folders.sys),
            cpu_baseline: cpu_baseline(&folders.proc).to_owned(),
            networks,
            vcpu_overcommit_percent: percent(
                "--vcpu-overcommit",
                self.vcpu_overcommit.or(file.vcpu_overcommit),
            )?,
            memory_overcommit_percent: percent(
                "--memory-overcommit",
                self.memory_overcommit.or(file.memory_overcommit),
            )?,
            reserved: (reserved != Reserve::default()).then_some(reserved),
        })
    }
}

/// KEY[=VALUE]:EFFECT.
fn taint(text: &str) -> anyhow::Result<Taint> {
    let Some((what, effect)) = text.rsplit_once(':') else {
        bail!("--taint: '{text}' is not KEY[=VALUE]:refuse or KEY[=VALUE]:avoid");
    };
    let effect = match effect {
        "refuse" => TaintEffect::Refuse,
        "avoid" => TaintEffect::Avoid,
        other => bail!("--taint: '{other}' is no effect; valid: refuse, avoid"),
    };
    let (key, value) = what.split_once('=').unwrap_or((what, ""));
    check_name("--taint", key)?;
    if !value.is_empty() {
        check_name("--taint", value)?;
    }
    Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.into() })
}

/// The control plane's rule for names, so that a typing mistake is found here.
fn check_name(flag: &str, text: &str) -> anyhow::Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    ensure!(
        (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(allowed),
        "{flag}: '{text}' is not a name: use 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit"
    );
    Ok(())
}

fn percent(flag: &str, factor: Option<f64>) -> anyhow::Result<u32> {
    let Some(factor) = factor else { return Ok(0) };
    ensure!((0.1..=16.0).contains(&factor), "{flag}: {factor} is not within 0.1 and 16");
    // Within the limits, so that it fits.
    Ok((factor * 100.0).round() as u32)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// Entries `<prefix><number>` of a folder, by number.
fn numbered(folder: &Path, prefix: &str) -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let name = entry.file_name();
        Some((name.to_str()?.strip_prefix(prefix)?.parse().ok()?, entry.path()))
    });
    numbered.collect()
}

/// Physical cores and hardware threads; 0 where the kernel does not say.
fn cores_and_threads(sys: &Path) -> (u32, u32) {
    let cpus = numbered(&sys.join("devices/system/cpu"), "cpu");
    let mut cores = std::collections::BTreeSet::new();
    let mut threads = 0;
    for cpu in cpus.values() {
        // A CPU that is offline has no topology.
        let Some(core) = number(&cpu.join("topology/core_id")) else { continue };
        threads += 1;
        cores.insert((number(&cpu.join("topology/physical_package_id")), core));
    }
    (u32::try_from(cores.len()).unwrap_or(0), threads)
}

/// Documentation/ABI/stable/sysfs-devices-node of the kernel.
fn numa_nodes(sys: &Path) -> Vec<NumaNode> {
    let nodes = numbered(&sys.join("devices/system/node"), "node");
    nodes.into_iter().map(|(id, folder)| numa_node(id, &folder)).collect()
}

fn numa_node(id: u32, folder: &Path) -> NumaNode {
    // "Node 0 MemTotal:       12544216 kB"
    let memory_kib = read(&folder.join("meminfo")).and_then(|text| {
        let line = text.lines().find(|line| line.contains("MemTotal:"))?;
        line.split_whitespace().rev().nth(1)?.parse::<u64>().ok()
    });
    let pools = fs::read_dir(folder.join("hugepages")).into_iter().flatten().flatten();
    let mut hugepages: Vec<Hugepages> = pools
        .filter_map(|entry| {
            let name = entry.file_name();
            let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = number(&entry.path().join("nr_hugepages"))?;
            let page_bytes = kib.checked_mul(1024)?;
            let total_bytes = page_bytes.checked_mul(count)?;
            (count > 0).then_some(Hugepages { page_bytes, total_bytes })
        })
        .collect();
    hugepages.sort_by_key(|pool| pool.page_bytes);
    NumaNode {
        id,
        cpus: read(&folder.join("cpulist")).map_or(0, |list| count_cpus(&list)),
        memory_bytes: memory_kib.unwrap_or(0).saturating_mul(1024),
        hugepages,
    }
}

/// How many CPUs a list such as "0-3,8,10-11" names.
fn count_cpus(list: &str) -> u32 {
    let ranges = list.trim().split(',').filter_map(|range| match range.split_once('-') {
        Some((first, last)) => {
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        }
        None => range.parse::<u32>().ok().map(|_| 1),
    });
    ranges.fold(0, u32::saturating_add)
}

/// x86-64 psABI, section 3.1.1, in the words of /proc/cpuinfo: `pni` is SSE3, `abm` is LZCNT.
const LEVELS: [(&str, &[&str]); 3] = [
    ("x86-64-v2", &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]),
    ("x86-64-v3", &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]),
    ("x86-64-v4", &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
];

/// The highest level whose features, and those of every level below, the processor has.
fn cpu_baseline(proc: &Path) -> &'static str {
    let text = read(&proc.join("cpuinfo")).unwrap_or_default();
    let flags =
        text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':').map(|(_, flags)| flags));
    let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
    let has = |(_, features): &&(&str, &[&str])| features.iter().all(|feature| flags.contains(feature));
    LEVELS.iter().take_while(has).last().map_or("x86-64-v1", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Two sockets of one core with two threads each.
    fn host() -> (tempfile::TempDir, HostFolders) {
        let folder = tempfile::tempdir().unwrap();
        let folders = HostFolders { sys: folder.path().join("sys"), proc: folder.path().join("proc") };
        for cpu in 0..4 {
            let topology = folders.sys.join(format!("devices/system/cpu/cpu{cpu}/topology"));
            write(topology.join("core_id"), "0\n");
            write(topology.join("physical_package_id"), &format!("{}\n", cpu / 2));
        }
        for node in 0..2 {
            let numa = folders.sys.join(format!("devices/system/node/node{node}"));
            write(numa.join("cpulist"), &format!("{}-{}\n", 2 * node, 2 * node + 1));
            write(
                numa.join("meminfo"),
                &format!("Node {node} MemTotal:       1048576 kB\nNode {node} MemFree: 5 kB\n"),
            );
            write(numa.join("hugepages/hugepages-2048kB/nr_hugepages"), "64\n");
            write(numa.join("hugepages/hugepages-1048576kB/nr_hugepages"), "0\n");
        }
        let v2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3";
        write(folders.proc.join("cpuinfo"), &format!("processor\t: 0\nflags\t\t: fpu {v2} avx2\n"));
        (folder, folders)
    }

    #[test]
    fn the_kernel_is_asked_what_the_host_is_made_of() {
        let (_folder, folders) = host();
        let facts = HostArgs::default().resolve(&folders).unwrap();
        assert_eq!((facts.cores, facts.threads), (2, 4));
        let pool = Hugepages { page_bytes: 2 << 20, total_bytes: 128 << 20 };
        let node = |id| NumaNode { id, cpus: 2, memory_bytes: 1 << 30, hugepages: vec![pool] };
        assert_eq!(facts.numa, [node(0), node(1)]);
        // AVX2 alone does not make a v3.
        assert_eq!(facts.cpu_baseline, "x86-64-v2");
    }

    #[test]
    fn a_host_that_says_nothing_is_no_error() {
        let nowhere = HostFolders { sys: "/does/not/exist".into(), proc: "/does/not/exist".into() };
        let facts = HostArgs::default().resolve(&nowhere).unwrap();
        assert_eq!((facts.cores, facts.threads, facts.numa.len()), (0, 0, 0));
        assert_eq!(facts.cpu_baseline, "x86-64-v1");
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_lists_add_up() {
        let (folder, folders) = host();
        let path = folder.path().join("host.toml");
        let text = "labels = { rack = \"r1\", zone = \"z1\" }\ntaints = [\"old:avoid\"]\nreserved_memory = \"1G\"\nvcpu_overcommit = 4.0";
        fs::write(&path, text).unwrap();
        let args = HostArgs {
            labels: vec!["rack=r2".to_owned()],
            taints: vec!["gpu=a100:refuse".to_owned()],
            vcpu_overcommit: Some(2.5),
            host_config: Some(path),
            ..HostArgs::default()
        };
        let facts = args.resolve(&folders).unwrap();
        let labels: Vec<_> =
            facts.labels.iter().map(|label| (label.key.as_str(), label.value.as_str())).collect();
        assert_eq!(labels, [("rack", "r2"), ("zone", "z1")]);
        assert_eq!(facts.taints.len(), 2);
        assert_eq!(facts.taints[1].value, "a100");
        assert_eq!((facts.vcpu_overcommit_percent, facts.memory_overcommit_percent), (250, 0));
        assert_eq!(facts.reserved, Some(Reserve { vcpus: 0, memory_bytes: 1 << 30 }));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |args: HostArgs, names: &str| {
            let error = format!("{:#}", args.resolve(&HostFolders::default()).expect_err("refused"));
            assert!(error.contains(names), "{error}");
        };
        check(HostArgs { labels: vec!["rack".to_owned()], ..HostArgs::default() }, "KEY=VALUE");
        check(HostArgs { labels: vec!["rack=a b".to_owned()], ..HostArgs::default() }, "'a b' is not a name");
        check(HostArgs { taints: vec!["gpu".to_owned()], ..HostArgs::default() }, ":refuse");
        check(HostArgs { taints: vec!["gpu:kill".to_owned()], ..HostArgs::default() }, "'kill' is no effect");
        check(HostArgs { vcpu_overcommit: Some(100.0), ..HostArgs::default() }, "--vcpu-overcommit");
        check(
            HostArgs { host_config: Some("/does/not/exist".into()), ..HostArgs::default() },
            "--host-config",
        );
    }

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(["0-3,8,10-11\n", "", "5", "3-1", "x"].map(count_cpus), [7, 0, 1, 0, 0]);
    }
}
