//! Clusters on the distribution's own daemons.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests of real processes; helpers fail by panicking"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use drover_test_ceph_cluster::{CephCluster, CephError, CephOptions, Daemon, LeftRunning, PoolOptions};
use drover_test_prerequisites::ceph;

/// Set for the copy of this program that [`a_cluster_does_not_outlive_an_owner_that_is_killed`] kills.
const OWNER: &str = "DROVER_CEPH_TEST_OWNER";
const DEADLINE: Duration = Duration::from_secs(60);

fn image_size(cluster: &CephCluster, image: &str) -> Result<String, CephError> {
    cluster.rbd(&["info", image, "--format", "json"])
}

#[test]
fn a_cluster_serves_images_and_reports_what_was_left_behind() {
    if !ceph() {
        return;
    }
    let cluster = CephCluster::start(&CephOptions::default()).unwrap();
    let directory = cluster.directory().to_owned();
    assert!(cluster.leaks().unwrap().is_empty());
    cluster.rbd(&["create", "--size", "64M", "rbd/left"]).unwrap();
    cluster.rbd(&["lock", "add", "rbd/left", "holder"]).unwrap();
    let copy = cluster.directory().join("copy");
    cluster.export("rbd/left", &copy).unwrap();
    assert_eq!(fs::metadata(&copy).unwrap().len(), 64 << 20);
    cluster.rbd(&["create", "--size", "64M", "rbd/thrown-away"]).unwrap();
    cluster.rbd(&["trash", "mv", "rbd/thrown-away"]).unwrap();
    cluster.ceph(&["osd", "blocklist", "add", "127.0.0.1:0/4711"]).unwrap();
    let leaks = cluster.leaks().unwrap();
    assert_eq!(
        (leaks.images.as_slice(), leaks.trash.as_slice()),
        (["rbd/left".to_owned()].as_slice(), ["rbd/thrown-away".to_owned()].as_slice())
    );
    assert_eq!((leaks.locks.len(), leaks.blocklist.len()), (1, 1), "{leaks}");
    drop(cluster);
    assert!(!directory.exists());
}

