//! The cluster that a trace is run on.
//!
//! ```toml
//! [[hosts]]
//! class = "general"
//! count = 500
//! cores = 40
//! memory = "90G"
//! # From here on optional, with their defaults:
//! reserved_cores = 0          # kept for the host itself
//! reserved_memory = "0B"
//! cpu_overcommit = 1.0        # how often what is left is given out
//! memory_overcommit = 1.0
//! zones = ["a", "b", "c"]     # ["a"]; the class's hosts are dealt to them in turn
//! racks = 4                   # in each zone; 1
//! ```

use drover_units::{Bytes, VcpuCount};
use serde::Deserialize;

/// Most hosts of a cluster: ten times the largest that placement is built for.
pub const MAX_HOSTS: usize = 1_000_000;
/// Most cores of one host. No machine has as many; the sums of a whole cluster stay far from their limits.
const MAX_CORES: u32 = 1 << 16;
/// Most memory of one host.
const MAX_MEMORY: Bytes = Bytes::gib(1 << 20);
/// How often something may be given out.
const OVERCOMMIT: std::ops::RangeInclusive<f64> = 1.0..=64.0;
/// Most zones of a class and racks of a zone.
const MAX_PLACES: usize = 1000;

/// A description that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It is no TOML, or has fields that are not known.
    #[error("the cluster description cannot be read")]
    Syntax(#[source] Box<toml::de::Error>),
    /// A field of a class.
    #[error("hosts of class '{class}': {field} is {value}: it must be {expected}")]
    Field {
        /// The class.
        class: String,
        /// The field.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// No hosts at all.
    #[error("the cluster description has no hosts: add a [[hosts]] section")]
    Empty,
    /// Too many of them.
    #[error("the cluster description has more than {MAX_HOSTS} hosts")]
    TooMany,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    hosts: Vec<RawClass>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClass {
    class: String,
    count: usize,
    cores: u32,
    memory: String,
    #[serde(default)]
    reserved_cores: u32,
    reserved_memory: Option<String>,
    #[serde(default = "once")]
    cpu_overcommit: f64,
    #[serde(default = "once")]
    memory_overcommit: f64,
    #[serde(default = "one_zone")]
    zones: Vec<String>,
    #[serde(default = "one_rack")]
    racks: usize,
}

fn once() -> f64 {
    1.0
}

fn one_zone() -> Vec<String> {
    vec!["a".to_owned()]
}

fn one_rack() -> usize {
    1
}

/// Hosts that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct HostClass {
    /// What it is called.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// CPU cores.
    pub cores: VcpuCount,
    /// Memory.
    pub memory: Bytes,
    /// Cores kept for the host itself.
    pub reserved_cores: VcpuCount,
    /// Memory kept for the host itself.
    pub reserved_memory: Bytes,
    /// How often a core is given out, hundredths.
    pub cpu_overcommit_percent: u16,
    /// How often memory is given out, hundredths.
    pub memory_overcommit_percent: u16,
    /// Zones that its hosts are dealt to.
    pub zones: Vec<String>,
    /// Racks in each zone.
    pub racks: usize,
}

/// What VMs may take of a host, or take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Bytes of memory.
    pub memory: u64,
}

impl Room {
    /// Whether so much fits.
    #[must_use]
    pub fn holds(self, demand: Self) -> bool {
        demand.vcpus <= self.vcpus && demand.memory <= self.memory
    }
}

impl HostClass {
    /// So many hosts with so many cores and so much memory, each given out once, in one rack.
    #[must_use]
    pub fn new(name: &str, count: usize, cores: VcpuCount, memory: Bytes) -> Self {
        Self {
            name: name.to_owned(),
            count,
            cores,
            memory,
            reserved_cores: VcpuCount::ZERO,
            reserved_memory: Bytes::ZERO,
            cpu_overcommit_percent: 100,
            memory_overcommit_percent: 100,
            zones: one_zone(),
            racks: 1,
        }
    }

