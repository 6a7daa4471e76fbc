//! Volumes: what is acknowledged is on them, and they have one owner.

use std::{fs, time::Duration};

use drover_dir_volume::{fence, read_record};
use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::support::{DEADLINE, Host, VM, VOLUME, assert_refused, command_of, config, disk_work};

fn with_disk(host: &Host) -> wire::VmConfig {
    wire::VmConfig { disks: vec![host.disk()], ..config(disk_work()) }
}

#[tokio::test]
async fn every_acknowledged_write_is_on_the_volume_after_kill_9() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(with_disk(&host)).await;
    vmmd.acks(50).await;
    vmmd.kill_9();
    let console = vmmd.console();
    let report = host.verify(console.acked_max());
    assert!(report.is_clean() && report.max_seq >= 50, "{report}");
    assert_eq!((console.bad(), console.lives[0].error_lines), (0, 0), "{console:?}");

    // The next owner finds all of it and goes on.
    let mut next = host.spawn("next").await;
    next.boot_at(2, with_disk(&host)).await;
    next.acks(1).await;
    let recovered = next.console().lives[0].recovered.expect("it reads before it writes");
    assert_eq!(recovered.bad, 0);
    assert!(recovered.next_seq > console.acked_max(), "{recovered:?} after {}", console.acked_max());
    next.stop(2).await.expect("stopped");
    let report = host.verify(next.console().acked_max());
    assert!(report.is_clean() && report.lives.len() == 2, "{report}");
}

#[tokio::test]
async fn a_volume_in_use_is_refused_by_the_name_of_its_owner() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let (mut holder, mut other) = (host.spawn("holder").await, host.spawn("other").await);
    holder.create(1, with_disk(&host)).await.expect("created");
    let mut rival = with_disk(&host);
    rival.vm_id = VmId::from_u128(0xbad).to_string();
    let owner =
        [format!("VM {}", VmId::from_u128(VM)), "epoch 1".to_owned(), format!("pid {}", holder.pid())];
    let says: Vec<&str> = owner.iter().map(String::as_str).chain(["config.disks", "in use"]).collect();
    assert_refused(other.create(1, rival.clone()).await, Code::FailedPrecondition, &says);
    assert_eq!(other.info().await.state(), wire::VmState::Empty);

    // A kill -9 gives the volume back; another VM may still not have it, a newer epoch of the same one may.
    holder.kill_9();
    let says = ["attached to VM", &owner[0][3..]];
    assert_refused(other.create(2, rival).await, Code::FailedPrecondition, &says);
    other.create(2, with_disk(&host)).await.expect("the volume is free for its VM");
}

#[tokio::test]
async fn a_fenced_epoch_never_gets_the_volume_again() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let volume = VolumeId::from_u128(VOLUME);
    fence(&host.pool, volume, VmId::from_u128(VM), OwnerEpoch::new(3)).expect("fenced");
    let mut vmmd = host.spawn("vm").await;
    assert_refused(
        vmmd.create(2, with_disk(&host)).await,
        Code::FailedPrecondition,
        &["config.disks", "epoch 2 is too old", "at least 3"],
    );
    vmmd.create(3, with_disk(&host)).await.expect("the new owner may");
    let record = read_record(&host.pool.sidecar_path(volume)).expect("readable").expect("there");
    assert_eq!(record.last_owner().map(|owner| (owner.epoch.get(), owner.pid)), Some((3, vmmd.pid())));
}

#[tokio::test]
async fn stop_gives_the_volume_up_in_good_order() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(with_disk(&host)).await;
    vmmd.acks(20).await;
    vmmd.stop(1).await.expect("stopped");
    // The process may still be there: the volume is free all the same.
    fence(&host.pool, VolumeId::from_u128(VOLUME), VmId::from_u128(VM), OwnerEpoch::new(2)).expect("free");
    let report = host.verify(vmmd.console().acked_max());
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_refused_by_its_path() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut config = with_disk(&host);
    fs::remove_file(&config.disks[0].path).expect("removed");
    let mut vmmd = host.spawn("vm").await;
    let says = ["config.disks[0].path", config.disks[0].path.as_str()];
    assert_refused(vmmd.create(1, config.clone()).await, Code::FailedPrecondition, &says);
    fs::write(&config.disks[0].path, [0; 1000]).expect("written");
    let says = ["config.disks[0].path", "multiple of 512"];
    assert_refused(vmmd.create(1, config.clone()).await, Code::FailedPrecondition, &says);
    config.disks.push(config.disks[0].clone());
    let says = ["config.disks[1].volume_id", "at most once"];
    assert_refused(vmmd.create(1, config).await, Code::InvalidArgument, &says);
}

#[tokio::test]
async fn a_hold_whose_caller_goes_away_ends() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(with_disk(&host)).await;
    vmmd.acks(50).await;
    let hold = |operation| wire::HoldQueuesRequest { command: command_of(operation, 1), limit_ms: 10 };
    // Somewhere in the middle of being taken.
    for n in 0..100 {
        let mut client = vmmd.client.clone();
        let patience = Duration::from_micros(100 * (n % 50));
        let call =
            tokio::spawn(async move { client.hold_queues(hold(0x5000 + u128::from(n))).await.map(drop) });
        tokio::time::sleep(patience).await;
        call.abort();
        // Longer than a hold.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = std::time::Instant::now();
    while let Err(refused) = vmmd.client.hold_queues(hold(0x6000)).await {
        assert!(began.elapsed() < DEADLINE, "{refused}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    vmmd.acks(50).await;
    vmmd.stop(1).await.expect("stopped");
}
