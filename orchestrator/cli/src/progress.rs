//! Following long work on a terminal.

use std::time::Duration;

use drover_client::{Client, Waited, api::Operation};
use drover_units::Bytes;
use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments::Wait;

/// The wait was interrupted at the keyboard; the work goes on.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; the operation goes on. Watch it with: drover operation watch {id}")]
pub(crate) struct Interrupted {
    id: String,
}

/// Follows an operation to its end, with a progress bar where standard error is a terminal.
pub(crate) async fn follow(client: &Client, operation: &Operation, wait: Wait) -> anyhow::Result<Operation> {
    let bar = ProgressBar::new(100).with_style(style("{spinner} {prefix} {bar:24} {percent:>3}% {msg}"));
    bar.set_prefix(format!("{} {}", operation.kind, operation.subject_name));
    bar.enable_steady_tick(Duration::from_millis(100));
    let waited = Waited { timeout: wait.timeout };
    let ended = client.wait_operation(&operation.id, waited, |now| {
        bar.set_position(u64::from(now.percent));
        bar.set_message(now.step.clone());
    });
    let outcome = tokio::select! {
        ended = ended => ended.map_err(anyhow::Error::from),
        _ = tokio::signal::ctrl_c() => Err(Interrupted { id: operation.id.clone() }.into()),
    };
    bar.finish_and_clear();
    outcome
}

/// A build was interrupted at the keyboard.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was left behind")]
pub(crate) struct BuildInterrupted;

/// For work whose steps are known and whose end is not.
pub(crate) fn build_spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(style("{spinner} {elapsed} {msg}"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar for an upload of a known size.
pub(crate) fn upload_bar(name: &str, size: Bytes) -> ProgressBar {
    let bar = ProgressBar::new(size.get()).with_style(style(
        "{spinner} {prefix} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
    ));
    bar.set_prefix(format!("import {name}"));
    bar
}

/// A bar for a simulation of so many events.
pub(crate) fn simulation_bar(policy: &str, events: usize) -> ProgressBar {
    let bar = ProgressBar::new(events as u64).with_style(style(
        "{spinner} {prefix} {bar:24} {human_pos}/{human_len} events, {per_sec}, {eta} left",
    ));
    bar.set_prefix(format!("simulate {policy}"));
    bar
}

/// A bar for a file that is read before it is sent.
pub(crate) fn hash_bar(name: &str, size: Bytes) -> ProgressBar {
    let bar = upload_bar(name, size);
    bar.set_prefix(format!("read {name}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant that a test renders")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        upload_bar("x", Bytes::mib(1)).finish_and_clear();
        simulation_bar("x", 1).finish_and_clear();
        style("{spinner} {prefix} {bar:24} {percent:>3}% {msg}");
    }
}
