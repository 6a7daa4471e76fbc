//! Processors by name: what a guest is told of its processor, as data, so that unlike hosts can exchange guests.
//!
//! A named baseline is a level of the x86-64 psABI (section 3.1.1). A guest that has one sees
//!
//! - every feature of the level: a host that lacks one cannot present the level;
//! - of a short list of features that cost nothing to have or that guard against speculation, those that its host has;
//! - nothing else, whatever the host has: no performance counters, no nested virtualisation, no features to come.
//!
//! Two hosts of one maker that present the same level differ at most in the second list, and
//! [`Processor::lacks`](crate::Processor::lacks) names by what. `host` passes everything through: the fastest, for hosts
//! that are alike.

use std::{fmt, str::FromStr};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::{
    HypervisorError,
    cpuid::{self, FEATURE_WORDS, WORDS},
};

/// A processor by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuBaseline(Option<&'static Level>);

/// A text that names no baseline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is no CPU baseline: expected host, x86-64-v1, x86-64-v2, x86-64-v3 or x86-64-v4")]
pub struct UnknownBaseline {
    shown: String,
}

/// What a named baseline consists of. Words are those of [`FEATURE_WORDS`].
#[derive(Debug, PartialEq, Eq)]
struct Level {
    name: &'static str,
    /// What a host must have.
    required: [u32; WORDS],
    /// State that XSAVE may keep: bits of XCR0.
    xcr0: u32,
}

const fn bits(list: &[u32]) -> u32 {
    let (mut word, mut at) = (0, 0);
    while at < list.len() {
        word |= 1 << list[at];
        at += 1;
    }
    word
}

const fn or(mut one: [u32; WORDS], other: [u32; WORDS]) -> [u32; WORDS] {
    let mut at = 0;
    while at < WORDS {
        one[at] |= other[at];
        at += 1;
    }
    one
}

/// FPU, CMPXCHG8B, CMOV, MMX, FXSR, SSE, SSE2; SYSCALL, long mode.
const V1: [u32; WORDS] = [0, bits(&[0, 8, 15, 23, 24, 25, 26]), 0, 0, 0, 0, 0, 0, 0, 0, bits(&[11, 29]), 0];
/// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; LAHF in long mode.
const V2: [u32; WORDS] = or(V1, [bits(&[0, 9, 13, 19, 20, 23]), 0, 0, 0, 0, 0, 0, 0, 0, bits(&[0]), 0, 0]);
/// FMA, MOVBE, XSAVE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT.
const V3: [u32; WORDS] =
    or(V2, [bits(&[12, 22, 26, 28, 29]), 0, bits(&[3, 5, 8]), 0, 0, 0, 0b111, 0, 0, bits(&[5]), 0, 0]);
/// AVX-512 F, DQ, CD, BW, VL.
const V4: [u32; WORDS] = or(V3, [0, 0, bits(&[16, 17, 28, 30, 31]), 0, 0, 0, 0xe7, 0, 0, 0, 0, 0]);

/// What a guest of any level sees where its host has it.
const OPTIONAL: [u32; WORDS] = [
    // PCLMULQDQ, PCID, x2APIC, TSC deadline timer, AES, OSXSAVE, RDRAND, hypervisor.
    bits(&[1, 17, 21, 24, 25, 27, 30, 31]),
    // What every such processor has beside its level, VME to CLFLUSH, though an emulated one may not; hyper-threading, which
    // says that there are several vCPUs.
    bits(&[1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 16, 17, 19, 28]),
    // FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT.
    bits(&[0, 1, 7, 9, 10, 18, 19, 20, 23]),
    // UMIP.
    bits(&[2]),
    // MD_CLEAR, SPEC_CTRL, STIBP, SSBD.
    bits(&[10, 26, 27, 31]),
    0,
    0,
    0,
    // XSAVEOPT, XSAVEC, XGETBV with ECX=1.
    bits(&[0, 1, 2]),
    // CMP_LEGACY, CR8_LEGACY, 3DNOWPREFETCH, TOPOEXT.
    bits(&[1, 4, 8, 22]),
    // AMD's copies of the first words' bits; NX, MMXEXT, 1 GiB pages, RDTSCP.
    bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 25, 26, 27]),
    // IBPB, IBRS, STIBP, SSBD, VIRT_SSBD.
    bits(&[12, 14, 15, 24, 25]),
];

