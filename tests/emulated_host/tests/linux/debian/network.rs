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
const BYTES: u64 = 12 << 20;
/// A file that has to arrive as it was, in each direction.
const FILE_MIB: u32 = 2;

/// The part of iperf3's report (`--json`) that says what has arrived.
#[derive(Deserialize)]
struct Received {
    bytes: u64,
    bits_per_second: f64,
}

/// Sends through two connections in one direction; how much had arrived when all was sent.
async fn iperf(debian: &mut Session, more: &str) -> anyhow::Result<Received> {
    let client = "iperf3 --json --client 192.168.7.1 --parallel 2";
    debian.run(&format!("{client} --bytes {BYTES} {more} >/tmp/iperf")).await?;
    // The report is long, and the console is slow.
    let cut = r#"sed -n '/"sum_received"/,/}/p' /tmp/iperf | tr -d ' \t\n'"#;
    let said = debian.run(cut).await?;
    let sum = said.strip_prefix(r#""sum_received":"#).unwrap_or(&said).trim_end_matches(',');
    serde_json::from_str(sum).with_context(|| format!("iperf3 says {said}"))
}

/// Sends a file in both directions and compares what has arrived. Segments, checksums and merged buffers are all in it.
async fn send_files(host: &Arc<EmulatedHost>, debian: &mut Session) -> anyhow::Result<()> {
    let make = format!("dd if=/dev/urandom of=/tmp/sent bs=1M count={FILE_MIB} 2>/dev/null");
    let sum = |file: &str| format!("sha256sum /tmp/{file} | cut -d' ' -f1");
    debian.run(&make).await?;
    host.shell(&make, DEADLINE)?;
    let serve = "exec nc -l -p 5202 </tmp/sent >/tmp/got";
    let server = host.spawn("/bin/sh", &["-c", serve])?;
    host.shell("until netstat -ltn | grep -q ':5202 '; do sleep 0.1; done", DEADLINE)?;
    // Both at once, through one connection.
    let both = "exec 3<>/dev/tcp/192.168.7.1/5202; cat /tmp/sent >&3 & head -c $((FILE_MIB << 20)) <&3 >/tmp/got; wait";
    debian.run(&format!("bash -c '{}'", both.replace("FILE_MIB", &FILE_MIB.to_string()))).await?;
    server.finish(DEADLINE)?;
    for (way, sent, got) in [
        ("to the host", debian.run(&sum("sent")).await?, host.shell(&sum("got"), DEADLINE)?),
        ("to the guest", host.shell(&sum("sent"), DEADLINE)?, debian.run(&sum("got")).await?),
    ] {
        anyhow::ensure!(sent.trim() == got.trim(), "{way}, '{}' has become '{}'", sent.trim(), got.trim());
    }
    Ok(())
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
    send_files(&host, &mut debian).await?;
    progress.say("files arrive as they were");
    for (direction, more) in [("to the host", ""), ("to the guest", "--reverse")] {
        let received = iperf(&mut debian, more).await?;
        // What is on its way at the end is not counted.
        anyhow::ensure!(received.bytes >= BYTES / 2, "{} bytes arrived of {BYTES}", received.bytes);
        let rate = received.bits_per_second / 1e6;
        progress.say(&format!("{} bytes {direction}, {rate:.0} Mbit/s", received.bytes));
    }
    // Both pairs of queues have been used.
    let used = debian
        .run("grep -E 'virtio[0-9]+-(input|output)' /proc/interrupts | awk '$2+$3 > 0' | wc -l")
        .await?;
    anyhow::ensure!(used.parse::<u32>()? >= 3, "packets went through {used} queues");
    debian.power_off_by_button().await?;
    progress.say("the power button ended the VM");
    Ok(())
}
