//! Who may write an image: fences, moves, and what librbd costs.

use std::time::{Duration, Instant};

use drover_probe_record::ConsoleLog;
use drover_test_ceph_cluster::CephOptions;
use drover_units::Bytes;
use drover_wire::vm::v1 as wire;
use nix::sys::signal::Signal;

use crate::{
    ceph::{Ceph, addresses},
    support::{VOLUME, Vmmd, command, config, heartbeat, metric},
};

/// Hops of a VM between two processes; the long form of the suite does fifty.
fn hops() -> u64 {
    if std::env::var_os("DROVER_CEPH_LONG").is_some() { 50 } else { 5 }
}

/// A stopped process is fenced while it has writes under way, the VM goes on elsewhere, and the process wakes up.
#[expect(clippy::print_stdout, reason = "the figure that this is measured for")]
async fn fence_a_stopped_owner(options: &CephOptions, label: &str) {
    let Some(ceph) = Ceph::with_volume(options) else { return };
    let mut old = ceph.spawn("old").await;
    old.boot(ceph.config()).await;
    old.acks(50).await;
    let registered = addresses(&old.info().await);
    assert!(!registered.is_empty(), "its addresses are told");
    old.signal(Signal::SIGSTOP);
    let mut new = ceph.spawn("new").await;

    let decided = Instant::now();
    let proof = ceph.fence(2, &registered);
    let fenced = decided.elapsed();
    assert!(registered.iter().all(|address| proof.entries.contains(address)), "{proof:?}");
    new.boot_at(2, ceph.config()).await;
    let booted = decided.elapsed();
    while metric(&mut new, "drover_vm_disk_writes_total").await == 0 {
        assert!(decided.elapsed() < Duration::from_secs(30), "the new owner never writes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let written = decided.elapsed();
    println!(
        "fencing, {label}: evidence after {fenced:.1?}, VM built and started after {booted:.1?}, its first completed \
         write after {written:.1?} (the guest reads its whole disk before it)"
    );
    let before = new.acks(50).await;

    old.signal(Signal::SIGCONT);
    // Not told to: it learns from its own writes.
    let ended = old.reaches_state(wire::VmState::Stopped).await;
    assert_eq!(ended.stop_reason(), wire::StopReason::Fenced, "{}", ended.detail);
    assert!(old.exits().await.success());
    let console = old.console();
    assert_eq!((console.bad(), console.lives[0].error_lines), (0, 0), "never an I/O error to the guest");

    new.acks(50).await;
    new.stop(2).await.expect("stopped");
    let report = ceph.verify(new.console().acked_max());
    assert!(report.is_clean(), "{report}");
    // A stray write of the old life would be one of these, or a write of the new life that is lost.
    assert_eq!(report.double_writes.count, 0, "{report}");
    assert!(new.console().acked_max() > before);
    new.exits().await;
    ceph.assert_clean(&proof.entries);
}

#[tokio::test]
async fn a_stopped_owner_that_is_fenced_writes_nothing_and_ends_by_itself() {
    fence_a_stopped_owner(&CephOptions::default(), "fast monitor").await;
}

#[tokio::test]
async fn a_fence_works_with_stock_monitor_settings() {
    fence_a_stopped_owner(&CephOptions::default().stock_paxos(), "stock monitor").await;
}

#[tokio::test]
async fn a_client_blocklisted_under_load_stops_its_vm_and_the_guest_sees_no_error() {
    let Some(ceph) = Ceph::with_volume(&CephOptions::default()) else { return };
    let mut vmmd = ceph.spawn("vm").await;
    vmmd.boot(ceph.config()).await;
    vmmd.acks(50).await;
    let own = addresses(&vmmd.info().await);
    for address in &own {
        ceph.admin.cluster().blocklist_add(*address, Duration::from_secs(3600)).expect("blocklisted");
    }
    let ended = vmmd.reaches_state(wire::VmState::Stopped).await;
    assert_eq!(ended.stop_reason(), wire::StopReason::Fenced, "{}", ended.detail);
    assert!(vmmd.exits().await.success());
    let console = vmmd.console();
    assert_eq!((console.bad(), console.lives[0].error_lines), (0, 0), "never an I/O error to the guest");

    // The next owner is another client, and goes on.
    let proof = ceph.fence(2, &own);
    let mut next = ceph.spawn("next").await;
    next.boot_at(2, ceph.config()).await;
    next.acks(50).await;
    next.stop(2).await.expect("stopped");
    let report = ceph.verify(next.console().acked_max().max(console.acked_max()));
    assert!(report.is_clean(), "{report}");
    next.exits().await;
    ceph.assert_clean(&proof.entries);
}

#[tokio::test]
async fn an_image_in_use_is_refused_by_the_name_of_its_owner() {
    let Some(ceph) = Ceph::with_volume(&CephOptions::default()) else { return };
    let (mut holder, mut other) = (ceph.spawn("holder").await, ceph.spawn("other").await);
    holder.create(1, ceph.config()).await.expect("created");
    let refused = other.create(2, ceph.config()).await.expect_err("refused");
    assert!(refused.message().contains("in use by VM"), "{refused}");
    assert!(!refused.message().contains("key"), "{refused}");
    holder.stop(1).await.expect("stopped");
    other.create(2, ceph.config()).await.expect("it is free now");
    other.stop(2).await.expect("stopped");
    holder.exits().await;
    other.exits().await;
    ceph.assert_clean(&[]);
}

/// How long the locks took to change hands at each hop, as both ends log it.
fn hand_over(logs: &[std::path::PathBuf]) -> Vec<Duration> {
    let text: String = logs.iter().map(|log| std::fs::read_to_string(log).unwrap_or_default()).collect();
    let parts = |what: &str| -> Vec<u64> {
        let lines = text.lines().filter(|line| line.contains(what));
        lines
            .filter_map(|line| line.split("took_us=").nth(1)?.split_whitespace().next()?.parse().ok())
            .collect()
    };
    let (released, acquired) = (parts("volumes released"), parts("volumes acquired"));
    let sum = |(released, acquired): (&u64, &u64)| Duration::from_micros(released + acquired);
    released.iter().zip(&acquired).map(sum).collect()
}

#[tokio::test]
async fn a_busy_vm_moves_back_and_forth_and_nothing_is_lost() {
    let Some(ceph) = Ceph::with_volume(&CephOptions::default()) else { return };
    let mut here = ceph.spawn("hop-0").await;
    here.boot(ceph.config()).await;
    here.acks(20).await;
    let (mut consoles, mut logs) = (Vec::new(), vec![here.run_dir.join("vmmd.log")]);
    let mut blackouts = Vec::new();
    for hop in 1..=hops() {
        let mut there = ceph.spawn(&format!("hop-{hop}")).await;
        logs.push(there.run_dir.join("vmmd.log"));
        let migration = drover_ids::MigrationId::from_u128(hop.into()).to_string();
        let incoming = wire::MigrateInRequest {
            command: command(hop + 1),
            migration_id: migration.clone(),
            config: Some(ceph.config()),
            listen_address: "127.0.0.1:0".to_owned(),
            lease: None,
        };
        let address = there.client.migrate_in(incoming).await.expect("listening").into_inner().address;
        let outgoing = wire::MigrateOutRequest {
            command: command(hop),
            migration_id: migration,
            target_address: address,
            target_epoch: hop + 1,
            downtime_target_ms: 0,
        };
        here.client.migrate_out(outgoing).await.expect("admitted");
        let moved = here.reaches_state(wire::VmState::Migrated).await;
        blackouts.push(moved.migration.expect("told").downtime_us);
        there.reaches_state(wire::VmState::Running).await;
        there.acks(5).await;
        here.stop(hop).await.expect("acknowledged");
        consoles.push(std::fs::read_to_string(here.run_dir.join("console.log")).expect("kept"));
        here.exits().await;
        here = there;
    }
    let epoch = hops() + 1;
    here.stop(epoch).await.expect("stopped");
    consoles.push(std::fs::read_to_string(here.run_dir.join("console.log")).expect("kept"));
    here.exits().await;
    let both = ConsoleLog::parse_all(consoles.iter().map(String::as_str));
    assert_eq!(
        (both.lives.len(), both.bad()),
        (1, 0),
        "{:?}",
        both.lives.iter().flat_map(|life| &life.errors).collect::<Vec<_>>()
    );
    let report = ceph.verify(both.acked_max().max(here.console().acked_max()));
    assert!(report.is_clean() && report.lives.len() == 1, "{report}");
    let mut locks = hand_over(&logs);
    locks.sort();
    blackouts.sort_unstable();
    println!(
        "{} moves under load: lock hand-over median {:.1?}, longest {:.1?}; blackout by the source median {} us",
        hops(),
        locks[locks.len() / 2],
        locks[locks.len() - 1],
        blackouts[blackouts.len() / 2]
    );
    ceph.assert_clean(&[]);
}

#[tokio::test]
async fn librbd_is_paid_for_once_however_many_volumes_there_are() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let volumes: Vec<u128> = (0..4).map(|n| VOLUME + n).collect();
    volumes.iter().for_each(|volume| ceph.create(*volume, Bytes::mib(4)));
    let mut cost = Vec::new();
    for count in [0, 1, 4] {
        let disks = volumes[..count].iter().map(|volume| ceph.disk(*volume)).collect();
        let mut vmmd = ceph.spawn(&format!("with-{count}")).await;
        let epoch = count as u64 + 1;
        vmmd.boot_at(epoch, wire::VmConfig { disks, ..config(heartbeat()) }).await;
        vmmd.beats(20).await;
        cost.push((count, threads(&vmmd), private_kib(&vmmd)));
        vmmd.stop(epoch).await.expect("stopped");
        vmmd.exits().await;
    }
    println!("vmmd by volumes in Ceph (volumes, threads, private KiB): {cost:?}");
    let [(_, none, _), (_, one, _), (_, four, _)] = cost[..] else { panic!("three measurements") };
    // A volume has a queue's worker at most; librbd's threads come once.
    assert!(one > none && four - one <= 3, "{cost:?}");
    ceph.assert_clean(&[]);
}

fn threads(vmmd: &Vmmd) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", vmmd.pid())).expect("it runs").count()
}

fn private_kib(vmmd: &Vmmd) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vmmd.pid())).expect("it runs");
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}
