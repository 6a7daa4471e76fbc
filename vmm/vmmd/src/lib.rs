//! `drover-vmmd`: the process that runs one VM.
//!
//! One process per VM, so that whatever happens to one takes nobody else with it. This crate is wiring: the machine is
//! drover-machine, its disks drover-block, its moves drover-migration, the rules of its life drover-lifecycle. What is
//! here is the way in and the clockwork:
//!
//! ```text
//!                     +-- service: drover.vm.v1 on a unix socket (a runtime of one thread)
//!  node agent --------+-- Watch <-- status <--+
//!                     +-- Console <-- console <--- the guest's serial port
//!                               order         |
//!                                 v           |
//!  watchdog (the lease) -----> vm_thread -----+--- machine (hosted, kvm), lent to a thread that migrates it
//! ```
//!
//! The process ends when its VM has ended and whoever had to know of it knows (see [`lifetime`]).
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the binary owns the clock and the waits")]

mod ahead;
mod balloon;
mod boottime;
mod capabilities;
mod cli;
mod clusters;
mod console;
mod courtesy;
mod devices;
mod disks;
mod files;
mod hold;
mod hosted;
mod hotplug;
mod jail;
mod kvm;
mod lifetime;
mod metrics;
mod order;
mod refused;
mod service;
mod settled;
mod socket;
mod stall;
mod status;
mod suspend;
mod vm_thread;
mod watchdog;

use std::{
    os::unix::net::UnixListener,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use drover_handover::{SOCKET, Table};
use drover_thread_role::Role;
use tokio_stream::wrappers::UnixListenerStream;
use tracing::{error, info, warn};

use crate::{
    cli::Arguments,
    console::{Console, LogFile},
    files::Files,
    hosted::Instruments,
    kvm::{Kvm, KvmDevice, KvmVm},
    lifetime::Lifetime,
    refused::chain,
    service::Service,
    socket::SocketClaim,
    status::Status,
    vm_thread::VmHandle,
};

/// Calls at once on one connection, streams included (B9). An agent has a watch, a few consoles, and a command.
const CALLS_MAX: u32 = 64;

/// What a process does when it is confined and ready to serve: nothing, outside of a test that breaks out of it.
static MISBEHAVIOUR: OnceLock<fn()> = OnceLock::new();

/// As [`main`], of a process that misbehaves once it is confined: the test of the jail is such a program.
pub fn main_that_misbehaves(misbehaviour: fn()) -> ExitCode {
    let _ = MISBEHAVIOUR.set(misbehaviour);
    main()
}

/// The program: reads its command line, serves until its VM has ended.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(arguments.log_level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    end_with_any_panic();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A thread that panics leaves a machine that cannot be trusted, and locks that nobody will release: the process ends
/// and gives everything back, as in any other crash.
fn end_with_any_panic() {
    std::panic::set_hook(Box::new(|panic| {
        error!(%panic, "bug: ending the process");
        // Names in a backtrace are read from the program's file, which a jailed process does not see.
        if jail::sees_files() {
            let backtrace = std::backtrace::Backtrace::capture();
            error!(%backtrace, "this is where");
        }
        std::process::exit(lifetime::EXIT_PANICKED);
    }));
}

#[expect(clippy::print_stdout, reason = "what this host can do is what the node agent asks for")]
fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.capabilities {
        print!("{}", capabilities::report());
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(socket), Some(run_dir)) = (&arguments.socket, &arguments.run_dir) else {
        bail!("--socket and --run-dir are needed");
    };
    // Made before the doors close; its threads come later.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let claim = SocketClaim::take(socket)?;
    // Whoever can call finds this one as well.
    let handover = arguments.jail.then(|| socket::listen_privately(&run_dir.join(SOCKET))).transpose()?;
    let listener = claim.listen()?;
    let table = Table::default();
    let (files, kvm, log, calls) = if arguments.jail {
        let jail::Prepared { log, kvm, faults } = jail::enter(arguments, socket, run_dir)?;
        let calls = ahead::take(arguments, &table)?;
        let kvm = kvm.map_or_else(|error| KvmDevice::Missing(chain(&error)), KvmDevice::Open);
        (Files::handed_over(table, faults), kvm, log, calls)
    } else {
        let log = LogFile::open(run_dir)
            .with_context(|| format!("--run-dir {}: cannot keep console.log there", run_dir.display()))?;
        let calls = ahead::take(arguments, &table)?;
        let kvm = if calls.is_empty() { KvmDevice::WhenNeeded } else { KvmDevice::now_or_when_needed() };
        (Files::default(), kvm, log, calls)
    };
    let status = Arc::new(Status::new(arguments.spawned_at_boottime_ns));
    let publish = Arc::clone(&status);
    let console = Console::new(move |at| publish.publish_first_byte(at));
    let instruments = Instruments::default();
    let busy = kvm.device().filter(|_| !calls.is_empty()).cloned();
    let hypervisor =
        Kvm::new(Arc::clone(&console), instruments.clone(), Arc::clone(&status), (files.clone(), kvm));
    let no_thread = "cannot start a thread";
    let vm = vm_thread::start(hypervisor, status, Arc::clone(&console), (files.clone(), calls))
        .context(no_thread)?;
    // That thread is building a machine: it will want to know this next, and should have the other processor to itself until
    // then.
    if let Some(hypervisor) = busy {
        hypervisor.learn();
    }
    let _log = console.log_to(log).context(no_thread)?;
    if let Some(socket) = handover {
        files.take_on(socket).context(no_thread)?;
    }
    info!(socket = %socket.display(), pid = jail::host_pid(), "serving");
    let served = runtime.block_on(serve(listener, vm, (console, instruments)));
    // The VM has ended, and who looked at one of its disks at that moment may still hold it.
    let open = drover_rbd::wait_until_closed(lifetime::CLOSE_MAX);
    if open > 0 {
        warn!(
            images = open,
            "the process ends with disk images open: the cluster takes note in half a minute"
        );
    }
    served
}

async fn serve(
    listener: UnixListener,
    vm: VmHandle<KvmVm>,
    (console, instruments): (Arc<Console>, Instruments),
) -> anyhow::Result<ExitCode> {
    let lifetime = Lifetime::new().context("cannot catch signals")?;
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    if let Some(misbehave) = MISBEHAVIOUR.get() {
        misbehave();
    }
    // The threads that need more have been started.
    drover_thread_role::enter(Role::Main);
    tokio::spawn(settled::tidy_up(vm.status().subscribe()));
    let over = Arc::new(tokio::sync::Notify::new());
    let closing = Arc::clone(&over);
    let handle = vm.clone();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .add_service(Service::server(vm, console, instruments))
        .serve_with_incoming_shutdown(incoming, async move {
            lifetime.over(handle).await;
            closing.notify_one();
        });
    tokio::select! {
        served = server => served.context("serving failed")?,
        // A peer that does not close its calls must not keep the process.
        () = async { over.notified().await; tokio::time::sleep(lifetime::FAREWELL).await } => {}
    }
    Ok(ExitCode::SUCCESS)
}
