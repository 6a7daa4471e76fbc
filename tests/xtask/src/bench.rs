//! `cargo xtask bench <name>`: one side-by-side comparison, in a release build.
//!
//! A bench is a program in `benches/<name>`: it prints its table and writes `target/bench/<name>.json` below the
//! workspace's root, which is the folder it runs in. Adding one takes nothing here.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use clap::Args;
use drover_test_prerequisites::workspace_root;

use crate::cargo;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which comparison; without it the names are listed
    name: Option<String>,
    /// The short form for CI: fewer rounds and smaller sizes, good for finding that something broke, not for quoting
    #[arg(long)]
    quick: bool,
    /// What the bench itself takes, after `--`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the bench and runs it.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let root = workspace_root();
    let known = names(&root.join("benches"))?;
    let Some(name) = &options.name else {
        for name in known {
            println!("{name}");
        }
        return Ok(());
    };
    if !known.contains(name) {
        bail!("there is no bench '{name}'; there are: {}", known.join(", "));
    }
    let mut command = cargo::command();
    command.args(["run", "--release", "--locked", "--package"]).arg(format!("drover-bench-{name}")).arg("--");
    if options.quick {
        command.arg("--quick");
    }
    let status = command.args(&options.arguments).current_dir(&root).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the bench '{name}' failed: {status}");
    }
    Ok(())
}

/// The folders that hold a program; what benches share is a library.
fn names(benches: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(benches).with_context(|| format!("cannot read {}", benches.display()))? {
        let entry = entry?;
        if entry.path().join("src/main.rs").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_is_a_folder_with_a_program() {
        let folder = tempfile::tempdir().unwrap();
        for (bench, root) in [("report", "lib.rs"), ("placement", "main.rs"), ("block", "main.rs")] {
            fs::create_dir_all(folder.path().join(bench).join("src")).unwrap();
            fs::write(folder.path().join(bench).join("src").join(root), "").unwrap();
        }
        assert_eq!(names(folder.path()).unwrap(), ["block", "placement"]);
    }
}
