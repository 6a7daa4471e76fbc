//! One VM, from Create to its end.

use drover_probe_record::Workload;
use drover_test_prerequisites::kvm;
use drover_wire::vm::v1 as wire;
use nix::sys::signal::Signal;
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::support::{Host, Vmmd, assert_refused, command, command_of, config, eventually, heartbeat};

#[tokio::test]
async fn a_guest_boots_and_its_first_line_is_on_the_console() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    assert_eq!(vmmd.socket_mode(), Some(0o600));
    let created = vmmd.create(1, config(heartbeat())).await.expect("created");
    assert_eq!(
        (created.state(), created.owner_epoch, created.name.as_str()),
        (wire::VmState::Created, 1, "probe")
    );
    assert_eq!(vmmd.console().first_line(), None, "a created VM does not run");
    vmmd.client.start(wire::StartRequest { command: command(1) }).await.expect("started");
    let console = vmmd.says("the boot line", |console| console.first_line().is_some()).await;
    assert!(
        console.first_line().is_some_and(|line| line.starts_with(r#"{"ev":"boot","probe":1,"#)),
        "{console:?}"
    );
    vmmd.beats(3).await;
    let info = vmmd.info().await;
    let boot = info.boot.expect("always there");
    assert!(boot.start_to_first_byte_us > 0 && boot.spawn_to_first_byte_us > boot.start_to_first_byte_us);
    assert_eq!(info.pid, u64::from(vmmd.pid()));
}

#[tokio::test]
async fn a_paused_guest_does_not_beat() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    vmmd.beats(3).await;
    assert_eq!(vmmd.pause(1).await.expect("paused").state(), wire::VmState::Paused);
    // What it had said before the pause is on its way to the log; then nothing more comes.
    let at_rest = eventually("a silent console", || {
        let before = vmmd.console().heartbeats();
        std::thread::sleep(std::time::Duration::from_millis(50));
        (vmmd.console().heartbeats() == before).then_some(before)
    });
    let at_rest = at_rest.await;
    assert_eq!(vmmd.resume(1).await.expect("resumed").state(), wire::VmState::Running);
    vmmd.says("more heartbeats", |console| console.heartbeats() > at_rest + 2).await;
    assert_eq!(vmmd.console().bad(), 0);
}

#[tokio::test]
async fn stop_ends_the_vm_and_then_the_process() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(heartbeat())).await;
    let info = vmmd.stop(1).await.expect("stopped");
    assert_eq!((info.state(), info.stop_reason()), (wire::VmState::Stopped, wire::StopReason::Command));
    assert!(vmmd.exits().await.success());
    assert_eq!(vmmd.socket_mode(), None, "the socket goes with the process");
}

#[tokio::test]
async fn a_guest_that_halts_ends_the_vm_and_the_process_waits_to_be_asked() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    vmmd.boot(config(Workload { halt_after_ms: Some(20), ..heartbeat() })).await;
    let info = vmmd.reaches_state(wire::VmState::Stopped).await;
    assert_eq!(info.stop_reason(), wire::StopReason::GuestShutdown, "{}", info.detail);
    assert!(vmmd.is_running());
    vmmd.says("its last line", |console| console.lives.first().is_some_and(|life| life.halted)).await;
    assert_eq!(vmmd.stop(1).await.expect("acknowledged").stop_reason(), wire::StopReason::GuestShutdown);
    assert!(vmmd.exits().await.success());
}

#[tokio::test]
async fn a_signalled_process_stops_its_vm() {
    if !kvm() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let host = Host::new();
        let mut vmmd = host.spawn("vm").await;
        vmmd.boot(config(heartbeat())).await;
        vmmd.signal(signal);
        assert!(vmmd.exits().await.success(), "{signal}");
        assert_eq!(vmmd.socket_mode(), None);
    }
}

#[tokio::test]
async fn commands_are_idempotent_and_old_epochs_refused() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    let create = |epoch| wire::CreateRequest {
        command: command_of(0x77, epoch),
        config: Some(config(heartbeat())),
        ..wire::CreateRequest::default()
    };
    vmmd.client.create(create(5)).await.expect("created");
    vmmd.client.create(create(5)).await.expect("the same command again");
    assert_refused(
        vmmd.create(5, config(heartbeat())).await,
        Code::FailedPrecondition,
        &["CREATED", "needs EMPTY"],
    );
    assert_refused(
        vmmd.client.create(create(4)).await,
        Code::FailedPrecondition,
        &["epoch 4 is stale", "epoch 5"],
    );
    assert_refused(vmmd.stop(4).await, Code::FailedPrecondition, &["epoch 4 is stale"]);
    assert_refused(vmmd.pause(5).await, Code::FailedPrecondition, &["CREATED", "needs RUNNING"]);
    assert_refused(vmmd.resume(6).await, Code::FailedPrecondition, &["epoch 6 is ahead"]);
    let start = wire::StartRequest { command: command_of(0x78, 5) };
    vmmd.client.start(start.clone()).await.expect("started");
    vmmd.pause(5).await.expect("paused");
    vmmd.client.start(start).await.expect("the same command again");
    assert_eq!(vmmd.info().await.state(), wire::VmState::Paused, "a repeated Start starts nothing");
    vmmd.stop(6).await.expect("a newer owner may stop it");
}

