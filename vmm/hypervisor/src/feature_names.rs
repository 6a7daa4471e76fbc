//! What people call the bits of a processor's feature words: Linux's names in /proc/cpuinfo.

use crate::cpuid::FEATURE_WORDS;

/// Names by word and bit, in the order of [`FEATURE_WORDS`].
const NAMES: [(usize, &[(u32, &str)]); 9] = [
    (
        0,
        &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (3, "monitor"),
            (5, "vmx"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (15, "pdcm"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc_deadline_timer"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    (1, &[(11, "sep"), (15, "cmov"), (19, "clflush"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2")]),
    (
        2,
        &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        3,
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
        ],
    ),
    (
        4,
        &[
            (4, "fsrm"),
            (10, "md_clear"),
            (22, "amx_bf16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
            (26, "spec_ctrl"),
            (27, "intel_stibp"),
            (28, "flush_l1d"),
            (29, "arch_capabilities"),
            (31, "ssbd"),
        ],
    ),
    (5, &[(4, "avx_vnni"), (5, "avx512_bf16")]),
    (8, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    (
        9,
        &[
            (0, "lahf_lm"),
            (2, "svm"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (22, "topoext"),
        ],
    ),
    (10, &[(11, "syscall"), (20, "nx"), (22, "mmxext"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")]),
];

/// The name of a bit; where it has none here, its place in CPUID.
pub(crate) fn name(word: usize, bit: u32) -> String {
    let names = NAMES.iter().find(|(named, _)| *named == word).map_or(&[][..], |(_, names)| names);
    if let Some((_, name)) = names.iter().find(|(named, _)| *named == bit) {
        return (*name).to_owned();
    }
    match FEATURE_WORDS.get(word) {
        Some((function, index, register)) => format!("CPUID {function:#x}.{index} {register} bit {bit}"),
        None => format!("word {word} bit {bit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_names_that_people_know() {
        assert_eq!(name(2, 5), "avx2");
        assert_eq!(name(10, 29), "lm");
        assert_eq!(name(11, 12), "CPUID 0x80000008.0 EBX bit 12");
        assert_eq!(name(99, 1), "word 99 bit 1");
    }
}
