//! What a VM costs: time to the guest's first byte, and memory beside the guest's own.
//!
//! Both are printed; the limits here are wide enough for a busy machine and an unoptimised build. The demo measures an
//! idle one.

use std::time::Duration;

use drover_test_prerequisites::{kvm, pss_beyond_guest_ram};
use drover_wire::vm::v1 as wire;

use crate::support::{Host, config, disk_work, heartbeat};

#[tokio::test]
async fn a_guest_speaks_soon_after_its_process_is_spawned() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut times = Vec::new();
    for n in 0..5 {
        let mut vmmd = host.spawn(&format!("vm{n}")).await;
        vmmd.boot(config(heartbeat())).await;
        let info = vmmd
            .reaches("the first byte", |info| info.boot.is_some_and(|boot| boot.spawn_to_first_byte_us > 0))
            .await;
        let boot = info.boot.expect("always there");
        times.push((boot.spawn_to_first_byte_us, boot.start_to_first_byte_us));
        vmmd.stop(1).await.expect("stopped");
    }
    times.sort_unstable();
    let (spawn, start) = times[2];
    println!("spawn to first byte {spawn} us, start to first byte {start} us (median of 5)");
    assert!(Duration::from_micros(spawn) < Duration::from_millis(500), "{times:?}");
}

#[tokio::test]
async fn a_vm_with_a_disk_costs_a_few_mib() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(wire::VmConfig { disks: vec![host.disk()], memory_bytes: 256 << 20, ..config(disk_work()) })
        .await;
    vmmd.acks(200).await;
    let pss = pss_beyond_guest_ram(vmmd.pid()).expect("readable") >> 10;
    println!("PSS without guest RAM: {pss} KiB");
    // The measure is 8 MiB for the release build; this build's code and its unshared pages count here too.
    assert!(pss < 24 << 10, "{pss} KiB");
}
