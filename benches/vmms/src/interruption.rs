//! Ctrl-C: what a bench has made is removed all the same.
//!
//! A signal ends a process without dropping anything, and would leave disks of half a gigabyte and running VMMs. So it is taken
//! note of, whoever waits looks, and the bench ends as after any other error.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// As a shell tells of a program that a signal has ended: 128 and SIGINT's number.
const ENDED_BY_SIGNAL: i32 = 130;

/// From now on the first SIGINT, SIGTERM or SIGHUP makes [`ensure_uninterrupted`] fail; the second ends the process at once.
///
/// # Errors
/// If signals cannot be handled.
pub fn heed_interruptions() -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let of = |kind| {
        let _inside = runtime.enter();
        signal(kind).context("cannot handle signals")
    };
    let mut interrupt = of(SignalKind::interrupt())?;
    let mut terminate = of(SignalKind::terminate())?;
    let mut hang_up = of(SignalKind::hangup())?;
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    process::exit(ENDED_BY_SIGNAL);
                }
            }
        });
    });
    Ok(())
}

/// For whoever waits.
///
/// # Errors
/// If the bench is to end.
pub fn ensure_uninterrupted() -> anyhow::Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
