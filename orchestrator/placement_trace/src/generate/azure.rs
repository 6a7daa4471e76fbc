//! The shape of the Azure packing trace.

use std::f64::consts::TAU;

use super::{Random, Seed};
use crate::{
    Priority,
    azure::{Tables, VmRow, VmTypeRow},
};

/// Cores, memory (GiB), solid-state disk (GiB) and network (Gbit/s) of the machines, by `machineId`. The trace is anonymous:
/// these are sizes in use when it was collected, in which the fractions come out as such fractions do.
const MACHINES: [(u32, u32, u32, u32); 4] =
    [(40, 256, 2_400, 40), (48, 384, 3_600, 40), (64, 512, 4_800, 50), (80, 640, 6_400, 50)];

/// Memory for each core (GiB) and the share of requests of each family.
const FAMILIES: [(u32, f64); 3] = [(2, 0.25), (4, 0.55), (8, 0.20)];

/// Cores of a type and their share of requests. Small ones dominate: "most VMs require few virtual cores and relatively
/// little memory" (Cortez et al.: "Resource Central", SOSP 2017, on the same provider's workload).
const CORES: [(u32, f64); 6] = [(1, 0.30), (2, 0.36), (4, 0.20), (8, 0.09), (16, 0.035), (32, 0.015)];

/// The collection took 14 days; ends are known up to 90.
const COLLECTED_DAYS: f64 = 14.0;
const CAP_DAYS: f64 = 90.0;

/// How much of what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AzureShape {
    /// Requests. The published trace has 5.5 million, of a whole zone.
    pub vms: usize,
    /// The share that existed before the collection began.
    pub before_share: f64,
    /// The share that may be evicted.
    pub low_priority_share: f64,
}

impl Default for AzureShape {
    fn default() -> Self {
        Self { vms: 100_000, before_share: 0.05, low_priority_share: 0.25 }
    }
}

/// Tables of this shape.
///
/// # Panics
/// If a share is not between 0 and 1.
#[must_use]
pub fn azure(shape: &AzureShape, seed: Seed) -> Tables {
    let valid = |share: f64| (0.0..=1.0).contains(&share);
    assert!(valid(shape.before_share) && valid(shape.low_priority_share), "{shape:?}");
    let mut random = Random::new(seed);
    let vm_types = vm_types(&mut random);
    let mut vms: Vec<VmRow> = Vec::with_capacity(shape.vms);
    let mut tenant = 0;
    while vms.len() < shape.vms {
        // A deployment: a tenant asks for a few of one type within a minute or so.
        tenant = if random.chance(0.4) || tenant == 0 {
            tenant + 1
        } else {
            1 + random.below(tenant as usize) as u32
        };
        let vm_type = draw_type(&mut random);
        let before = random.chance(shape.before_share);
        let low = random.chance(shape.low_priority_share);
        let start = if before { -age_days(&mut random) } else { arrival(&mut random) };
        loop {
            let start_days = start + if before { 0.0 } else { random.unit() / 1_440.0 };
            // Who was there at the beginning lives on from there: the long-lived are over-represented among them.
            let end =
                start_days.max(0.0) + if before { age_days(&mut random) } else { life_days(&mut random) };
            vms.push(VmRow {
                vm: vms.len() as u64,
                tenant,
                vm_type,
                priority: if low { Priority::Low } else { Priority::High },
                start_days,
                end_days: (end <= CAP_DAYS).then_some(end),
            });
            if vms.len() == shape.vms || !random.chance(0.6) {
                break;
            }
        }
    }
    vms.sort_by(|a, b| a.start_days.total_cmp(&b.start_days));
    for (id, vm) in vms.iter_mut().enumerate() {
        vm.vm = id as u64;
    }
    Tables { vms, vm_types }
}

/// Every type on each machine that has room for it, as fractions of that machine.
fn vm_types(random: &mut Random) -> Vec<VmTypeRow> {
    let mut rows = Vec::new();
    for (family, (gib_per_core, _)) in FAMILIES.iter().enumerate() {
        for (size, (cores, _)) in CORES.iter().enumerate() {
            let vm_type = type_id(family, size);
            for (machine, (all_cores, gib, ssd, gbit)) in MACHINES.iter().enumerate() {
                let part = |of: u32, whole: u32| f64::from(of) / f64::from(whole);
                let (core, memory) = (part(*cores, *all_cores), part(cores * gib_per_core, *gib));
                // Not every generation offers every type.
                if core > 1.0 || memory > 1.0 || (machine > 0 && random.chance(0.1)) {
                    continue;
                }
                rows.push(VmTypeRow {
                    vm_type,
                    machine: machine as u32,
                    core,
                    memory,
                    hdd: 0.0,
                    ssd: part(cores * 16, *ssd),
                    nic: f64::from(*cores) * 0.5 / f64::from(*gbit),
                });
            }
        }
    }
    rows
}

