//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, built once and run side by side.
//!
//! The compiler that builds everything else builds them too, with libFuzzer's instrumentation. An address sanitizer needs a
//! nightly one and is asked for (`--address-sanitizer`): what the targets reach is nearly all safe code, which panics where
//! it goes wrong. `cargo fuzz run <target>` in the same folder works as well; nothing here needs it installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use drover_test_prerequisites::workspace_root;

use crate::cargo;

/// A target that needs more for one input hangs (libFuzzer counts it as a finding). More than the minute after which the
/// targets themselves say of a device that it does not become quiet.
const INPUT_SECONDS_MAX: u32 = 90;
/// Memory of a target, MiB, a sanitizer's shadow included.
const MEMORY_MIB_MAX: u32 = 2048;
/// Longest input, bytes: scripts and headers are shorter.
const INPUT_BYTES_MAX: u32 = 8192;
/// How long each target runs unless told otherwise.
const SECONDS: u32 = 30;
/// How many run at a time as part of the tests.
const JOBS_IN_TESTS: usize = 2;
/// What a committed corpus may be: it is read whenever a target starts, and cloned by everybody.
const CORPUS_FILES_MAX: usize = 100;
const CORPUS_BYTES_MAX: u64 = 200_000;

/// What `cargo fuzz` gives the compiler: coverage for libFuzzer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these targets; without any, all of them
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u32,
    /// How many targets run at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Keep what was found to reach new code in target/fuzz-corpus, for the next run
    #[arg(long)]
    keep: bool,
    /// Fuzz nothing: put into fuzz/corpus what, of all that is there and was kept, is enough to reach the same code
    #[arg(long, conflicts_with_all = ["keep", "seconds"])]
    minimise: bool,
    /// Build with an address sanitizer too, which takes a nightly compiler
    #[arg(long)]
    address_sanitizer: bool,
}

/// What came of the targets that ran.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    /// Those with findings.
    pub(crate) failed: Vec<String>,
}

/// Builds the targets and runs those that are asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(reason) = missing(options.address_sanitizer) {
        bail!("{reason}");
    }
    let root = workspace_root();
    let known = targets(&root)?;
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target '{unknown}'; there are: {}", known.join(", "));
    }
    let chosen = if options.targets.is_empty() { &known } else { &options.targets };
    let folder = build(&root, options.address_sanitizer)?;
    if options.minimise {
        return chosen.iter().try_for_each(|target| minimise(&root, &folder, target));
    }
    let outcome = run_all(&root, &folder, chosen, options)?;
    if !outcome.failed.is_empty() {
        bail!("findings in {}: the inputs are in target/fuzz-findings", outcome.failed.join(", "));
    }
    eprintln!("fuzz: {} target(s), no finding", outcome.passed);
    Ok(())
}

/// What came of the part that fuzzing has in all tests.
pub(crate) enum Brief {
    Ran(Outcome),
    /// They cannot be built on this machine.
    Skipped {
        targets: usize,
        reason: String,
    },
}

/// What is part of all tests: every target for half a minute.
pub(crate) fn run_briefly() -> anyhow::Result<Brief> {
    let root = workspace_root();
    let chosen = targets(&root)?;
    if let Some(reason) = missing(false) {
        return Ok(Brief::Skipped { targets: chosen.len(), reason });
    }
    let options = Options {
        targets: Vec::new(),
        seconds: SECONDS,
        jobs: JOBS_IN_TESTS,
        keep: false,
        minimise: false,
        address_sanitizer: false,
    };
    let folder = build(&root, false)?;
    run_all(&root, &folder, &chosen, &options).map(Brief::Ran)
}

