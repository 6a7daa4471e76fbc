//! In its jail, with the filters in force, a VM does all that it does outside: with what it is handed, and nothing else.

use std::{
    fs::{self, File, Permissions},
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
};

use drover_handover::listener_name;
use drover_probe_record::Workload;
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use tonic::Code;

use crate::{
    devices::{talk, with_everything},
    support::{Host, Vmmd, assert_refused, command, config, heartbeat},
};

/// Hands over what the agent hands over for a machine of this configuration.
fn hand_over_machine(host: &Host, vmmd: &Vmmd, config: &wire::VmConfig) {
    let kernel = File::open(&config.kernel_path).expect("the probe");
    let socket = &config.devices.as_ref().and_then(|devices| devices.vsock.clone()).expect("one").socket_path;
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).expect("a socket");
    let mut files: Vec<(String, OwnedFd)> =
        vec![(config.kernel_path.clone(), kernel.into()), (listener_name(socket), listener.into())];
    if !config.disks.is_empty() {
        files.extend(host.disk_files());
    }
    vmmd.hand_over(&files);
}

fn hand_over_file(vmmd: &Vmmd, path: &Path) {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).open(path).expect("a file");
    vmmd.hand_over(&[(path.to_string_lossy().into_owned(), file.into())]);
}

#[tokio::test]
async fn a_jailed_vm_is_suspended_and_goes_on_in_another_jail() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let config = with_everything(&host);
    let mut vmmd = host.spawn_jailed("first", &["--jail-vsock"]).await;
    hand_over_machine(&host, &vmmd, &config);
    vmmd.boot(config.clone()).await;
    vmmd.acks(10).await;
    let mut host_side = UnixStream::connect(host.path("vm.vsock")).expect("vmmd listens");
    host_side.write_all(b"CONNECT 22\n").expect("taken");

    let path = host.path("suspended");
    assert_refused(vmmd.suspend(1, &path).await, Code::Internal, &["suspended", "handed over"]);
    vmmd.acks(5).await;
    hand_over_file(&vmmd, &path);
    vmmd.suspends(1, &path).await;
    assert_eq!(host_side.read(&mut [0; 1]).unwrap_or(0), 0, "no connection outlives its machine");

    // One that was not started for it cannot, and leaves the file as it was.
    let mut unable = host.spawn_jailed("unable", &["--jail-vsock"]).await;
    hand_over_machine(&host, &unable, &config);
    hand_over_file(&unable, &path);
    let refused = unable.create_from(2, config.clone(), &path).await;
    assert_refused(refused, Code::FailedPrecondition, &["resume_path", "not started to resume"]);
    drop(unable);

    let mut next = host.spawn_jailed("next", &["--jail-vsock", "--jail-resume"]).await;
    hand_over_machine(&host, &next, &config);
    hand_over_file(&next, &path);
    next.create_from(2, config, &path).await.expect("resumed");
    next.start(2).await.expect("started");
    let acked = next.acks(20).await;
    assert_eq!(next.console().bad(), 0);
    let target_bytes = 8 << 20;
    let request = wire::SetBalloonRequest { command: command(2), target_bytes };
    next.client.set_balloon(request).await.expect("set");
    next.stop(2).await.expect("stopped");
    let report = host.verify(acked);
    assert!(report.is_clean() && report.lives.len() == 1, "one guest, in one life: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jailed_guest_and_its_host_connect_to_each_other() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn_jailed("vm", &["--jail-vsock"]).await;
    // The run directory is all that the process sees, and this is a socket that its user may write to.
    let socket = vmmd.run_dir.join("vsock");
    let port = vmmd.run_dir.join("vsock_1234");
    let listener = UnixListener::bind(&port).expect("a socket");
    fs::set_permissions(&port, Permissions::from_mode(0o666)).expect("ours");
    let vsock = Some(wire::VsockDevice { cid: 42, socket_path: socket.to_string_lossy().into_owned() });
    let devices = wire::VirtioDevices { vsock, ..wire::VirtioDevices::default() };
    let work = Workload { vsock_port: Some(1234), ..heartbeat() };
    let config = wire::VmConfig { devices: Some(devices), ..config(work) };
    hand_over_machine(&host, &vmmd, &config);
    vmmd.boot(config).await;
    talk(&socket, &listener).await;
    vmmd.beats(2).await;
}
