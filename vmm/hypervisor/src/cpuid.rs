//! What CPUID tells a guest.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use crate::{CpuBaseline, HypervisorError, StateError, feature_names};

/// Leaf of features, and its bits that depend on us. Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
const FEATURES: u32 = 1;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
/// Leaves of processor topology (the second is Intel's extended form of the first).
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
/// First leaf of the hypervisor: EAX is the last such leaf.
const HYPERVISOR: u32 = 0x4000_0000;
/// Timing information: EAX is the TSC's frequency in kHz. VMware's convention, which Linux and the BSDs read under
/// every hypervisor.
const TIMING: u32 = 0x4000_0010;
/// AMD: sizes (ECX: number of cores and width of the APIC id) and the core's own ids.
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CORE: u32 = 0x8000_001e;

/// Which vCPU this is, what its machine has, and what the host can give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    pub(crate) vcpu: u32,
    pub(crate) vcpus: u32,
    pub(crate) tsc_khz: Option<u32>,
    pub(crate) tsc_deadline: bool,
}

impl Topology {
    /// Bits of an APIC id that number the vCPUs of the one socket.
    fn id_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }
}

/// CPUID of one vCPU, from what KVM supports on this host.
pub(crate) fn for_vcpu(supported: &CpuId, topology: Topology) -> Result<CpuId, HypervisorError> {
    let has_topology_leaf = supported.as_slice().iter().any(|entry| entry.function == TOPOLOGY);
    // KVM reports the topology of the host CPU that asked: ours replaces it.
    let kept = |entry: &&kvm_cpuid_entry2| ![TOPOLOGY, TOPOLOGY_V2, TIMING].contains(&entry.function);
    let mut entries: Vec<_> = supported.as_slice().iter().filter(kept).copied().collect();
    for entry in &mut entries {
        adjust(entry, topology);
    }
    if has_topology_leaf {
        entries.extend(topology_leaves(topology));
    }
    if let Some(khz) = topology.tsc_khz {
        entries.push(kvm_cpuid_entry2 { function: TIMING, eax: khz, ..Default::default() });
    }
    from_entries(&entries)
}

fn adjust(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0x0000_ffff | topology.vcpu << 24 | topology.vcpus.min(255) << 16;
            entry.ecx |= ECX_HYPERVISOR;
            if topology.tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            if topology.vcpus > 1 {
                entry.edx |= EDX_HYPER_THREADING;
            }
        }
        HYPERVISOR if topology.tsc_khz.is_some() => entry.eax = entry.eax.max(TIMING),
        AMD_SIZES => {
            entry.ecx = entry.ecx & !0xf0ff | topology.id_bits() << 12 | (topology.vcpus - 1).min(255);
        }
        AMD_CORE => {
            // One thread per core, one node.
            entry.eax = topology.vcpu;
            entry.ebx = topology.vcpu;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Two levels: a thread (one per core), and the cores of the one socket.
fn topology_leaves(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const TYPE_THREAD: u32 = 1 << 8;
    const TYPE_CORE: u32 = 2 << 8;
    let level = |index, shift, count, kind| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind | index,
        edx: topology.vcpu,
        ..Default::default()
    };
    [level(0, 0, 1, TYPE_THREAD), level(1, topology.id_bits(), topology.vcpus, TYPE_CORE), level(2, 0, 0, 0)]
}

/// How many words list features.
pub(crate) const WORDS: usize = 12;

/// Registers that list features: a guest may use only what its host has.
pub(crate) const FEATURE_WORDS: [(u32, u32, &str); WORDS] = [
    (FEATURES, 0, "ECX"),
    (FEATURES, 0, "EDX"),
    (7, 0, "EBX"),
    (7, 0, "ECX"),
    (7, 0, "EDX"),
    (7, 1, "EAX"),
    (0xd, 0, "EAX"),
    (0xd, 0, "EDX"),
    (0xd, 1, "EAX"),
    (0x8000_0001, 0, "ECX"),
    (0x8000_0001, 0, "EDX"),
    (AMD_SIZES, 0, "EBX"),
];

