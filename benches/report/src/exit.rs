#![allow(clippy::print_stderr, reason = "where a bench says what went wrong")]

use std::{fmt, process::ExitCode};

/// How a bench's process ends. What went wrong goes to stderr, with its causes where the error writes them (`{:#}`).
pub fn exit_code<E: fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
