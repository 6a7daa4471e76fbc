//! Edges between our crates, against the table in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Folder of a crate (`vmm/block`) to the folder names it may depend on (`units`).
pub(super) type AllowedEdges = BTreeMap<String, BTreeSet<String>>;

/// Reads the crate table: rows `| folder/name | text | name, name or - |`.
pub(super) fn parse_table(markdown: &str) -> anyhow::Result<AllowedEdges> {
    let mut allowed = AllowedEdges::new();
    let rows = markdown
        .lines()
        .skip_while(|line| !line.starts_with("| crate |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        ensure!(cells.len() == 3, "ARCHITECTURE.md: the row '{row}' should have three cells");
        let edges = match cells[2] {
            "-" => BTreeSet::new(),
            names => names.split(',').map(|name| name.trim().to_owned()).collect(),
        };
        if allowed.insert(cells[0].to_owned(), edges).is_some() {
            bail!("ARCHITECTURE.md lists {} twice", cells[0]);
        }
    }
    ensure!(!allowed.is_empty(), "ARCHITECTURE.md has no crate table (a row that starts with '| crate |')");
    Ok(allowed)
}

/// Compares the workspace with the table.
pub(super) fn check(root: &Path, allowed: &AllowedEdges) -> anyhow::Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata failed")?;
    let folder_of = |manifest: &Path| -> Option<String> {
        Some(manifest.parent()?.strip_prefix(root).ok()?.to_string_lossy().into_owned())
    };
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata.workspace_packages() {
        let folder =
            folder_of(package.manifest_path.as_std_path()).context("a crate outside the workspace")?;
        seen.insert(folder.clone());
        let Some(may) = allowed.get(&folder) else {
            findings.push(format!("{folder} is not in ARCHITECTURE.md's crate table"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(path) = &dependency.path else { continue };
            let target = path.strip_prefix(root).map(|p| p.to_string()).unwrap_or_else(|_| path.to_string());
            let name = target.rsplit('/').next().unwrap_or(&target);
            if !edge_is_allowed(may, &folder, &target, name, dependency.kind) {
                findings.push(format!(
                    "{folder} depends on {target}, which ARCHITECTURE.md does not allow (allowed: {})",
                    may.iter().cloned().collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }
    for listed in allowed.keys().filter(|folder| !seen.contains(*folder)) {
        findings.push(format!("ARCHITECTURE.md lists {listed}, which is not in the workspace"));
    }
    Ok(findings)
}

/// Crates of one side that the other may use too: they depend on nothing of ours
/// (docs/adr/0006).
const LEAVES_FOR_BOTH: [&str; 3] = ["vmm/rbd", "vmm/tap", "vmm/rate_limit"];

fn edge_is_allowed(
    may: &BTreeSet<String>,
    from: &str,
    target: &str,
    name: &str,
    kind: DependencyKind,
) -> bool {
    let layer = |folder: &str| folder.split('/').next().unwrap_or_default().to_owned();
    let crosses = matches!(
        (layer(from).as_str(), layer(target).as_str()),
        ("vmm", "orchestrator") | ("orchestrator", "vmm")
    );
    if crosses && !LEAVES_FOR_BOTH.contains(&target) {
        return false;
    }
    // Tests may look sideways and use the vocabulary of proto/; what is shipped may not.
    let near = ["tests", "proto", &layer(from)].contains(&layer(target).as_str());
    let for_tests = kind == DependencyKind::Development && (near || target == "guest-images/probe-record");
    for_tests || may.contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "text\n\n| crate | what | may depend on |\n|---|---|---|\n\
        | proto/units | quantities | - |\n| vmm/block | disks | units, ids |\n\nmore";

    #[test]
    fn the_table_is_read_row_by_row() {
        let allowed = parse_table(TABLE).unwrap();
        assert!(allowed["proto/units"].is_empty());
        assert_eq!(allowed["vmm/block"].iter().collect::<Vec<_>>(), ["ids", "units"]);
    }

    #[test]
    fn a_page_without_a_table_is_refused() {
        assert!(parse_table("# Architecture").is_err());
    }

    fn check_edge(from: &str, target: &str, kind: DependencyKind, expect: bool) {
        let may = ["units".to_owned(), "driver".to_owned()].into();
        let name = target.rsplit('/').next().unwrap();
        assert_eq!(edge_is_allowed(&may, from, target, name, kind), expect, "{from} -> {target}");
    }

    #[test]
    fn only_listed_edges_pass_and_the_two_halves_never_meet() {
        check_edge("vmm/block", "proto/units", DependencyKind::Normal, true);
        check_edge("vmm/block", "proto/ids", DependencyKind::Normal, false);
        check_edge("vmm/block", "orchestrator/driver", DependencyKind::Normal, false);
        check_edge("vmm/block", "orchestrator/driver", DependencyKind::Development, false);
        check_edge("vmm/block", "tests/prerequisites", DependencyKind::Development, true);
        check_edge("vmm/block", "proto/ids", DependencyKind::Development, true);
        check_edge("vmm/block", "vmm/bus", DependencyKind::Development, true);
        check_edge("vmm/block", "vmm/bus", DependencyKind::Normal, false);
        check_edge("vmm/block", "tests/prerequisites", DependencyKind::Normal, false);
    }
}
