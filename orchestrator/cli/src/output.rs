//! Results: tables for people, JSON for scripts.
//!
//! The field names of the JSON form are those of the rows in [`rows`] and only grow.

mod placement;
mod rows;

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use drover_client::api::Operation;
use serde::Serialize;

pub(crate) use placement::{ExplanationRow, MoveRow, PolicyRow, ProjectRow, StatusRow};
pub(crate) use rows::{
    BalloonRow, EventRow, ImageRow, NodeRow, OperationRow, PoolRow, SnapshotRow, VmRow, VmSnapshotRow,
    VolumeRow,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For scripts: field names are stable
    Json,
}

/// One line of a table, one object of a JSON list.
pub(crate) trait Row: Serialize {
    /// Titles of the columns.
    const TITLES: &'static [&'static str];
    /// One cell for each title.
    fn cells(&self) -> Vec<String>;
    /// Everything there is to say, for people: empty texts are left out.
    fn details(&self) -> Vec<(&'static str, String)>;
}

/// Prints a list.
pub(crate) fn print_rows<R: Row>(format: Format, rows: &[R]) -> anyhow::Result<()> {
    match format {
        Format::Json => print_json(&rows),
        Format::Table => print_table(R::TITLES, rows.iter().map(Row::cells)),
    }
}

/// Prints one thing: as a table of one line, or as a JSON object.
pub(crate) fn print_row<R: Row>(format: Format, row: &R) -> anyhow::Result<()> {
    match format {
        Format::Json => print_json(row),
        Format::Table => print_table(R::TITLES, [row.cells()]),
    }
}

/// Prints one thing in full: a line for each of its fields that has something to say.
pub(crate) fn print_details<R: Row>(format: Format, row: &R) -> anyhow::Result<()> {
    if format == Format::Json {
        return print_json(row);
    }
    let details: Vec<_> = row.details().into_iter().filter(|(_, text)| !text.is_empty()).collect();
    let width = details.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in details {
        let indented = printable(&value).replace('\n', &format!("\n{:width$}  ", ""));
        text.push_str(&format!("{name:width$}  {indented}\n"));
    }
    print_text(&text)
}

/// Tells a person what has been done; a script knows by the exit status.
pub(crate) fn print_note(format: Format, text: &str) -> anyhow::Result<()> {
    match format {
        Format::Json => Ok(()),
        Format::Table => print_text(&format!("{}\n", printable(text))),
    }
}

/// Prints one JSON object on a line of its own, for streams.
pub(crate) fn print_json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print_text(&format!("{}\n", serde_json::to_string(value)?))
}

/// Writes text to standard output at once.
pub(crate) fn print_text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Prints why each node refused a VM, on standard error.
pub(crate) fn print_rejections(operation: &Operation) {
    if operation.rejections.is_empty() {
        return;
    }
    let rows = operation
        .rejections
        .iter()
        .map(|rejection| vec![rejection.node_name.clone(), rejection.reasons.join("\n")]);
    eprint!("{}", lines(&table(&["NODE", "REFUSED BECAUSE"], rows)));
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn print_table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> anyhow::Result<()> {
    print_text(&lines(&table(titles, rows)))
}

/// The lines of a table without trailing blanks, so that they can be pasted and compared.
fn lines(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(titles);
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    table
}

/// The text without control characters: names, reasons and details come from elsewhere, and a terminal obeys what it
/// is sent.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc"), "a\u{fffd}[2Jb\u{fffd}\nc");
    }
}
