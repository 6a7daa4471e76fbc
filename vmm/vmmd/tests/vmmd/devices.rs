//! Virtio devices beside disks, from the configuration to a machine that runs, is suspended and goes on.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::Instant,
};

use drover_probe_record::Workload;
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::support::{
    DEADLINE, Host, Vmmd, assert_refused, command, config, disk_work, eventually, heartbeat,
};

/// A VM with one of each kind.
pub(crate) fn with_everything(host: &Host) -> wire::VmConfig {
    let socket_path = host.path("vm.vsock").to_string_lossy().into_owned();
    let devices = wire::VirtioDevices {
        rng: true,
        console: true,
        balloon: Some(wire::BalloonDevice::default()),
        vsock: Some(wire::VsockDevice { cid: 42, socket_path }),
    };
    wire::VmConfig { disks: vec![host.disk()], devices: Some(devices), ..config(disk_work()) }
}

#[tokio::test]
async fn a_vm_with_every_device_runs_and_goes_on_after_a_suspend() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("first").await;
    vmmd.boot(with_everything(&host)).await;
    vmmd.acks(10).await;

    // The probe has drivers for none of them: what the host asks for stands, and nobody is kept waiting.
    let target_bytes = 16 << 20;
    let request = wire::SetBalloonRequest { command: command(1), target_bytes };
    let status = vmmd.client.set_balloon(request).await.expect("set").into_inner();
    assert_eq!((status.driver, status.target_bytes, status.actual_bytes), (false, target_bytes, 0));
    let stale = wire::SetBalloonRequest { command: command(7), target_bytes };
    assert_refused(vmmd.client.set_balloon(stale).await, Code::FailedPrecondition, &["owner_epoch"]);
    let reclaim = wire::ReclaimFreeMemoryRequest { command: command(1), limit_ms: 100 };
    let refused = vmmd.client.reclaim_free_memory(reclaim).await;
    assert_refused(refused, Code::FailedPrecondition, &["free"]);
    let mut host_side = UnixStream::connect(host.path("vm.vsock")).expect("vmmd listens");
    host_side.write_all(b"CONNECT 22\n").expect("taken");

    let path = host.path("suspended");
    vmmd.suspends(1, &path).await;
    assert_eq!(host_side.read(&mut [0; 1]).unwrap_or(0), 0, "no connection outlives its machine");

    let mut next = host.spawn("next").await;
    next.create_from(2, with_everything(&host), &path).await.expect("resumed");
    let status = next.client.get_balloon(wire::GetBalloonRequest { wait_ms: 1 }).await.expect("told");
    assert_eq!(status.into_inner().target_bytes, target_bytes, "what was asked for moves with the guest");
    next.start(2).await.expect("started");
    next.acks(10).await;
    assert_eq!(next.console().bad(), 0);
}

/// Memory of the host's that a process has.
fn resident(vmmd: &Vmmd) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", vmmd.pid())).expect("it runs");
    let rss =
        text.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse().ok());
    rss.unwrap_or(0_u64) << 10
}

async fn balloon(
    vmmd: &mut Vmmd,
    what: &str,
    done: impl Fn(&wire::BalloonStatus) -> bool,
) -> wire::BalloonStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = vmmd.client.get_balloon(wire::GetBalloonRequest { wait_ms: 100 }).await;
        let status = status.expect("told").into_inner();
        if done(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what}: {status:?}");
    }
}

