//! `cargo xtask test`: everything that is tested, counted.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, bail};
use drover_test_prerequisites::{PROBE_VARIABLE, SKIPPED_VARIABLE, build_probe, workspace_root};

use crate::{cargo, fuzz, leftovers::Watch, setup, tidy};

/// Makes tests that break and move things on Ceph do so for longer: fifty moves, outages of a minute.
const LONG_VARIABLE: &str = "DROVER_CEPH_LONG";

/// Makes the tests with unmodified Linux do more: a whole Debian, and its move to another emulated host.
const LINUX_LONG_VARIABLE: &str = "DROVER_LINUX_LONG";

/// Sets up, runs every test, prints the count.
pub(crate) fn run() -> anyhow::Result<()> {
    run_tests(&[&[]], &[], Fuzz::Briefly)
}

/// Sets up and runs, in their long form, the tests that put VMs on Ceph: those of a vmmd, and those of the whole system.
pub(crate) fn run_long_on_ceph() -> anyhow::Result<()> {
    let long = (OsString::from(LONG_VARIABLE), OsString::from("1"));
    // One after the other: a long form is about time, and what runs beside it takes the processors. The programs that the
    // whole system consists of come first, with the tests of their own packages.
    let alone = ["--test-threads", "1"];
    run_tests(
        &[
            &["--no-run"],
            &[&["--test", "vmmd", "--", "ceph"], &alone[..]].concat(),
            &[&["--test", "ceph", "--"], &alone[..]].concat(),
        ],
        &[long],
        Fuzz::No,
    )
}

/// Sets up and runs the tests that boot unmodified Linux in an emulated host.
pub(crate) fn run_linux(short: bool) -> anyhow::Result<()> {
    let long = (OsString::from(LINUX_LONG_VARIABLE), OsString::from("1"));
    if !short {
        setup::install_for_linux();
    }
    // Programs come with the tests of their packages: vmmd, and for the long form agent, control plane and command.
    let system = ["--test", "agent", "--test", "process", "--test", "commands"];
    let build = ["--no-run", "--test", "linux", "--test", "vmmd"];
    let build = if short { build.to_vec() } else { [&build[..], &system].concat() };
    // One after the other: each emulated host takes a processor or two.
    let run = ["--test", "linux", "--", "--test-threads", "1", "--nocapture"];
    run_tests(&[&build, &run], if short { &[] } else { std::slice::from_ref(&long) }, Fuzz::No)
}

/// Whether fuzz targets are part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fuzz {
    No,
    Briefly,
}

/// One command of cargo's for each selection.
fn run_tests(selections: &[&[&str]], more: &[(OsString, OsString)], fuzz: Fuzz) -> anyhow::Result<()> {
    setup::install_missing()?;
    tidy::run()?;
    let start = Instant::now();
    eprintln!("test: building the probe guest");
    let probe = build_probe().map_err(anyhow::Error::msg).context("the probe guest does not build")?;
    let folder = tempfile::Builder::new().prefix("dt").tempdir().context("cannot make a temporary folder")?;
    let skips = folder.path().join("skipped");
    let watch = Watch::begin(folder.path())?;
    let mut environment = vec![
        (OsString::from(PROBE_VARIABLE), probe.into_os_string()),
        (OsString::from(SKIPPED_VARIABLE), skips.clone().into_os_string()),
    ];
    environment.extend(watch.environment());
    environment.extend_from_slice(more);

    let mut total = Count::default();
    // One command for everything: another selection of packages would unify their features differently and build them again.
    // The programs that end-to-end tests start are built with their own packages' tests.
    let everything = ["test", "--workspace", "--locked", "--no-fail-fast"];
    for selection in selections {
        run_cargo(&[&everything, *selection].concat(), &environment, &mut total)?;
    }

    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    let skipped: Vec<&str> = skipped.lines().collect();
    eprintln!("test: cargo's tests took {:.0} s", start.elapsed().as_secs_f64());
    if fuzz == Fuzz::Briefly {
        run_fuzz_targets(&mut total);
    }
    eprintln!("test: {:.0} s", start.elapsed().as_secs_f64());
    for line in &skipped {
        let (test, reason) = line.split_once('\t').unwrap_or((line, "no reason given"));
        println!("skipped: {test}: {reason}");
    }
    // A skipped test ends as passed for cargo: it did not run.
    let ran = total.passed.saturating_sub(skipped.len());
    println!("{ran} passed, {} failed, {} skipped", total.failed, skipped.len() + total.ignored);
    let left = watch.end();
    for line in &left {
        println!("left behind: {line}");
    }
    if total.failed > 0 || total.broken {
        bail!("there are failures above");
    }
    if !left.is_empty() {
        bail!("the tests have left behind what is listed above");
    }
    if ran == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Every fuzz target for a short while, each counted as one test.
fn run_fuzz_targets(total: &mut Count) {
    match fuzz::run_briefly() {
        Ok(fuzz::Brief::Ran(outcome)) => {
            total.passed += outcome.passed;
            total.failed += outcome.failed.len();
        }
        Ok(fuzz::Brief::Skipped { targets, reason }) => {
            println!("skipped: all {targets} fuzz targets: {reason}");
            total.ignored += targets;
        }
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            total.broken = true;
        }
    }
}

/// Formatting, lints, tests.
pub(crate) fn ci() -> anyhow::Result<()> {
    let mut total = Count::default();
    run_cargo(&["fmt", "--all", "--check"], &[], &mut total)?;
    run_cargo(
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"],
        &[],
        &mut total,
    )?;
    if total.broken {
        bail!("formatting or lints: see above");
    }
    run()
}

/// What libtest's closing lines add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// A command ended with an error: a build failure, or failures counted above.
    broken: bool,
}

impl Count {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`.
    fn add_line(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result: ") else { return };
        let numbers = result.split_once(". ").map_or(result, |(_, numbers)| numbers);
        for part in numbers.split("; ") {
            let mut words = part.split(' ');
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs cargo, shows its output and counts its tests.
fn run_cargo(
    arguments: &[&str],
    environment: &[(OsString, OsString)],
    total: &mut Count,
) -> anyhow::Result<()> {
    eprintln!("test: cargo {}", arguments.join(" "));
    let mut child = cargo::command()
        .args(arguments)
        .current_dir(workspace_root())
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.stdout.take().context("the output was piped")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("cargo's output ended badly")?;
        println!("{line}");
        total.add_line(&line);
    }
    total.broken |= !child.wait().context("cannot wait for cargo")?.success();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up_and_other_lines_do_not_count() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.1s",
            "5 passed",
        ] {
            count.add_line(line);
        }
        assert_eq!(count, Count { passed: 5, failed: 1, ignored: 1, broken: false });
    }
}
