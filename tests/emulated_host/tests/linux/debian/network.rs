//! Packets between Linux's network driver and its host.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use drover_test_emulated_host::EmulatedHost;
use drover_test_prerequisites::{is_installed, skipped};
use drover_wire::vm::v1 as wire;
use serde::Deserialize;

use super::{
    image::{SHELL, wanted},
    session::{self, Session},
};
use crate::hosts::Progress;

const DEADLINE: Duration = Duration::from_secs(120);
const MAC: &str = "52:54:00:00:07:02";
/// Longer than the usual one: the guest has to be told.
const MTU: u32 = 4000;
/// What iperf sends in each direction.
const BYTES: u64 = 24 << 20;

/// The part of iperf3's report (`--json`) that says what has arrived.
#[derive(Deserialize)]
struct Received {
    bytes: u64,
    bits_per_second: f64,
}

/// Sends through two connections in one direction; how much has arrived.
async fn iperf(debian: &mut Session, more: &str) -> anyhow::Result<Received> {
    let each = BYTES / 2;
    let client = "iperf3 --json --client 192.168.7.1 --parallel 2";
    debian.run(&format!("{client} --bytes {each} {more} >/tmp/iperf")).await?;
    // The report is long, and the console is slow.
    let cut = r#"sed -n '/"sum_received"/,/}/p' /tmp/iperf | tr -d ' \t\n'"#;
    let said = debian.run(cut).await?;
    let sum = said.strip_prefix(r#""sum_received":"#).unwrap_or(&said).trim_end_matches(',');
    serde_json::from_str(sum).with_context(|| format!("iperf3 says {said}"))
}

/// Gives the host's end of the tap, which is there once the VM has been made, its address.
fn set_up(host: &Arc<EmulatedHost>) -> anyhow::Result<()> {
    let line = "ip link set t0 mtu 4000 up && ip address add 192.168.7.1/24 dev t0";
    host.shell(line, DEADLINE).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn iperf_reaches_the_host_and_back_through_a_tap() -> anyhow::Result<()> {
    if !wanted() {
        return Ok(());
    }
    if !is_installed("iperf3") {
        skipped("iperf3 is not installed: `cargo xtask test --linux`, or the package iperf3");
        return Ok(());
    }
    let progress = Progress::begin();
    let host = session::host_with(&progress, vec![("iperf3".to_owned(), "/usr/bin/iperf3".into())])?;
    let mut guest = session::guest(&[], SHELL);
    let nic =
        wire::Nic { mac: MAC.into(), tap: "t0".into(), queue_pairs: 2, mtu: MTU, ..wire::Nic::default() };
    guest.nics = vec![nic];
    let mut debian = Session::boot(&host, &guest).await?;
    set_up(&host)?;
    let mut server = host.spawn("/programs/iperf3", &["--server", "--forceflush"])?;
    server.wait_for("listening", DEADLINE)?;
    debian.at_shell().await?;
    progress.say("a shell is there");
    debian.run("cd /sys/class/net && cd e*").await?;
    assert_eq!(debian.run("cat address").await?, MAC);
    assert_eq!(debian.run("cat mtu").await?, MTU.to_string());
    assert_eq!(debian.run("ls -d queues/rx-* | wc -l").await?, "2");
    debian
        .run("card=$(basename $(pwd -P)); ip link set $card up; ip address add 192.168.7.2/24 dev $card")
        .await?;
    host.shell("ping -c 3 -s 8000 192.168.7.2", DEADLINE)?;
    progress.say("packets of 8000 bytes come back");
    for (direction, more) in [("to the host", ""), ("to the guest", "--reverse")] {
        let received = iperf(&mut debian, more).await?;
        anyhow::ensure!(received.bytes >= BYTES, "{} bytes arrived of {BYTES}", received.bytes);
        let rate = received.bits_per_second / 1e6;
        progress.say(&format!("{} bytes {direction}, {rate:.0} Mbit/s", received.bytes));
    }
    // Both pairs of queues have been used.
    let used = debian
        .run("grep -E 'virtio[0-9]+-(input|output)' /proc/interrupts | awk '$2+$3 > 0' | wc -l")
        .await?;
    anyhow::ensure!(used.parse::<u32>()? >= 3, "packets went through {used} queues");
    debian.vmmd.press_power_button().await?;
    debian.switched_off().await?;
    progress.say("the power button ended the VM");
    Ok(())
}