#[tokio::test]
async fn what_cannot_be_created_is_refused_and_changes_nothing() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    let check = async |vmmd: &mut Vmmd, change: fn(&mut wire::VmConfig), code, says: &[&str]| {
        let mut config = config(heartbeat());
        change(&mut config);
        assert_refused(vmmd.create(1, config).await, code, says);
        assert_eq!(vmmd.info().await.state(), wire::VmState::Empty);
    };
    let invalid = Code::InvalidArgument;
    check(&mut vmmd, |vm| vm.vcpus = 0, invalid, &["config.vcpus", "1 to"]).await;
    check(&mut vmmd, |vm| vm.memory_bytes = 1 << 20, invalid, &["config.memory_bytes", "2 MiB"]).await;
    check(&mut vmmd, |vm| vm.memory_bytes += 1, invalid, &["config.memory_bytes", "multiple"]).await;
    check(&mut vmmd, |vm| vm.vm_id = "me".to_owned(), invalid, &["config.vm_id", "UUID"]).await;
    let missing = Code::FailedPrecondition;
    check(
        &mut vmmd,
        |vm| vm.kernel_path = "/no/such".to_owned(),
        missing,
        &["config.kernel_path", "/no/such"],
    )
    .await;
    check(
        &mut vmmd,
        |vm| vm.kernel_path = "/bin/sh".to_owned(),
        invalid,
        &["config.kernel_path", "/bin/sh cannot be loaded"],
    )
    .await;
    vmmd.boot(config(heartbeat())).await;
    vmmd.beats(1).await;
}

#[tokio::test]
async fn watch_and_console_follow_the_vm_to_its_end() {
    if !kvm() {
        return;
    }
    let host = Host::new();
    let mut vmmd = host.spawn("vm").await;
    let changes = vmmd.client.watch(wire::WatchRequest {}).await.expect("watched").into_inner();
    let console = vmmd.client.console(tokio_stream::pending()).await.expect("followed").into_inner();
    vmmd.boot(config(Workload { halt_after_ms: Some(20), ..heartbeat() })).await;

    let infos: Vec<_> = changes.map(|info| info.expect("a status")).collect().await;
    let revisions: Vec<_> = infos.iter().map(|info| info.revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    assert_eq!(infos.first().map(wire::VmInfo::state), Some(wire::VmState::Empty));
    assert_eq!(infos.last().map(wire::VmInfo::state), Some(wire::VmState::Stopped));

    let output: Vec<_> = console.map(|output| output.expect("output")).collect().await;
    assert!(output.iter().all(|output| output.lost == 0));
    let text = output.into_iter().flat_map(|output| output.data).collect::<Vec<u8>>();
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains(r#"{"ev":"boot""#) && text.contains(r#"{"ev":"halt"}"#), "{text}");
}

#[tokio::test]
async fn metrics_name_the_vm_and_its_disk() {
    if !kvm() {
        return;
    }
    let host = Host::with_volume();
    let mut vmmd = host.spawn("vm").await;
    let disk = host.disk();
    let volume = disk.volume_id.clone();
    vmmd.boot(wire::VmConfig { disks: vec![disk], ..config(crate::support::disk_work()) }).await;
    vmmd.acks(5).await;
    let text = vmmd.client.metrics(wire::MetricsRequest {}).await.expect("told").into_inner().text;
    assert!(text.contains("state=\"running\"} 1\n"), "{text}");
    let written = format!(
        "drover_vm_disk_written_bytes_total{{vm=\"{}\",volume=\"{volume}\"}}",
        config(heartbeat()).vm_id
    );
    let line = text.lines().find(|line| line.starts_with(&written)).unwrap_or_else(|| panic!("{text}"));
    assert_ne!(line.rsplit(' ').next(), Some("0"));
}

#[tokio::test]
async fn two_processes_do_not_share_a_socket() {
    let host = Host::new();
    let mut first = host.spawn("vm").await;
    let mut second = Vmmd::launch(&first.run_dir);
    let status = eventually("the second's end", || second.try_wait().expect("our child")).await;
    assert!(!status.success());
    let log = std::fs::read_to_string(first.run_dir.join("vmmd.log")).expect("a log");
    assert!(log.contains("another drover-vmmd serves it"), "{log}");
    assert_eq!(first.info().await.state(), wire::VmState::Empty, "the first is not disturbed");
}

#[tokio::test]
async fn a_dead_process_leaves_a_socket_that_the_next_one_replaces() {
    let host = Host::new();
    let mut first = host.spawn("vm").await;
    first.kill_9();
    assert!(first.socket_mode().is_some());
    let mut second = host.spawn("vm").await;
    assert_eq!(second.info().await.state(), wire::VmState::Empty);
}