/// What a guest on this host is told about its processor, as far as it decides where else the guest can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Who made it: CPUID's twelve letters.
    pub vendor: String,
    /// The words that list features. A guest can move to a host that has every bit that is set here; the order is
    /// fixed and only grows at its end.
    pub features: Vec<u32>,
}

impl Processor {
    /// The features of a guest's processor that this one lacks, by name: empty where the guest can run here, as far as
    /// features go. Makers differ too: see [`vendor`](Self::vendor).
    ///
    /// Of two hosts, each may lack what the other has; asking both ways says all in which they differ.
    pub fn lacks(&self, guest: &Self) -> Vec<String> {
        self.lacks_words(&guest.features)
    }

    pub(crate) fn lacks_words(&self, wanted: &[u32]) -> Vec<String> {
        let mut missing = Vec::new();
        for (word, wanted) in wanted.iter().enumerate() {
            let bits = wanted & !self.features.get(word).copied().unwrap_or(0);
            missing
                .extend((0..32).filter(|bit| bits >> bit & 1 != 0).map(|bit| feature_names::name(word, bit)));
        }
        missing
    }

    /// Whether a host with this processor can present the baseline.
    pub fn can_be(&self, baseline: CpuBaseline) -> bool {
        self.lacks_words(&baseline.required()).is_empty()
    }
}

/// The processor behind `supported`.
pub(crate) fn processor(supported: &CpuId) -> Processor {
    let name = ["EBX", "EDX", "ECX"].map(|register| word(supported, 0, 0, register).to_le_bytes()).concat();
    let features =
        FEATURE_WORDS.map(|(function, index, register)| word(supported, function, index, register));
    Processor { vendor: String::from_utf8_lossy(&name).into_owned(), features: features.to_vec() }
}

/// Whether a guest that was told `guest` can run where `host` could be told.
pub(crate) fn check_features(guest: &CpuId, host: &CpuId) -> Result<(), StateError> {
    for (function, index, register) in FEATURE_WORDS {
        let bits = word(guest, function, index, register) & !word(host, function, index, register);
        if bits != 0 {
            return Err(StateError::CpuFeatures { function, index, register, bits });
        }
    }
    Ok(())
}

fn word(cpuid: &CpuId, function: u32, index: u32, register: &str) -> u32 {
    let entry = cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index);
    entry.copied().map_or(0, |mut entry| *register_mut(&mut entry, register))
}

/// One of an entry's four registers.
pub(crate) fn register_mut<'a>(entry: &'a mut kvm_cpuid_entry2, register: &str) -> &'a mut u32 {
    match register {
        "EAX" => &mut entry.eax,
        "EBX" => &mut entry.ebx,
        "ECX" => &mut entry.ecx,
        _ => &mut entry.edx,
    }
}

