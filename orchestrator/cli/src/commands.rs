//! What each command does: one call, and how its answer is shown.

mod constraints;
pub(crate) mod guest;
mod image;
mod import;
mod placement;
pub(crate) mod simulate;
mod storage;
mod vm;

use std::time::Duration;

use drover_client::{
    Error,
    api::{Event, Operation},
};

use crate::{
    Session,
    arguments::{Command, EventCommand, OperationCommand, PlacementCommand},
    output::{
        EventRow, Format, OperationRow, print_details, print_json_line, print_row, print_rows, print_text,
        printable,
    },
    progress,
};

/// Before a broken watch is opened again.
const REWATCH_PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn run(session: &Session, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Node(command) => placement::node(session, command).await,
        Command::Rack(command) => placement::rack(session, command).await,
        Command::Project(command) => placement::project(session, command).await,
        Command::Rebalance(command) => placement::rebalance(session, command).await,
        Command::Vm(command) => vm::run(session, command).await,
        Command::Pool(command) => storage::pool(session, command).await,
        Command::Volume(command) => storage::volume(session, command).await,
        Command::Snapshot(command) => storage::snapshot(session, command).await,
        Command::Image(command) => image::run(session, command).await,
        Command::Operation(command) => operation(session, command).await,
        Command::Event(command) => event(session, command).await,
        // Answered before there was a session.
        Command::Placement(PlacementCommand::Simulate(_)) | Command::Completion { .. } => Ok(()),
        Command::Placement(command) => placement::placement(session, command).await,
    }
}

async fn operation(session: &Session, command: OperationCommand) -> anyhow::Result<()> {
    match command {
        OperationCommand::List { subject } => {
            let operations = session.client.list_operations(subject.as_deref()).await?;
            print_rows(session.format, &rows::<_, OperationRow>(operations))
        }
        OperationCommand::Show { operation } => print_details(
            session.format,
            &OperationRow::from(session.client.get_operation(&operation).await?),
        ),
        OperationCommand::Watch { operation } => {
            let operation = session.client.get_operation(&operation).await?;
            let ended = follow(session, &operation).await?;
            print_details(session.format, &OperationRow::from(ended))
        }
        OperationCommand::Cancel { operation } => {
            let operation = session.client.cancel_operation(&operation).await?;
            print_row(session.format, &OperationRow::from(operation))
        }
    }
}

async fn event(session: &Session, command: EventCommand) -> anyhow::Result<()> {
    match command {
        EventCommand::List { subject, after } => {
            let events = session.client.list_events(after, subject.as_deref()).await?;
            print_rows(session.format, &rows::<_, EventRow>(events))
        }
        EventCommand::Watch { subject, after } => {
            let mut last = match after {
                Some(sequence) => sequence,
                None => {
                    let events = session.client.list_events(0, None).await?;
                    events.last().map_or(0, |event| event.sequence)
                }
            };
            loop {
                // Opening a watch retries, and fails when the control plane stays away. One that breaks, or that a
                // control plane ends as it restarts, goes on where it was.
                let mut events = session.client.watch_events(last, subject.as_deref()).await?;
                while let Ok(Some(event)) = events.message().await {
                    last = event.sequence;
                    print_event(session.format, event)?;
                }
                tokio::time::sleep(REWATCH_PAUSE).await;
            }
        }
    }
}

fn print_event(format: Format, event: Event) -> anyhow::Result<()> {
    let row = EventRow::from(event);
    match format {
        Format::Json => print_json_line(&row),
        Format::Table => print_text(&printable(&row.line())),
    }
}

/// Waits for an operation's end, or prints it at once with `--no-wait`. The ended operation, if it was waited for.
async fn settle(session: &Session, operation: Operation) -> anyhow::Result<Option<Operation>> {
    if session.wait.no_wait {
        print_row(session.format, &OperationRow::from(operation))?;
        return Ok(None);
    }
    follow(session, &operation).await.map(Some)
}

/// Waits for an operation's end. One that fails is printed for scripts, besides being an error.
async fn follow(session: &Session, operation: &Operation) -> anyhow::Result<Operation> {
    let outcome = progress::follow(&session.client, operation, session.wait).await;
    if let (Format::Json, Err(error)) = (session.format, &outcome)
        && let Some(Error::OperationFailed(ended) | Error::OperationCancelled(ended)) = error.downcast_ref()
    {
        print_row(session.format, &OperationRow::from((**ended).clone()))?;
    }
    outcome
}

fn rows<T, R: From<T>>(things: Vec<T>) -> Vec<R> {
    things.into_iter().map(R::from).collect()
}
