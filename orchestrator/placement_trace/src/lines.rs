//! Rows of comma-separated values, one at a time.

use std::{
    io::{BufRead, Read as _},
    str::FromStr,
};

use crate::{Error, Problem};

/// Longest row: the widest format has eight numbers of at most 25 characters; the rest is room for spaces and quotes.
const MAX_LINE: usize = 1024;
/// Characters of a bad value that an error shows.
const SHOWN: usize = 24;

/// Rows of a source, each with the number of its line.
pub(crate) struct Rows<R> {
    source: R,
    buffer: Vec<u8>,
    line: u64,
    /// Where each wanted column is in a row.
    columns: Vec<usize>,
}

impl<R: BufRead> Rows<R> {
    /// Reads the titles and finds the wanted columns by any of their names, whatever their order.
    pub(crate) fn open(source: R, wanted: &[&[&'static str]], expected: &'static str) -> Result<Self, Error> {
        let mut rows = Self { source, buffer: Vec::with_capacity(MAX_LINE), line: 0, columns: Vec::new() };
        let Some(line) = rows.advance()? else { return Err(Error::Whole(Problem::Empty)) };
        let text = text_of(&rows.buffer).map_err(Error::at(line))?;
        let titles: Vec<String> = text.split(',').map(|title| cell(title).to_ascii_lowercase()).collect();
        let mut columns = Vec::with_capacity(wanted.len());
        for names in wanted {
            let found =
                titles.iter().position(|title| names.iter().any(|name| name.eq_ignore_ascii_case(title)));
            let missing = || Error::at(line)(Problem::NoColumn { column: names[0], expected });
            columns.push(found.ok_or_else(missing)?);
        }
        rows.columns = columns;
        Ok(rows)
    }

    /// The next row that is not blank.
    pub(crate) fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        let Some(line) = self.advance()? else { return Ok(None) };
        let text = text_of(&self.buffer).map_err(Error::at(line))?;
        Ok(Some(Row { line, cells: text.split(',').map(cell).collect(), columns: &self.columns }))
    }

    fn advance(&mut self) -> Result<Option<u64>, Error> {
        loop {
            self.line += 1;
            self.buffer.clear();
            let limit = MAX_LINE as u64 + 1;
            let read = self.source.by_ref().take(limit).read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|cause| Error::Read { line: self.line, cause })?;
            if read == 0 {
                return Ok(None);
            }
            if read > MAX_LINE {
                return Err(Error::at(self.line)(Problem::TooLong { max: MAX_LINE }));
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(Some(self.line));
            }
        }
    }
}

fn text_of(bytes: &[u8]) -> Result<&str, Problem> {
    let text = str::from_utf8(bytes).map_err(|_| Problem::NotText)?;
    // Spreadsheets begin a file with a byte-order mark.
    Ok(text.trim_start_matches('\u{feff}').trim_end())
}

/// A cell without the blanks and quotes around it: no format here has a comma in a value.
fn cell(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// One row; columns are counted as they were asked for.
pub(crate) struct Row<'a> {
    /// Number of its line, from 1.
    pub(crate) line: u64,
    cells: Vec<&'a str>,
    columns: &'a [usize],
}

impl<'a> Row<'a> {
    /// The text of a column; empty where the row ends before it.
    pub(crate) fn text(&self, column: usize) -> &'a str {
        self.cells.get(self.columns[column]).copied().unwrap_or_default()
    }

    /// The value of a column, which must be there and valid.
    pub(crate) fn value<T: FromStr>(
        &self,
        column: usize,
        name: &'static str,
        expected: &'static str,
        valid: impl Fn(&T) -> bool,
    ) -> Result<T, Error> {
        let text = self.text(column);
        let fail = Error::at(self.line);
        if text.is_empty() {
            return Err(fail(Problem::NoValue { column: name }));
        }
        let bad = || fail(Problem::BadValue { column: name, value: shortened(text), expected });
        let value = text.parse().map_err(|_| bad())?;
        if valid(&value) { Ok(value) } else { Err(bad()) }
    }
}

pub(crate) fn shortened(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() { format!("{shown}…") } else { shown }
}