async fn set_balloon(vmmd: &mut Vmmd, epoch: u64, target_bytes: u64) {
    let request = wire::SetBalloonRequest { command: command(epoch), target_bytes };
    vmmd.client.set_balloon(request).await.expect("set");
}

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn what_a_guest_gives_away_is_the_hosts_again() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let balloon_device = Some(wire::BalloonDevice::default());
    let devices = wire::VirtioDevices { balloon: balloon_device, ..wire::VirtioDevices::default() };
    let work = Workload { balloon_mib: Some(64), ..heartbeat() };
    let config = wire::VmConfig { memory_bytes: 96 * MIB, devices: Some(devices), ..config(work) };
    let mut vmmd = host.spawn("first").await;
    vmmd.boot(config.clone()).await;
    // A quarter of what the guest has written it reports as free at once.
    let reported = |status: &wire::BalloonStatus| status.driver && status.reported_bytes >= 16 * MIB;
    let status = balloon(&mut vmmd, "a driver that reports free pages", reported).await;
    assert_eq!((status.actual_bytes, status.inflated_bytes), (0, 0));
    let full = resident(&vmmd);
    assert!(full > 48 * MIB, "the guest has written {full} bytes");

    set_balloon(&mut vmmd, 1, 40 * MIB).await;
    let status = balloon(&mut vmmd, "40 MiB in the balloon", |status| status.actual_bytes == 40 * MIB).await;
    assert!(status.inflated_bytes >= 40 * MIB, "{status:?}");
    let after = resident(&vmmd);
    assert!(after + 38 * MIB < full, "{full} bytes before, {after} after");
    // The guest tells what it has, once it is asked anew.
    let told = |status: &wire::BalloonStatus| status.statistics.values().any(|value| *value == 24 * MIB);
    balloon(&mut vmmd, "statistics", told).await;

    // It moves with the guest, and comes back.
    let path = host.path("suspended");
    vmmd.suspends(1, &path).await;
    let mut next = host.spawn("next").await;
    next.create_from(2, config, &path).await.expect("resumed");
    next.start(2).await.expect("started");
    balloon(&mut next, "a balloon that has come along", |status| status.actual_bytes == 40 * MIB).await;
    set_balloon(&mut next, 2, 0).await;
    balloon(&mut next, "an empty balloon", |status| status.actual_bytes == 0).await;
    next.beats(2).await;
    assert_eq!(next.console().bad(), 0);
}

fn exchange(mut stream: &UnixStream, said: &[u8], expect: &[u8]) {
    stream.set_read_timeout(Some(DEADLINE)).expect("a limit");
    stream.write_all(said).expect("taken");
    let mut heard = vec![0; expect.len()];
    stream.read_exact(&mut heard).expect("an answer");
    assert_eq!(heard, expect);
}

/// Takes the guest's connection, which greets, and makes one to it.
pub(crate) async fn talk(socket: &Path, listener: &UnixListener) -> (UnixStream, UnixStream) {
    listener.set_nonblocking(true).expect("a socket");
    let (from_guest, _) = eventually("the guest's connection", || listener.accept().ok()).await;
    from_guest.set_nonblocking(false).expect("a socket");
    exchange(&from_guest, b"", b"hello");
    exchange(&from_guest, b"and you", b"and you");
    let to_guest = UnixStream::connect(socket).expect("vmmd listens");
    exchange(&to_guest, b"CONNECT 22\n", b"OK ");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        (&to_guest).read_exact(&mut byte).expect("a port");
        line.push(byte[0]);
    }
    exchange(&to_guest, b"is anybody there", b"is anybody there");
    (from_guest, to_guest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_and_its_host_connect_to_each_other() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let socket_path = host.path("vm.vsock").to_string_lossy().into_owned();
    let vsock = Some(wire::VsockDevice { cid: 42, socket_path });
    let devices = wire::VirtioDevices { vsock, ..wire::VirtioDevices::default() };
    let work = Workload { vsock_port: Some(1234), ..heartbeat() };
    let config = wire::VmConfig { devices: Some(devices), ..config(work) };
    let listener = UnixListener::bind(host.path("vm.vsock_1234")).expect("a socket");
    let mut vmmd = host.spawn("first").await;
    vmmd.boot(config.clone()).await;
    let before = talk(&host.path("vm.vsock"), &listener).await;
    let path = host.path("suspended");
    vmmd.suspends(1, &path).await;
    for mut stream in [before.0, before.1] {
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "no connection outlives its machine");
    }
    let mut next = host.spawn("next").await;
    next.create_from(2, config, &path).await.expect("resumed");
    next.start(2).await.expect("started");
    talk(&host.path("vm.vsock"), &listener).await;
}

#[tokio::test]
async fn a_vm_without_a_balloon_says_so() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    let refused = vmmd.client.get_balloon(wire::GetBalloonRequest { wait_ms: 0 }).await;
    assert_refused(refused, Code::FailedPrecondition, &["no balloon"]);
    let refused = vmmd.client.get_balloon(wire::GetBalloonRequest { wait_ms: 99_999 }).await;
    assert_refused(refused, Code::InvalidArgument, &["wait_ms"]);
}
