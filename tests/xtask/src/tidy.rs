//! `cargo xtask tidy`: what can be checked by machine about how the tree is laid out.

mod edges;
mod sources;

use anyhow::{Context as _, bail};
use drover_test_prerequisites::workspace_root;

/// Checks crate edges against ARCHITECTURE.md and the sources against the rules that no lint knows.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = workspace_root();
    let architecture =
        std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let allowed = edges::parse_table(&architecture)?;
    let mut findings = edges::check(&root, &allowed)?;
    findings.extend(sources::check(&root)?);
    if findings.is_empty() {
        eprintln!("tidy: {} crates, nothing to complain about", allowed.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} finding(s)", findings.len())
}
