//! Programs that know nothing of us read what we wrote.

use std::{fs, path::Path, process::Command};

use drover_cloud_init::{Seed, Unchecked};
use drover_test_prerequisites::{is_installed, skipped};

fn seed() -> Seed {
    let raw = Unchecked {
        hostname: "web".to_owned(),
        ssh_keys: vec!["ssh-ed25519 AAAA \"ann\"".to_owned()],
        user_data: format!("#!/bin/sh\n# {}\n", "longer than a sector ".repeat(200)),
        network_config: "version: 2\nethernets: {}\n".to_owned(),
    };
    Seed::try_from(raw).expect("valid")
}

fn run(program: &str, arguments: &[&str], image: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(image).output().expect("runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn blkid_finds_the_label_that_cloud_init_looks_for() {
    if !is_installed("blkid") && !Path::new("/usr/sbin/blkid").exists() {
        return skipped("blkid is not installed");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("seed.iso");
    fs::write(&image, seed().image("i-1", "vm")).expect("written");
    let blkid = if is_installed("blkid") { "blkid" } else { "/usr/sbin/blkid" };
    let found = run(blkid, &["-p", "-o", "export"], &image);
    assert!(found.contains("LABEL=CIDATA\n") && found.contains("TYPE=iso9660\n"), "{found}");
}

#[test]
fn isoinfo_reads_every_file_by_its_real_name() {
    if !is_installed("isoinfo") {
        return skipped("isoinfo is not installed: the package genisoimage");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("seed.iso");
    let seed = seed();
    fs::write(&image, seed.image("i-1", "vm")).expect("written");
    let listed = run("isoinfo", &["-R", "-f", "-i"], &image);
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["/meta-data", "/network-config", "/user-data"]);
    let read = |name: &str| run("isoinfo", &["-R", "-x", name, "-i"], &image);
    assert_eq!(read("/user-data"), seed.fields().user_data);
    assert_eq!(read("/network-config"), seed.fields().network_config);
    let meta_data = read("/meta-data");
    for part in ["\"instance-id\": \"i-1\"", "\"local-hostname\": \"web\"", r#""ssh-ed25519 AAAA \"ann\"""#] {
        assert!(meta_data.contains(part), "{meta_data}");
    }
}
