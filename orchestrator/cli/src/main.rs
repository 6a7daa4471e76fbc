//! `drover`: the command line of a Drover cluster.
//!
//! Results go to standard output, as tables for people or with `-o json` for scripts; progress and errors go to standard error.
//! Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 not found, 4 the server cannot be reached, 130 interrupted.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod arguments;
mod commands;
mod output;
mod progress;
mod terminal;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use drover_client::{Client, Error, Options};

use arguments::{Arguments, Command, ImageCommand, PlacementCommand};
use progress::{BuildInterrupted, Interrupted};

/// Everything a command needs.
struct Session {
    client: Client,
    format: output::Format,
    wait: arguments::Wait,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Completion { shell } = arguments.command {
        clap_complete::generate(shell, &mut Arguments::command(), "drover", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            exit_code(&error)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Command::Placement(PlacementCommand::Simulate(simulation)) = &arguments.command {
        return commands::simulate::run(simulation, arguments.output);
    }
    let arguments = match arguments {
        Arguments { command: Command::Image(ImageCommand::Build(command)), output, .. } => {
            return commands::guest::run_build(command, output);
        }
        arguments => arguments,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    let outcome = runtime.block_on(async {
        let client = Client::connect(&arguments.server, Options::default()).await?;
        let session = Session { client, format: arguments.output, wait: arguments.wait };
        commands::run(&session, arguments.command).await
    });
    // A thread that waits for the keyboard cannot be woken: leave it to the end of the process.
    runtime.shutdown_background();
    outcome
}

fn report(error: &anyhow::Error) {
    if is_broken_pipe(error) {
        return;
    }
    eprintln!("error: {}", output::printable(&format!("{error:#}")));
    match error.downcast_ref() {
        Some(Error::OperationFailed(operation)) => output::print_rejections(operation),
        Some(Error::WaitTimeout { id, .. }) => {
            eprintln!("Watch it with:  drover operation watch {id}");
            eprintln!("Cancel it with: drover operation cancel {id}");
        }
        Some(Error::Unreachable { .. }) => {
            eprintln!("Is the control plane running? Name it with --server or DROVER_SERVER.");
        }
        _ => {}
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() || error.is::<BuildInterrupted>() {
        return ExitCode::from(130);
    }
    match error.downcast_ref::<Error>() {
        Some(Error::InvalidServer { .. } | Error::InvalidArgument { .. }) => ExitCode::from(2),
        Some(Error::NotFound { .. }) => ExitCode::from(3),
        Some(Error::Unreachable { .. }) => ExitCode::from(4),
        // `drover vm list | head` is no failure.
        _ if is_broken_pipe(error) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
