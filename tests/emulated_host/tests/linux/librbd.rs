//! vmmd finds librbd in the emulated host: it is the same, dynamically linked program as everywhere else.

use std::{fs, path::PathBuf, time::Duration};

use drover_test_prerequisites::{emulated_host, skipped};

use crate::{
    hosts::{self, Given},
    long,
};

#[test]
fn vmmd_opens_librbd_in_the_emulated_host() -> anyhow::Result<()> {
    if !long() || !emulated_host() {
        return Ok(());
    }
    let libraries =
        ["librbd.so.1", "librados.so.2"].map(|name| PathBuf::from("/usr/lib/x86_64-linux-gnu").join(name));
    if !libraries.iter().all(|path| path.exists()) {
        skipped("librbd is not installed: the package librbd1");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::create_dir(&disk)?;
    let capabilities = |libraries: Vec<PathBuf>| {
        let given = Given { disk: &disk, disk_bytes: 16 << 20, memory_mib: 768, link: None, libraries };
        hosts::start(given)?.shell("/programs/drover-vmmd --capabilities", Duration::from_secs(120))
    };
    let with = capabilities(libraries.to_vec())?;
    let without = capabilities(Vec::new())?;
    let says = |text: &str| text.lines().find(|line| line.starts_with("librbd:")).map(str::to_owned);
    anyhow::ensure!(says(&with).is_some_and(|line| line.contains("1.")), "{with}");
    anyhow::ensure!(says(&without) != says(&with), "found where it is not: {without}");
    Ok(())
}