static LEVELS: [Level; 4] = [
    Level { name: "x86-64-v1", required: V1, xcr0: 0 },
    Level { name: "x86-64-v2", required: V2, xcr0: 0 },
    Level { name: "x86-64-v3", required: V3, xcr0: 0b111 },
    Level { name: "x86-64-v4", required: V4, xcr0: 0xe7 },
];

/// KVM's own features that every KVM of today has (Documentation/virt/kvm/x86/cpuid.rst): clocks, no I/O delay, end of
/// interrupt, unhalt, stable clock.
const KVM_FEATURES: u32 = bits(&[0, 1, 3, 6, 7, 24]);
const KVM_LEAF: u32 = 0x4000_0001;

/// Leaves that describe what no level has: performance counters, resource control, SGX, tracing, tiles, AVX10; SVM, IBS,
/// SEV and the like.
const ABSENT_LEAVES: [u32; 13] = [
    0xa,
    0xf,
    0x10,
    0x12,
    0x14,
    0x1d,
    0x1e,
    0x24,
    0x8000_000a,
    0x8000_001b,
    0x8000_001f,
    0x8000_0021,
    0x8000_0022,
];

/// Model-specific registers that describe the host's processor and that no level has: they do not move with a guest.
/// Architectural capabilities, performance capabilities, capabilities of VMX.
const HIDDEN_MSRS: [std::ops::RangeInclusive<u32>; 3] = [0x10a..=0x10a, 0x345..=0x345, 0x480..=0x493];

impl CpuBaseline {
    /// Whatever the host has.
    pub const HOST: Self = Self(None);

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.map_or("host", |level| level.name)
    }

    /// Every baseline, `host` first, then by rising level.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::HOST).chain(LEVELS.iter().map(|level| Self(Some(level))))
    }

    /// The features of its level, by word.
    pub(crate) fn required(self) -> [u32; WORDS] {
        self.0.map_or([0; WORDS], |level| level.required)
    }

    /// Whether the register belongs to a guest's state.
    pub(crate) fn has_msr(self, index: u32) -> bool {
        self.0.is_none() || !HIDDEN_MSRS.iter().any(|range| range.contains(&index))
    }

    /// What a guest is told, of what the host supports.
    pub(crate) fn narrow(self, supported: &CpuId) -> Result<CpuId, HypervisorError> {
        let Some(level) = self.0 else { return Ok(supported.clone()) };
        let host = cpuid::processor(supported);
        let missing = host.lacks_words(&level.required);
        if !missing.is_empty() {
            return Err(HypervisorError::CpuBaseline { baseline: level.name, missing: missing.join(", ") });
        }
        let allowed = or(level.required, OPTIONAL);
        let kept = |entry: &&kvm_cpuid_entry2| match entry.function {
            // A component of extended state that is masked is not described.
            0xd if entry.index >= 2 => entry.index < 32 && level.xcr0 >> entry.index & 1 != 0,
            0xd if entry.index < 2 => level.xcr0 != 0,
            7 => entry.index <= 1,
            function => !ABSENT_LEAVES.contains(&function),
        };
        let mut entries: Vec<_> = supported.as_slice().iter().filter(kept).copied().collect();
        for entry in &mut entries {
            level.narrow_entry(entry, &allowed, supported);
        }
        cpuid::from_entries(&entries)
    }
}

impl Level {
    fn narrow_entry(&self, entry: &mut kvm_cpuid_entry2, allowed: &[u32; WORDS], supported: &CpuId) {
        for ((function, index, register), mask) in FEATURE_WORDS.iter().zip(allowed) {
            if (*function, *index) == (entry.function, entry.index) {
                *cpuid::register_mut(entry, register) &= mask;
            }
        }
        match (entry.function, entry.index) {
            // Only the always running APIC timer.
            (6, _) => (entry.eax, entry.ecx) = (entry.eax & 1 << 2, 0),
            (7, 0) => entry.eax = entry.eax.min(1),
            (7, 1) => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
            (0xd, 0) => entry.ecx = self.extended_state_len(supported),
            // No supervisor state.
            (0xd, 1) => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
            (KVM_LEAF, _) => entry.eax &= KVM_FEATURES,
            _ => {}
        }
    }

    /// Length of XSAVE's area with all state of the level: the legacy area and header, or the end of its last component.
    fn extended_state_len(&self, supported: &CpuId) -> u32 {
        let components = supported.as_slice().iter().filter(|entry| {
            entry.function == 0xd && (2..32).contains(&entry.index) && self.xcr0 >> entry.index & 1 != 0
        });
        components.map(|component| component.ebx.saturating_add(component.eax)).max().unwrap_or(576)
    }
}