fn type_id(family: usize, size: usize) -> u32 {
    (family * CORES.len() + size) as u32
}

fn draw_type(random: &mut Random) -> u32 {
    let family = random.weighted(FAMILIES.iter().map(|(_, share)| *share));
    let size = random.weighted(CORES.iter().map(|(_, share)| *share));
    type_id(family, size)
}

/// Days since the collection began at which a deployment arrives: more by day.
fn arrival(random: &mut Random) -> f64 {
    loop {
        let day = random.unit() * COLLECTED_DAYS;
        if random.chance((1.0 + 0.3 * (TAU * (day - 0.4)).sin()) / 1.3) {
            return day;
        }
    }
}

/// Days that a new VM lives. More than nine tenths end within a day, and the few long-lived ones hold most of the cores
/// (Cortez et al., as above).
fn life_days(random: &mut Random) -> f64 {
    match random.unit() {
        short if short < 0.55 => random.log_normal(0.5 / 24.0, 1.0),
        medium if medium < 0.92 => random.log_normal(4.0 / 24.0, 0.8),
        _ => random.log_normal(25.0, 1.2),
    }
}

/// Days that a VM of the beginning has lived before, or has still to live.
fn age_days(random: &mut Random) -> f64 {
    random.log_normal(30.0, 1.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flavour, azure::MachineId};
    use drover_units::{Bytes, VcpuCount};
    use std::collections::{BTreeMap, BTreeSet};

    fn tables() -> Tables {
        azure(&AzureShape::default(), Seed(1))
    }

    #[test]
    fn rows_keep_to_the_documented_schema() {
        let tables = tables();
        assert_eq!(tables.vms.len(), 100_000);
        let ids: BTreeSet<u64> = tables.vms.iter().map(|vm| vm.vm).collect();
        assert_eq!(ids.len(), tables.vms.len());
        for vm in &tables.vms {
            assert!(vm.start_days < COLLECTED_DAYS + 1.0);
            assert!(vm.end_days.is_none_or(|end| end >= vm.start_days && end <= CAP_DAYS), "{vm:?}");
        }
        for row in &tables.vm_types {
            for fraction in [row.core, row.memory, row.hdd, row.ssd, row.nic] {
                assert!((0.0..=1.0).contains(&fraction), "{row:?}");
            }
            assert!(row.core > 0.0 && row.memory > 0.0);
        }
    }

    #[test]
    fn some_were_there_before_and_some_outlive_the_collection() {
        let tables = tables();
        let share = |count: usize| count as f64 / tables.vms.len() as f64;
        let before = share(tables.vms.iter().filter(|vm| vm.start_days < 0.0).count());
        assert!((0.03..0.07).contains(&before), "{before}");
        let endless = share(tables.vms.iter().filter(|vm| vm.end_days.is_none()).count());
        assert!((0.005..0.05).contains(&endless), "{endless}");
        let low = share(tables.vms.iter().filter(|vm| vm.priority == Priority::Low).count());
        assert!((0.2..0.3).contains(&low), "{low}");
    }

    #[test]
    fn a_type_takes_another_fraction_of_another_machine() {
        let mut fractions: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for row in tables().vm_types {
            fractions.entry(row.vm_type).or_default().insert((row.core * 1e6) as u64);
        }
        assert!(fractions.values().all(|fractions| fractions.len() > 1), "{fractions:?}");
    }

    #[test]
    fn small_requests_dominate_and_most_end_within_a_day() {
        let tables = tables();
        let size = Flavour { vcpus: VcpuCount::new(40), memory: Bytes::gib(256) };
        let (trace, left_out) = tables.on_machine(MachineId(0), size).unwrap();
        assert_eq!(left_out, 0, "the first machine offers every type");
        let counts = trace.requests_by_flavour();
        let of = |most: u32| -> u64 {
            trace.flavours().iter().zip(&counts).filter(|(f, _)| f.vcpus.get() <= most).map(|(_, n)| n).sum()
        };
        let all = trace.creations() as u64;
        assert!(of(2) * 100 > all * 60 && of(4) * 100 > all * 80, "{counts:?}");
        let new: Vec<_> = tables.vms.iter().filter(|vm| vm.start_days >= 0.0).collect();
        let short = new.iter().filter(|vm| vm.end_days.is_some_and(|end| end - vm.start_days < 1.0)).count();
        assert!(short * 10 > new.len() * 8, "{short} of {}", new.len());
    }

    #[test]
    fn equal_seeds_give_equal_tables() {
        let shape = AzureShape { vms: 1_000, ..Default::default() };
        assert_eq!(azure(&shape, Seed(9)), azure(&shape, Seed(9)));
        assert_ne!(azure(&shape, Seed(9)), azure(&shape, Seed(10)));
    }
}