    /// What VMs may take of one host: what is not reserved, as often as it is given out.
    #[must_use]
    pub fn room(&self) -> Room {
        let cores = self.cores.saturating_sub(self.reserved_cores).get();
        let memory = self.memory.saturating_sub(self.reserved_memory).get();
        let memory = u128::from(memory) * u128::from(self.memory_overcommit_percent) / 100;
        Room {
            vcpus: u64::from(cores) * u64::from(self.cpu_overcommit_percent) / 100,
            memory: u64::try_from(memory).unwrap_or(u64::MAX),
        }
    }
}

/// A host of the cluster: they are numbered from 0, class by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostIndex(pub u32);

impl HostIndex {
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

/// The hosts that a trace is run on.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    classes: Vec<HostClass>,
}

impl Cluster {
    /// A cluster of these classes.
    ///
    /// # Errors
    /// If a class cannot be meant, or there is no host, or there are too many.
    pub fn new(classes: Vec<HostClass>) -> Result<Self, ClusterError> {
        classes.iter().try_for_each(validate)?;
        let hosts = classes.iter().fold(0_usize, |sum, class| sum.saturating_add(class.count));
        match hosts {
            0 => Err(ClusterError::Empty),
            hosts if hosts > MAX_HOSTS => Err(ClusterError::TooMany),
            _ => Ok(Self { classes }),
        }
    }

    /// Reads a description.
    ///
    /// # Errors
    /// As [`Cluster::new`], and if the text is no TOML of this form.
    pub fn parse(text: &str) -> Result<Self, ClusterError> {
        let raw: Raw = toml::from_str(text).map_err(|cause| ClusterError::Syntax(Box::new(cause)))?;
        let classes: Result<Vec<HostClass>, ClusterError> = raw.hosts.iter().map(resolve).collect();
        Self::new(classes?)
    }

    /// Kinds of hosts.
    #[must_use]
    pub fn classes(&self) -> &[HostClass] {
        &self.classes
    }

    /// How many hosts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.iter().map(|class| class.count).sum()
    }

    /// Never: a cluster has a host.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every host with its class, zone and rack, by index.
    pub fn hosts(&self) -> impl Iterator<Item = (HostIndex, &HostClass, &str, String)> {
        let places = self.classes.iter().flat_map(|class| {
            (0..class.count).map(move |number| {
                let zone = class.zones[number % class.zones.len()].as_str();
                let rack = number / class.zones.len() % class.racks;
                (class, zone, format!("{zone}-{rack}"))
            })
        });
        (0..).map(HostIndex).zip(places).map(|(index, (class, zone, rack))| (index, class, zone, rack))
    }

    /// What VMs may take of all hosts together.
    #[must_use]
    pub fn room(&self) -> Room {
        let mut sum = Room::default();
        for class in &self.classes {
            let (room, count) = (class.room(), class.count as u64);
            sum.vcpus = sum.vcpus.saturating_add(room.vcpus.saturating_mul(count));
            sum.memory = sum.memory.saturating_add(room.memory.saturating_mul(count));
        }
        sum
    }
}

fn field(class: &str, field: &'static str, value: impl ToString, expected: impl ToString) -> ClusterError {
    ClusterError::Field {
        class: class.to_owned(),
        field,
        value: value.to_string(),
        expected: expected.to_string(),
    }
}

fn resolve(raw: &RawClass) -> Result<HostClass, ClusterError> {
    let bytes = |name: &'static str, text: &str| {
        text.parse::<Bytes>().map_err(|_| field(&raw.class, name, format!("'{text}'"), "a size such as 256G"))
    };
    let percent = |name: &'static str, ratio: f64| {
        let expected = format!("{} to {}", OVERCOMMIT.start(), OVERCOMMIT.end());
        if OVERCOMMIT.contains(&ratio) {
            Ok((ratio * 100.0).round() as u16)
        } else {
            Err(field(&raw.class, name, ratio, expected))
        }
    };
    Ok(HostClass {
        name: raw.class.clone(),
        count: raw.count,
        cores: VcpuCount::new(raw.cores),
        memory: bytes("memory", &raw.memory)?,
        reserved_cores: VcpuCount::new(raw.reserved_cores),
        reserved_memory: match &raw.reserved_memory {
            Some(text) => bytes("reserved_memory", text)?,
            None => Bytes::ZERO,
        },
        cpu_overcommit_percent: percent("cpu_overcommit", raw.cpu_overcommit)?,
        memory_overcommit_percent: percent("memory_overcommit", raw.memory_overcommit)?,
        zones: raw.zones.clone(),
        racks: raw.racks,
    })
}

