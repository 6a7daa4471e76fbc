//! The one door for developers: `cargo xtask <command>`.
//!
//! - `demo`: the product's promise in one run, on real processes and real KVM
//! - `test`: everything that is tested, with a count of what ran and what was skipped
//! - `bench <name>`: one side-by-side comparison, with a table and a JSON file
//! - `ci`: formatting, lints, `tidy` and `test`
//! - `fuzz`: the fuzz targets, each for a while
//! - `tidy`: crate edges and source rules
//! - `setup`: what the machine lacks
//! - `ceph`: a Ceph cluster to try things on
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a developer tool measures time and waits for processes")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod bench;
mod cargo;
mod ceph;
mod demo;
mod fuzz;
mod leftovers;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The one door for Drover's developers", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the whole system here: places VMs, migrates one live, kills a node, verifies every acknowledged write
    Demo(demo::Options),
    /// Sets up what is missing and runs every test; prints how many ran and how many were skipped, and why
    Test {
        /// Only the tests that put VMs on Ceph, in their long form: fifty moves, an outage of a minute
        #[arg(long, conflicts_with = "linux")]
        ceph: bool,
        /// Only the tests that boot unmodified Linux in an emulated host, in their long form: a whole Debian, its disk, its
        /// network, its move to another host
        #[arg(long)]
        linux: bool,
        /// With --linux: the short form, which is part of all tests
        #[arg(long, requires = "linux")]
        short: bool,
    },
    /// Runs one side-by-side comparison in a release build; prints a table and writes target/bench/<name>.json
    Bench(bench::Options),
    /// What must pass before a change lands: formatting, lints, tidy, tests
    Ci,
    /// Builds the fuzz targets once and runs them; findings are in target/fuzz-findings
    Fuzz(fuzz::Options),
    /// Checks crate edges against ARCHITECTURE.md and the sources against the rules no lint knows
    Tidy,
    /// Installs what is missing, or prints the command that would
    Setup(setup::Options),
    /// A Ceph cluster of one's own on this machine, in memory
    #[command(subcommand)]
    Ceph(ceph::Command),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test { linux: true, short, .. } => test::run_linux(short),
        Command::Test { ceph: true, .. } => test::run_long_on_ceph(),
        Command::Test { .. } => test::run(),
        Command::Bench(options) => bench::run(&options),
        Command::Ci => test::ci(),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Tidy => tidy::run(),
        Command::Setup(options) => setup::run(&options),
        Command::Ceph(command) => ceph::run(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence, without a backtrace that RUST_BACKTRACE would add.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