/// Why nothing can be fuzzed here.
fn missing(address_sanitizer: bool) -> Option<String> {
    let quietly = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if address_sanitizer && !quietly("rustup", &["run", "nightly", "rustc", "--version"]) {
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
fn build(root: &Path, address_sanitizer: bool) -> anyhow::Result<PathBuf> {
    let start = Instant::now();
    eprintln!("fuzz: building the targets");
    let output = root.join(if address_sanitizer { "target/fuzz-asan" } else { "target/fuzz" });
    let mut command = if address_sanitizer {
        let mut command = Command::new("rustup");
        // The stable toolchain's, when this program was started by it.
        command.args(["run", "nightly", "cargo"]).env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
        command.env("RUSTFLAGS", format!("{FLAGS} -Zsanitizer=address"));
        command
    } else {
        let mut command = cargo::command();
        command.env("RUSTFLAGS", FLAGS);
        command
    };
    // Not `--locked`: a dependency that one of our crates has got since belongs into this workspace's list too, and is no
    // reason not to fuzz.
    let status = command
        .args(["build", "--release", "--bins", "--quiet", "--target", TRIPLE])
        .arg("--manifest-path")
        .arg(root.join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(&output)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build: {status}");
    }
    eprintln!("fuzz: built in {:.0} s", start.elapsed().as_secs_f64());
    Ok(output.join(TRIPLE).join("release"))
}

/// Runs these targets, so many at a time.
fn run_all(root: &Path, folder: &Path, chosen: &[String], options: &Options) -> anyhow::Result<Outcome> {
    let (next, outcome) = (AtomicUsize::new(0), Mutex::new(Outcome::default()));
    let work = || -> anyhow::Result<()> {
        while let Some(target) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found_nothing = run_one(root, folder, target, options)?;
            let mut outcome = outcome.lock().expect("nobody panics with it");
            if found_nothing {
                outcome.passed += 1;
            } else {
                outcome.failed.push(target.clone());
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    Ok(outcome.into_inner().expect("nobody panicked with it"))
}

/// Whether the target found nothing.
fn run_one(root: &Path, folder: &Path, target: &str, options: &Options) -> anyhow::Result<bool> {
    let findings = root.join("target/fuzz-findings").join(target);
    fs::create_dir_all(&findings).with_context(|| format!("cannot make {}", findings.display()))?;
    // New inputs go to the first folder; the committed ones are only read.
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let kept = kept(root, target);
    let new = if options.keep { kept.as_path() } else { temporary.path() };
    fs::create_dir_all(new).with_context(|| format!("cannot make {}", new.display()))?;
    let committed = committed(root, target);
    let start = Instant::now();
    let arguments = [
        format!("-max_total_time={}", options.seconds),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", findings.display()),
    ];
    let mut command = Command::new(folder.join(target));
    command.args(arguments).arg(new).args(committed.is_dir().then_some(&committed)).current_dir(&findings);
    let (status, log) = logged(&mut command, &findings.join("log"))?;
    let outcome = if status.success() { "nothing found" } else { "A FINDING" };
    println!(
        "fuzz {target}: {outcome}, {} inputs in {:.0} s, {} of the code's branches",
        executed(&log).map_or_else(|| "?".to_owned(), |runs| runs.to_string()),
        start.elapsed().as_secs_f64(),
        covered(&log).map_or_else(|| "?".to_owned(), |branches| branches.to_string()),
    );
    if !status.success() {
        // From where it begins to be about the finding.
        let from = log.find("panicked at").or_else(|| log.find("ERROR:")).unwrap_or(0);
        eprintln!("{}", log[from..].chars().take(8000).collect::<String>());
    }
    Ok(status.success())
}

/// Makes of the committed corpus and the kept one the smallest that reaches as much, and puts it into the committed one's
/// place.
fn minimise(root: &Path, folder: &Path, target: &str) -> anyhow::Result<()> {
    let (committed, kept) = (committed(root, target), kept(root, target));
    let merged = tempfile::tempdir().context("cannot make a temporary folder")?;
    let smallest = merged.path().join("corpus");
    fs::create_dir_all(&smallest).context("cannot make a folder")?;
    let mut command = Command::new(folder.join(target));
    // By the branches that are reached, not by how often: an input for each count of each would be ten times as many.
    command.args(["-set_cover_merge=1", "-use_counters=0", &format!("-max_len={INPUT_BYTES_MAX}")]);
    command.arg(&smallest);
    command.args([&committed, &kept].into_iter().filter(|folder| folder.is_dir())).current_dir(merged.path());
    let (status, log) = logged(&mut command, &merged.path().join("log"))?;
    if !status.success() {
        bail!("the corpus of {target} cannot be minimised: {status}: {log}");
    }
    let (files, bytes) = keep_within_limits(&smallest)?;
    if committed.is_dir() {
        fs::remove_dir_all(&committed).with_context(|| format!("cannot empty {}", committed.display()))?;
    }
    fs::create_dir_all(&committed).with_context(|| format!("cannot make {}", committed.display()))?;
    for entry in fs::read_dir(&smallest)? {
        let entry = entry?;
        fs::copy(entry.path(), committed.join(entry.file_name())).context("cannot copy an input")?;
    }
    println!("fuzz {target}: {files} inputs, {bytes} bytes");
    Ok(())
}

/// Takes inputs away until the rest is small enough to be committed: of too many the smallest, which say least, of too many
/// bytes the largest. Returns how many are left, and their size.
fn keep_within_limits(folder: &Path) -> anyhow::Result<(usize, u64)> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.path()));
    }
    inputs.sort();
    let mut surplus: Vec<_> = inputs.drain(..inputs.len().saturating_sub(CORPUS_FILES_MAX)).collect();
    let mut bytes: u64 = inputs.iter().map(|(len, _)| len).sum();
    while bytes > CORPUS_BYTES_MAX {
        let Some((len, path)) = inputs.pop() else { break };
        bytes -= len;
        surplus.push((len, path));
    }
    for (_, path) in surplus {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok((inputs.len(), bytes))
}

fn committed(root: &Path, target: &str) -> PathBuf {
    root.join("fuzz/corpus").join(target)
}

fn kept(root: &Path, target: &str) -> PathBuf {
    root.join("target/fuzz-corpus").join(target)
}

/// Runs a target to its end; what it said is in the file too.
fn logged(command: &mut Command, file: &Path) -> anyhow::Result<(ExitStatus, String)> {
    let log = fs::File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).status();
    let status = status.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let said = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

/// How many inputs a target says it has run.
fn executed(log: &str) -> Option<u64> {
    log.lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|number| number.trim().parse().ok())
}