fn validate(class: &HostClass) -> Result<(), ClusterError> {
    let name = &class.name;
    let cores = class.cores.get();
    if !(1..=MAX_CORES).contains(&cores) {
        return Err(field(name, "cores", cores, format!("1 to {MAX_CORES}")));
    }
    if !(Bytes::mib(1)..=MAX_MEMORY).contains(&class.memory) {
        return Err(field(name, "memory", class.memory, format!("{} to {MAX_MEMORY}", Bytes::mib(1))));
    }
    if class.reserved_cores >= class.cores {
        return Err(field(
            name,
            "reserved_cores",
            class.reserved_cores,
            format!("below cores, which is {cores}"),
        ));
    }
    if class.reserved_memory >= class.memory {
        let expected = format!("below memory, which is {}", class.memory);
        return Err(field(name, "reserved_memory", class.reserved_memory, expected));
    }
    if !(1..=MAX_PLACES).contains(&class.zones.len()) {
        return Err(field(name, "the number of zones", class.zones.len(), format!("1 to {MAX_PLACES}")));
    }
    if !(1..=MAX_PLACES).contains(&class.racks) {
        return Err(field(name, "racks", class.racks, format!("1 to {MAX_PLACES}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[[hosts]]\nclass = 'small'\ncount = 4\ncores = 40\nmemory = '90G'\n";

    #[test]
    fn a_short_description_has_plain_hosts() {
        let cluster = Cluster::parse(SMALL).unwrap();
        let plain = HostClass::new("small", 4, VcpuCount::new(40), Bytes::gib(90));
        assert_eq!(cluster.classes(), [plain]);
        assert_eq!(cluster.room(), Room { vcpus: 160, memory: 360 << 30 });
    }

    #[test]
    fn what_is_reserved_is_not_given_out_and_the_rest_as_often_as_told() {
        let text = format!(
            "{SMALL}reserved_cores = 4\nreserved_memory = '10G'\ncpu_overcommit = 2.5\nmemory_overcommit = 1.25\n"
        );
        let cluster = Cluster::parse(&text).unwrap();
        assert_eq!(cluster.classes()[0].room(), Room { vcpus: 90, memory: 100 << 30 });
    }

    #[test]
    fn hosts_are_dealt_to_zones_and_racks_in_turn() {
        let cluster = Cluster::parse(&format!("{SMALL}zones = ['a', 'b']\nracks = 2\n")).unwrap();
        let racks: Vec<String> = cluster.hosts().map(|(_, _, _, rack)| rack).collect();
        assert_eq!(racks, ["a-0", "b-0", "a-1", "b-1"]);
    }

    fn check(text: &str, expect: &str) {
        assert_eq!(Cluster::parse(text).unwrap_err().to_string(), expect);
    }

    #[test]
    fn what_cannot_be_meant_names_the_field_and_what_would_be_valid() {
        check("", "the cluster description has no hosts: add a [[hosts]] section");
        check("hosts = 3", "the cluster description cannot be read");
        check(&format!("{SMALL}colour = 'red'\n"), "the cluster description cannot be read");
        check(
            &SMALL.replace("90G", "much"),
            "hosts of class 'small': memory is 'much': it must be a size such as 256G",
        );
        check(&SMALL.replace("40", "0"), "hosts of class 'small': cores is 0: it must be 1 to 65536");
        check(
            &SMALL.replace("count = 4", "count = 1000001"),
            "the cluster description has more than 1000000 hosts",
        );
        check(
            &format!("{SMALL}reserved_cores = 40\n"),
            "hosts of class 'small': reserved_cores is 40: it must be below cores, which is 40",
        );
        check(
            &format!("{SMALL}cpu_overcommit = 0.5\n"),
            "hosts of class 'small': cpu_overcommit is 0.5: it must be 1 to 64",
        );
        check(&format!("{SMALL}racks = 0\n"), "hosts of class 'small': racks is 0: it must be 1 to 1000");
    }
}