pub(crate) fn from_entries(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, HypervisorError> {
    CpuId::from_entries(entries).map_err(|_| HypervisorError::Call {
        attempt: "take so many CPUID entries",
        source: std::io::Error::other(format!("{} entries, at most {KVM_MAX_CPUID_ENTRIES}", entries.len())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_its_makers_name_and_its_features() {
        // "AuthenticAMD", as AMD's APM volume 3 spells it in EBX, EDX and ECX.
        let maker =
            kvm_cpuid_entry2 { ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163, ..Default::default() };
        let features = kvm_cpuid_entry2 { function: FEATURES, ecx: 7, edx: 9, ..Default::default() };
        let processor = processor(&CpuId::from_entries(&[maker, features]).unwrap());
        assert_eq!(processor.vendor, "AuthenticAMD");
        assert_eq!(
            (processor.features.len(), &processor.features[..3]),
            (FEATURE_WORDS.len(), [7, 9, 0].as_slice())
        );
    }

    #[test]
    fn what_differs_between_two_hosts_is_named_both_ways() {
        let host = |avx2: u32, sse4a: u32| {
            let mut features = vec![0; WORDS];
            (features[2], features[9]) = (avx2 << 5, sse4a << 6);
            Processor { vendor: "AuthenticAMD".to_owned(), features }
        };
        let (new, old) = (host(1, 0), host(0, 1));
        assert_eq!((old.lacks(&new), new.lacks(&old)), (vec!["avx2".to_owned()], vec!["sse4a".to_owned()]));
        assert!(new.lacks(&new).is_empty() && new.can_be(CpuBaseline::HOST));
        assert!(!new.can_be("x86-64-v1".parse().unwrap()));
    }

    fn supported() -> CpuId {
        let entry =
            |function, index| kvm_cpuid_entry2 { function, index, ecx: 0xf0ff_0001, ..Default::default() };
        let leaves = [1, HYPERVISOR, TOPOLOGY, TOPOLOGY_V2, AMD_SIZES, AMD_CORE];
        let entries: Vec<_> = leaves.into_iter().map(|function| entry(function, 0)).collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn vcpu(vcpu: u32, vcpus: u32) -> CpuId {
        for_vcpu(&supported(), Topology { vcpu, vcpus, tsc_khz: Some(2_000_000), tsc_deadline: true })
            .unwrap()
    }

    fn check(vcpu_number: u32, vcpus: u32, function: u32, index: u32, expect: [u32; 4]) {
        let cpuid = vcpu(vcpu_number, vcpus);
        let found = ["EAX", "EBX", "ECX", "EDX"].map(|register| word(&cpuid, function, index, register));
        assert_eq!(found, expect, "vCPU {vcpu_number}/{vcpus} leaf {function:#x}.{index}: {found:#x?}");
    }

    #[test]
    fn every_vcpu_knows_its_id_and_how_many_there_are() {
        check(3, 5, FEATURES, 0, [0, 3 << 24 | 5 << 16, 0xf1ff_0001, EDX_HYPER_THREADING]);
        check(0, 1, FEATURES, 0, [0, 1 << 16, 0xf1ff_0001, 0]);
        check(3, 5, TOPOLOGY, 0, [0, 1, 0x100, 3]);
        check(3, 5, TOPOLOGY, 1, [3, 5, 0x201, 3]);
        check(3, 5, TOPOLOGY, 2, [0, 0, 2, 3]);
        check(3, 5, AMD_CORE, 0, [3, 3, 0, 0]);
        check(3, 5, AMD_SIZES, 0, [0, 0, 0xf0ff_3004, 0]);
        check(3, 5, TOPOLOGY_V2, 0, [0; 4]);
    }

    #[test]
    fn the_tsc_frequency_is_told_where_it_is_known() {
        check(0, 1, TIMING, 0, [2_000_000, 0, 0, 0]);
        check(0, 1, HYPERVISOR, 0, [TIMING, 0, 0xf0ff_0001, 0]);
        let unknown = Topology { vcpu: 0, vcpus: 1, tsc_khz: None, tsc_deadline: false };
        let cpuid = for_vcpu(&supported(), unknown).unwrap();
        assert_eq!((word(&cpuid, TIMING, 0, "EAX"), word(&cpuid, HYPERVISOR, 0, "EAX")), (0, 0));
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        let guest = vcpu(0, 1);
        assert_eq!(check_features(&guest, &guest), Ok(()));
        let mut host = vcpu(0, 1);
        host.as_mut_slice()
            .iter_mut()
            .filter(|entry| entry.function == FEATURES)
            .for_each(|entry| entry.ecx &= !1);
        let expect = StateError::CpuFeatures { function: 1, index: 0, register: "ECX", bits: 1 };
        assert_eq!(check_features(&guest, &host), Err(expect));
        assert_eq!(check_features(&host, &guest), Ok(()), "a host may have more than the guest uses");
    }
}