#[test]
fn a_client_that_has_an_image_open_is_a_watcher_until_it_ends() {
    if !ceph() {
        return;
    }
    let cluster = CephCluster::start(&CephOptions::default()).unwrap();
    cluster.rbd(&["create", "--size", "64M", "rbd/open"]).unwrap();
    let mut client = cluster.command("rbd");
    client.args(["watch", "rbd/open"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut client = client.spawn().unwrap();
    let watchers = |count: usize| {
        let end = Instant::now() + DEADLINE;
        while cluster.leaks().unwrap().watchers.len() != count {
            assert!(Instant::now() < end, "there are not {count} watchers");
        }
    };
    watchers(1);
    assert!(cluster.processes().contains(&client.id()));
    // It watches until its input ends.
    drop(client.stdin.take());
    client.wait().unwrap();
    watchers(0);
}

#[test]
fn clusters_side_by_side_share_nothing() {
    if !ceph() {
        return;
    }
    let (first, second) = thread::scope(|scope| {
        let start = || CephCluster::start(&CephOptions::default()).unwrap();
        let other = scope.spawn(start);
        (start(), other.join().unwrap())
    });
    assert_ne!(first.fsid(), second.fsid());
    first.rbd(&["create", "--size", "64M", "rbd/only-here"]).unwrap();
    assert!(image_size(&first, "rbd/only-here").is_ok());
    assert!(image_size(&second, "rbd/only-here").is_err());
    drop(first);
    second.rbd(&["create", "--size", "64M", "rbd/still-served"]).unwrap();
}

#[test]
fn three_osds_go_on_without_one_and_the_monitor_comes_back() {
    if !ceph() {
        return;
    }
    let cluster = CephCluster::start(&CephOptions::three_osds()).unwrap();
    cluster.kill(Daemon::Osd(1)).unwrap();
    assert!(matches!(cluster.kill(Daemon::Osd(1)), Err(CephError::Daemon { .. })));
    cluster.rbd(&["create", "--size", "64M", "rbd/written-with-two"]).unwrap();
    cluster.restart(Daemon::Osd(1)).unwrap();
    cluster.stop(Daemon::Osd(2)).unwrap();
    cluster.cont(Daemon::Osd(2)).unwrap();
    cluster.kill(Daemon::Mon).unwrap();
    cluster.restart(Daemon::Mon).unwrap();
    let single = PoolOptions { name: "single".to_owned(), size: Some(1), min_size: Some(1) };
    cluster.create_pool(&single).unwrap();
    cluster.rbd(&["create", "--size", "64M", "single/image"]).unwrap();
    cluster.delete_pool("single").unwrap();
}

#[test]
fn a_vmm_key_reads_and_writes_its_pool_and_can_blocklist_nobody() {
    if !ceph() {
        return;
    }
    let cluster = CephCluster::start(&CephOptions::default()).unwrap();
    cluster.create_pool(&PoolOptions::named("other")).unwrap();
    let key = cluster.create_vmm_key("vmm", "rbd").unwrap();
    let conf = cluster.write_client_conf("vmm", &key).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.arg("-c").arg(&conf).args(["--id", "vmm"]).args(arguments);
        command.output().unwrap()
    };
    assert!(run("rbd", &["create", "--size", "64M", "rbd/own"]).status.success());
    assert!(!run("rbd", &["create", "--size", "64M", "other/foreign"]).status.success());
    let refused = run("ceph", &["osd", "blocklist", "add", "127.0.0.1:0/1"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("EACCES"), "{refused:?}");
}

/// Runs as its own process when the next test says so; otherwise it has nothing to do.
#[test]
fn owner_that_waits_to_be_killed() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let cluster = CephCluster::start(&CephOptions::default()).unwrap();
    eprintln!("directory {}", cluster.directory().display());
    cluster.stop(Daemon::Osd(0)).unwrap();
    loop {
        thread::park();
    }
}

#[test]
fn a_cluster_does_not_outlive_an_owner_that_is_killed() {
    if !ceph() {
        return;
    }
    let (mut owner, directory) = start_owner();
    owner.kill().unwrap();
    assert_eq!(owner.wait().unwrap().signal(), Some(9));
    wait_gone(&directory);
}

#[test]
fn the_next_start_clears_what_is_left_when_the_watcher_was_killed_too() {
    if !ceph() {
        return;
    }
    let (mut owner, directory) = start_owner();
    let watcher = fs::read_to_string(directory.join("watcher.pid")).unwrap();
    assert!(Command::new("kill").args(["-9", watcher.trim()]).status().unwrap().success());
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(directory.exists());
    drop(CephCluster::start(&CephOptions::default()).unwrap());
    wait_gone(&directory);
}

fn start_owner() -> (std::process::Child, PathBuf) {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_waits_to_be_killed", "--nocapture"])
        .env(OWNER, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stderr.take().unwrap()).lines();
    let directory = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("directory ").map(PathBuf::from))
        .expect("the owner tells its directory");
    (owner, directory)
}

fn wait_gone(directory: &Path) {
    let end = Instant::now() + DEADLINE;
    let conf = directory.join("ceph.conf").display().to_string();
    let named = || {
        fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == conf.as_bytes())
        })
    };
    while directory.exists() || named() {
        assert!(Instant::now() < end, "{} is still there", directory.display());
        thread::yield_now();
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_cluster_that_is_left_running_serves_until_it_is_taken_down() {
    if !ceph() {
        return;
    }
    let cluster = CephCluster::start(&CephOptions::default()).unwrap();
    let directory = cluster.leave_running().unwrap();
    let left = LeftRunning::all().into_iter().find(|left| left.directory() == directory).unwrap();
    let mut programs: Vec<_> = left.processes().into_iter().map(|(_, program)| program).collect();
    programs.sort();
    assert_eq!(programs, ["ceph-mon", "ceph-osd"]);
    let listed = Command::new("rbd").arg("-c").arg(left.conf_path()).args(["ls", "rbd"]).status().unwrap();
    assert!(listed.success());
    left.take_down().unwrap();
    wait_gone(&directory);
}
