//! What each command does: one call, and how its answer is shown.

mod import;
mod vm;

use drover_client::api::{CreateVolumeRequest, Event, Operation};

use crate::{
    Session,
    arguments::{Command, EventCommand, ImageCommand, NodeCommand, OperationCommand, VolumeCommand},
    output::{
        EventRow, Format, ImageRow, NodeRow, OperationRow, VolumeRow, print_details, print_json_line,
        print_row, print_rows, print_text,
    },
    progress,
};

pub(crate) async fn run(session: &Session, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Node(command) => node(session, command).await,
        Command::Vm(command) => vm::run(session, command).await,
        Command::Volume(command) => volume(session, command).await,
        Command::Image(command) => image(session, command).await,
        Command::Operation(command) => operation(session, command).await,
        Command::Event(command) => event(session, command).await,
        // Answered before there was a session.
        Command::Completion { .. } => Ok(()),
    }
}

async fn node(session: &Session, command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::List => {
            print_rows(session.format, &rows::<_, NodeRow>(session.client.list_nodes().await?))
        }
        NodeCommand::Show { node } => {
            print_details(session.format, &NodeRow::from(session.client.get_node(&node).await?))
        }
    }
}

async fn volume(session: &Session, command: VolumeCommand) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Create { name, size, pool } => {
            let request =
                CreateVolumeRequest { name, pool, size_bytes: size.get(), ..CreateVolumeRequest::default() };
            let volume = session.client.create_volume(request).await?;
            print_row(session.format, &VolumeRow::from(volume))
        }
        VolumeCommand::Import(arguments) => import::volume(session, arguments).await,
        VolumeCommand::List => {
            print_rows(session.format, &rows::<_, VolumeRow>(session.client.list_volumes().await?))
        }
        VolumeCommand::Delete { volume } => Ok(session.client.delete_volume(&volume).await?),
    }
}

async fn image(session: &Session, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(arguments) => import::image(session, arguments).await,
        ImageCommand::List => {
            print_rows(session.format, &rows::<_, ImageRow>(session.client.list_images().await?))
        }
        ImageCommand::Delete { image } => Ok(session.client.delete_image(&image).await?),
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
            let ended = progress::follow(&session.client, &operation, session.wait).await?;
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
        EventCommand::List { subject } => {
            let events = session.client.list_events(0, subject.as_deref()).await?;
            print_rows(session.format, &rows::<_, EventRow>(events))
        }
        EventCommand::Watch { subject, after } => {
            let after = match after {
                Some(sequence) => sequence,
                None => {
                    let events = session.client.list_events(0, None).await?;
                    events.last().map_or(0, |event| event.sequence)
                }
            };
            let mut events = session.client.watch_events(after, subject.as_deref()).await?;
            while let Some(event) = events.message().await? {
                print_event(session.format, event)?;
            }
            Ok(())
        }
    }
}

fn print_event(format: Format, event: Event) -> anyhow::Result<()> {
    let row = EventRow::from(event);
    match format {
        Format::Json => print_json_line(&row),
        Format::Table => print_text(&row.line()),
    }
}

/// Waits for an operation's end, or prints it at once with `--no-wait`. The ended operation, if it was waited for.
async fn settle(session: &Session, operation: Operation) -> anyhow::Result<Option<Operation>> {
    if session.wait.no_wait {
        print_row(session.format, &OperationRow::from(operation))?;
        return Ok(None);
    }
    progress::follow(&session.client, &operation, session.wait).await.map(Some)
}

fn rows<T, R: From<T>>(things: Vec<T>) -> Vec<R> {
    things.into_iter().map(R::from).collect()
}