impl fmt::Display for CpuBaseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuBaseline {
    type Err = UnknownBaseline;

    fn from_str(text: &str) -> Result<Self, UnknownBaseline> {
        let found = Self::all().find(|baseline| baseline.name() == text);
        found.ok_or_else(|| UnknownBaseline { shown: text.chars().take(32).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor that has every bit of every word.
    fn everything() -> CpuId {
        let mut entries: Vec<kvm_cpuid_entry2> = Vec::new();
        for (function, index, register) in FEATURE_WORDS {
            let same = |entry: &&mut kvm_cpuid_entry2| (entry.function, entry.index) == (function, index);
            match entries.iter_mut().find(same) {
                Some(entry) => *cpuid::register_mut(entry, register) = u32::MAX,
                None => {
                    let mut entry = kvm_cpuid_entry2 { function, index, ..Default::default() };
                    *cpuid::register_mut(&mut entry, register) = u32::MAX;
                    entries.push(entry);
                }
            }
        }
        let component =
            |index, eax, ebx| kvm_cpuid_entry2 { function: 0xd, index, eax, ebx, ..Default::default() };
        entries.extend([component(2, 256, 576), component(5, 64, 1088), component(9, 8, 2688)]);
        entries.extend(
            [0xa, 0x14, 0x8000_000a].map(|function| kvm_cpuid_entry2 { function, ..Default::default() }),
        );
        CpuId::from_entries(&entries).unwrap()
    }

    fn baseline(name: &str) -> CpuBaseline {
        name.parse().unwrap()
    }

    #[test]
    fn baselines_are_known_by_their_names() {
        for known in CpuBaseline::all() {
            assert_eq!(known.name().parse(), Ok(known));
        }
        assert!("x86-64-v5".parse::<CpuBaseline>().unwrap_err().to_string().contains("x86-64-v4"));
    }

    #[test]
    fn each_level_has_what_the_one_below_has_and_more() {
        let words = |name| {
            let narrowed = baseline(name).narrow(&everything()).unwrap();
            cpuid::processor(&narrowed).features
        };
        for pair in ["x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"].windows(2) {
            let (below, above) = (words(pair[0]), words(pair[1]));
            assert!(below.iter().zip(&above).all(|(below, above)| below & !above == 0), "{pair:?}");
            assert_ne!(below, above);
        }
        let v2 = words("x86-64-v2");
        assert_eq!((v2[0] >> 28 & 1, v2[0] >> 20 & 1, v2[6]), (0, 1, 0), "SSE4.2, but not AVX and no XSAVE");
        assert_eq!(words("host"), cpuid::processor(&everything()).features);
    }

    #[test]
    fn a_level_describes_no_state_beyond_its_own() {
        let narrowed = baseline("x86-64-v3").narrow(&everything()).unwrap();
        let leaves: Vec<_> = narrowed.as_slice().iter().map(|entry| (entry.function, entry.index)).collect();
        assert!(leaves.contains(&(0xd, 2)) && !leaves.contains(&(0xd, 5)) && !leaves.contains(&(0xd, 9)));
        assert!(!leaves.iter().any(|(function, _)| [0xa, 0x14, 0x8000_000a].contains(function)));
        let state =
            narrowed.as_slice().iter().find(|entry| (entry.function, entry.index) == (0xd, 0)).unwrap();
        assert_eq!((state.eax, state.ecx), (0b111, 832));
    }

    #[test]
    fn a_host_below_the_level_is_refused_by_feature() {
        let mut poor = everything();
        poor.as_mut_slice()
            .iter_mut()
            .filter(|entry| entry.function == 7)
            .for_each(|entry| entry.ebx &= !(1 << 5));
        assert!(baseline("x86-64-v2").narrow(&poor).is_ok());
        let error = baseline("x86-64-v3").narrow(&poor).unwrap_err().to_string();
        assert!(error.contains("avx2") && error.contains("x86-64-v3"), "{error}");
    }

    #[test]
    fn registers_that_describe_the_host_do_not_move_below_a_level() {
        assert!(CpuBaseline::HOST.has_msr(0x10a));
        assert!(!baseline("x86-64-v2").has_msr(0x10a));
        assert!(baseline("x86-64-v2").has_msr(0x174));
    }
}