/// What its last line of progress says of branches, such as `#1024 pulse  cov: 512 ft: 600 …`.
fn covered(log: &str) -> Option<u64> {
    let after = log.rsplit_once(" cov: ")?.1;
    after.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: seed\n#2\tINITED cov: 30 ft: 31 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #900\tDONE   cov: 512 ft: 600 corp: 9/90b exec/s: 30 rss: 31Mb\n\
        stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     30\n";

    #[test]
    fn a_targets_last_words_say_what_it_ran_and_reached() {
        assert_eq!((executed(LOG), covered(LOG)), (Some(900), Some(512)));
        assert_eq!((executed("cannot start"), covered("cannot start")), (None, None));
    }

    #[test]
    fn a_corpus_loses_inputs_until_it_may_be_committed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, len) in [("a", 150_000), ("b", 60_000), ("c", 10)] {
            fs::write(folder.path().join(name), vec![0; len]).unwrap();
        }
        assert_eq!(keep_within_limits(folder.path()).unwrap(), (2, 60_010));
        assert!(!folder.path().join("a").exists(), "too many bytes");
        for number in 0..CORPUS_FILES_MAX {
            fs::write(folder.path().join(format!("more{number}")), [0; 11]).unwrap();
        }
        assert_eq!(keep_within_limits(folder.path()).unwrap().0, CORPUS_FILES_MAX);
        assert!(!folder.path().join("c").exists() && folder.path().join("b").exists(), "too many");
    }

    #[test]
    fn each_target_of_the_workspace_is_known() {
        assert!(targets(&workspace_root()).unwrap().contains(&"virtio_blk".to_owned()));
    }
}
