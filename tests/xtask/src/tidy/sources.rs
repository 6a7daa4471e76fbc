//! Rules about source text that no lint knows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Longest file without its tests (STYLE: shape), with some slack over the 600 lines one aims at.
const MAX_LINES: usize = 650;

/// The only places where `unsafe` may be opted into (B2).
const MAY_OPT_INTO_UNSAFE: [&str; 8] = [
    "vmm/hypervisor/",
    "vmm/guest_memory/",
    "vmm/block/src/file/",
    "vmm/rbd/src/ffi/",
    "vmm/tap/src/ffi.rs",
    "vmm/block_rbd/src/buffers.rs",
    "vmm/jail/",
    "guest-images/probe/",
];

/// Reads every Rust file of the project.
pub(super) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut findings = Vec::new();
    for folder in ["proto", "vmm", "orchestrator", "guest-images", "benches", "tests"] {
        for file in rust_files(&root.join(folder))? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
            findings.extend(check_file(&name, &text));
        }
    }
    Ok(findings)
}

fn check_file(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
    if lines > MAX_LINES {
        findings.push(format!("{name}: {lines} lines before its tests (at most {MAX_LINES}): find the seam"));
    }
    // Spelled in two halves, so that this file does not find itself.
    let opt_in = concat!("allow(unsafe", "_code");
    if text.contains(opt_in) && !MAY_OPT_INTO_UNSAFE.iter().any(|place| name.starts_with(place)) {
        findings
            .push(format!("{name}: opts into unsafe code, which B2 allows only in {MAY_OPT_INTO_UNSAFE:?}"));
    }
    let is_crate_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    let exempt = [
        "vmm/hypervisor/",
        "vmm/guest_memory/",
        "vmm/block/",
        "vmm/rbd/",
        "vmm/tap/",
        "vmm/block_rbd/",
        "vmm/jail/",
        "guest-images/probe/",
        "proto/wire/",
    ];
    let forbids = text.contains(concat!("forbid(unsafe", "_code)"));
    if is_crate_root && !forbids && !exempt.iter().any(|place| name.starts_with(place)) {
        findings.push(format!("{name}: a crate root that does not forbid unsafe code (B2)"));
    }
    findings
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.exists() {
        return Ok(files);
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let skipped = path.file_name().is_some_and(|name| name == "target");
        if path.is_dir() && !skipped {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expect: usize) {
        let findings = check_file(name, text);
        assert_eq!(findings.len(), expect, "{findings:?}");
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        check("vmm/bus/src/dispatch.rs", &"line\n".repeat(MAX_LINES), 0);
        check("vmm/bus/src/dispatch.rs", &"line\n".repeat(MAX_LINES + 1), 1);
        let tested = format!("{}#[cfg(test)]\n{}", "line\n".repeat(10), "line\n".repeat(MAX_LINES));
        check("vmm/bus/src/dispatch.rs", &tested, 0);
    }

    #[test]
    fn unsafe_is_opted_into_only_where_the_design_allows() {
        let opt_in = concat!("#![allow(unsafe", "_code, reason = \"ioctls\")]\n");
        check("vmm/hypervisor/src/vcpu.rs", opt_in, 0);
        check("vmm/devices/src/serial.rs", opt_in, 1);
        check("vmm/devices/src/lib.rs", "//! Devices.\n", 1);
    }
}
