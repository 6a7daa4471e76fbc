//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, built by a nightly compiler and run one after the other.
//!
//! `cargo fuzz run <target>` in the same folder does the same and more; nothing here needs it installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use drover_test_prerequisites::workspace_root;

/// A target that needs more for one input hangs (libFuzzer counts it as a finding).
const INPUT_SECONDS_MAX: u32 = 60;
/// Memory of a target, MiB, the sanitizer's shadow included; and of one allocation.
const MEMORY_MIB_MAX: u32 = 2048;
const ALLOCATION_MIB_MAX: u32 = 96;
/// Longest input, bytes: scripts and headers are shorter.
const INPUT_BYTES_MAX: u32 = 8192;
/// How long each target runs unless told otherwise.
const SECONDS: u32 = 30;

/// What `cargo fuzz` gives the compiler: coverage for libFuzzer, and an address sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Zsanitizer=address -Ccodegen-units=1";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these targets; without any, all of them
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u32,
    /// Keep what was found to reach new code in target/fuzz-corpus, for the next run
    #[arg(long)]
    keep: bool,
}

/// Builds the targets and runs those that are asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(reason) = missing() {
        bail!("{reason}");
    }
    let root = workspace_root();
    let known = targets(&root)?;
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target '{unknown}'; there are: {}", known.join(", "));
    }
    let chosen = if options.targets.is_empty() { &known } else { &options.targets };
    let folder = build(&root)?;
    let mut findings = Vec::new();
    for target in chosen {
        if !run_one(&root, &folder, target, options)? {
            findings.push(target.as_str());
        }
    }
    if !findings.is_empty() {
        bail!("findings in {}: the inputs are in target/fuzz-findings", findings.join(", "));
    }
    eprintln!("fuzz: {} target(s), no finding", chosen.len());
    Ok(())
}

/// Why nothing can be fuzzed here.
fn missing() -> Option<String> {
    let quietly = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !quietly("rustup", &["run", "nightly", "rustc", "--version"]) {
        return Some("no nightly compiler: rustup toolchain install nightly".to_owned());
    }
    (!quietly("c++", &["--version"]))
        .then(|| "no C++ compiler to build libFuzzer with: package g++".to_owned())
}

/// One per file in `fuzz/fuzz_targets`.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds all targets; returns where they are.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    eprintln!("fuzz: building the targets");
    let output = root.join("target/fuzz");
    let status = Command::new("rustup")
        .args(["run", "nightly", "cargo", "build", "--release", "--locked", "--bins", "--target", TRIPLE])
        .arg("--manifest-path")
        .arg(root.join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(&output)
        .env("RUSTFLAGS", FLAGS)
        // The stable toolchain's, when this program was started by it.
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot run rustup")?;
    if !status.success() {
        bail!("the fuzz targets do not build: {status}");
    }
    Ok(output.join(TRIPLE).join("release"))
}

/// Whether the target found nothing.
fn run_one(root: &Path, folder: &Path, target: &str, options: &Options) -> anyhow::Result<bool> {
    let findings = root.join("target/fuzz-findings").join(target);
    fs::create_dir_all(&findings).with_context(|| format!("cannot make {}", findings.display()))?;
    // New inputs go to the first folder; the committed ones are only read.
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let kept = root.join("target/fuzz-corpus").join(target);
    let new = if options.keep { kept.as_path() } else { temporary.path() };
    fs::create_dir_all(new).with_context(|| format!("cannot make {}", new.display()))?;
    let committed = root.join("fuzz/corpus").join(target);
    let log = fs::File::create(findings.join("log")).context("cannot make a log")?;
    let start = Instant::now();
    let mut command = Command::new(folder.join(target));
    command
        .arg(new)
        .args(committed.is_dir().then_some(&committed))
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"))
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .current_dir(&findings)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let status = command.status().with_context(|| format!("cannot run the target {target}"))?;
    let log = fs::read_to_string(findings.join("log")).unwrap_or_default();
    let runs = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let runs = runs.unwrap_or("?").trim();
    let outcome = if status.success() { "nothing found" } else { "A FINDING" };
    println!("fuzz {target}: {outcome}, {runs} inputs in {:.0} s", start.elapsed().as_secs_f64());
    if !status.success() {
        // From where it begins to be about the finding.
        let from = log.find("panicked at").or_else(|| log.find("ERROR:")).unwrap_or(0);
        eprintln!("{}", log[from..].chars().take(8000).collect::<String>());
    }
    Ok(status.success())
}
