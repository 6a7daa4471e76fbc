//! What can be wrong with a trace.

use std::io;

/// A trace could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source failed.
    #[error("cannot read line {line} of the trace")]
    Read {
        /// The line that was to be read, from 1.
        line: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The target failed.
    #[error("cannot write the trace")]
    Write(#[source] io::Error),
    /// A line cannot be meant.
    #[error("line {line} of the trace: {problem}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The trace as a whole cannot be meant.
    #[error("the trace: {0}")]
    Whole(Problem),
    /// The database refused.
    #[cfg(feature = "sqlite")]
    #[error("cannot read the trace's database: {what}")]
    Database {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
}

/// What is wrong, and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Too long to be a row.
    #[error("longer than {max} bytes: this is no trace")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// Not text.
    #[error("not UTF-8")]
    NotText,
    /// The titles of the columns lack one that is needed.
    #[error("no column '{column}'; the titles should be: {expected}")]
    NoColumn {
        /// The missing one.
        column: &'static str,
        /// All of them.
        expected: &'static str,
    },
    /// Too few cells.
    #[error("no value for '{column}'")]
    NoValue {
        /// Whose value.
        column: &'static str,
    },
    /// A value that the column cannot have.
    #[error("'{value}' is no valid {column}: {expected}")]
    BadValue {
        /// The column.
        column: &'static str,
        /// What was there, shortened.
        value: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// A VM is created while it exists.
    #[error("VM {vm} is created a second time")]
    CreatedTwice {
        /// Its identifier in the file.
        vm: String,
    },
    /// A VM of a type that no row describes for the chosen machine.
    #[error("VM type {vm_type} is not offered on machine {machine}")]
    UnknownType {
        /// The type.
        vm_type: u32,
        /// The machine.
        machine: u32,
    },
    /// Too much of it.
    #[error("more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Nothing in it.
    #[error("it has no requests")]
    Empty,
}

impl Error {
    pub(crate) fn at(line: u64) -> impl Fn(Problem) -> Self {
        move |problem| Self::Line { line, problem }
    }
}
