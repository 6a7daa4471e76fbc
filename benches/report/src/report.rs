//! The table and the file.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::{Host, Samples, host, median};

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct Error {
    path: String,
    #[source]
    cause: io::Error,
}

/// Which of two values is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The larger one.
    Higher,
    /// The smaller one.
    Lower,
}

/// One figure of each contender.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    case: String,
    metric: String,
    unit: String,
    better: Better,
    #[serde(serialize_with = "as_map")]
    values: Vec<(String, f64)>,
}

impl Row {
    /// A row without values: what was done (`case`), what was measured of it (`metric`) and its unit.
    pub fn new(
        case: impl Into<String>,
        metric: impl Into<String>,
        unit: impl Into<String>,
        better: Better,
    ) -> Self {
        Self { case: case.into(), metric: metric.into(), unit: unit.into(), better, values: Vec::new() }
    }

    /// Adds a contender's figure. One that is not finite is left out: JSON has no form for it.
    #[must_use]
    pub fn value(mut self, contender: impl Into<String>, value: f64) -> Self {
        if value.is_finite() {
            self.values.push((contender.into(), value));
        }
        self
    }

    /// Adds the median of each contender.
    #[must_use]
    pub fn medians(self, samples: &Samples) -> Self {
        samples.iter().fold(self, |row, (contender, values)| match median(values) {
            Some(value) => row.value(contender.clone(), value),
            None => row,
        })
    }

    /// A contender's figure.
    #[must_use]
    pub fn get(&self, contender: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| name == contender).map(|(_, value)| *value)
    }
}

/// A bench's outcome. Its JSON form is that of the design: fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    name: String,
    commit: String,
    date: String,
    host: Host,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<LeftOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct LeftOut {
    contender: String,
    reason: String,
}

impl Report {
    /// An empty report of this commit, moment and machine.
    #[must_use]
    pub fn of_this_machine(name: &str) -> Self {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self {
            name: name.to_owned(),
            commit: host::commit(),
            date,
            host: Host::this(),
            rows: Vec::new(),
            left_out: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The rows so far.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Records that a contender does not take part, and why.
    pub fn leave_out(&mut self, contender: &str, reason: &str) {
        self.left_out.push(LeftOut { contender: contender.to_owned(), reason: reason.to_owned() });
    }

    /// Adds a sentence that a reader of the figures needs: a source, a condition.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The form for people: the machine, a table for each set of contenders, notes and what was left out.
    #[must_use]
    pub fn table(&self) -> String {
        let Host { cpu, cores, kernel, kvm } = &self.host;
        let mut text = format!(
            "{} at {}, {}: {cores} cores of {cpu}, Linux {kernel}, kvm: {kvm}\n",
            self.name, self.commit, self.date
        );
        let mut rest = &self.rows[..];
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|row| names(row) == names(first)).count();
            text.push('\n');
            text.push_str(&lines(&rest[..same]));
            rest = &rest[same..];
        }
        if !self.notes.is_empty() || !self.left_out.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("{note}\n"));
        }
        for LeftOut { contender, reason } in &self.left_out {
            text.push_str(&format!("left out: {contender}: {reason}\n"));
        }
        text
    }

    /// Writes `target/bench/<name>.json` below the workspace's root, and returns its path.
    ///
    /// # Errors
    /// If the folder cannot be made or the file cannot be written.
    pub fn write(&self, workspace_root: &Path) -> Result<PathBuf, Error> {
        let folder = workspace_root.join("target/bench");
        let path = folder.join(format!("{}.json", self.name));
        let failed = |cause| Error { path: path.display().to_string(), cause };
        fs::create_dir_all(&folder).map_err(failed)?;
        let text = serde_json::to_string_pretty(self).map_err(|cause| failed(cause.into()))?;
        fs::write(&path, text + "\n").map_err(failed)?;
        Ok(path)
    }
}

fn names(row: &Row) -> BTreeSet<&str> {
    row.values.iter().map(|(name, _)| name.as_str()).collect()
}

/// Contenders beyond which they become the lines of a table instead of its columns: what a terminal of 120 columns holds beside
/// the description of a row.
const COLUMNS_MAX: usize = 4;

/// The table of rows that have the same contenders.
fn lines(rows: &[Row]) -> String {
    if rows[0].values.len() > COLUMNS_MAX {
        return rows.iter().map(upright).collect::<Vec<_>>().join("\n");
    }

    let contenders: Vec<&str> = rows[0].values.iter().map(|(name, _)| name.as_str()).collect();
    let mut header = vec!["CASE".to_owned(), "METRIC".to_owned(), "UNIT".to_owned(), "BETTER".to_owned()];
    header.extend(contenders.iter().map(|name| name.to_uppercase()));
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        let better = match row.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        let mut cells = vec![row.case.clone(), row.metric.clone(), row.unit.clone(), better.to_owned()];
        cells.extend(contenders.iter().map(|name| row.get(name).map(readable).unwrap_or_default()));
        table.add_row(cells);
    }
    for index in 4..4 + contenders.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// One row with a line for each of its many contenders, the best first.
fn upright(row: &Row) -> String {
    let mut values: Vec<&(String, f64)> = row.values.iter().collect();
    values.sort_by(|(_, a), (_, b)| match row.better {
        Better::Higher => b.total_cmp(a),
        Better::Lower => a.total_cmp(b),
    });
    let width = values.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{}: {} ({})\n", row.case, row.metric, row.unit);
    for (name, value) in values {
        text.push_str(&format!("  {name:width$}  {:>9}\n", readable(*value)));
    }
    text
}

/// Three digits that count, and thousands set apart.
fn readable(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let (whole, fraction) =
        unsigned.split_once('.').map_or((unsigned, ""), |(whole, _)| (whole, &unsigned[whole.len()..]));
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

fn as_map<S: Serializer>(values: &[(String, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(values.len()))?;
    for (name, value) in values {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Report {
        let host = Host { cpu: "EPYC".into(), cores: 2, kernel: "6.18".into(), kvm: "kvm_pvm".into() };
        Report {
            name: "block".into(),
            commit: "abc".into(),
            date: "2026-01-02T03:04:05Z".into(),
            host,
            rows: Vec::new(),
            left_out: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_file_has_the_form_that_harnesses_read() {
        let mut report = report();
        let samples = vec![("drover".to_owned(), vec![3.0, 1.0, 2.0]), ("qemu".to_owned(), vec![1.5])];
        report.push(Row::new("4K read QD1", "latency", "us", Better::Lower).medians(&samples));
        let folder = tempfile::tempdir().unwrap();
        let path = report.write(folder.path()).unwrap();
        assert_eq!(path, folder.path().join("target/bench/block.json"));
        let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(
            written,
            json!({"name": "block", "commit": "abc", "date": "2026-01-02T03:04:05Z",
                "host": {"cpu": "EPYC", "cores": 2, "kernel": "6.18", "kvm": "kvm_pvm"},
                "rows": [{"case": "4K read QD1", "metric": "latency", "unit": "us", "better": "lower",
                    "values": {"drover": 2.0, "qemu": 1.5}}]})
        );
    }

    #[test]
    fn rows_with_the_same_contenders_share_a_table_and_the_absent_are_named() {
        let mut report = report();
        let row = |case: &str| Row::new(case, "rate", "1/s", Better::Higher).value("drover", 1_234_567.8);
        report.push(row("a").value("qemu", 2.0));
        report.push(row("b").value("qemu", 0.5));
        report.push(row("c").value("nobody", f64::NAN));
        report.leave_out("fio", "not installed");
        let text = report.table();
        assert_eq!(text.matches("CASE").count(), 2, "{text}");
        assert!(text.contains("1,234,568"), "{text}");
        assert!(text.contains("left out: fio: not installed"), "{text}");
        assert!(!text.contains("NOBODY"), "{text}");
    }

    #[test]
    fn many_contenders_are_lines_with_the_best_on_top() {
        let mut report = report();
        let row = Row::new("trace", "utilisation", "%", Better::Higher);
        report.push(
            ["a", "b", "c", "d", "e"]
                .iter()
                .zip([1.0, 5.0, 3.0, 2.0, 4.0])
                .fold(row, |row, (n, v)| row.value(*n, v)),
        );
        let text = report.table();
        let order: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
        assert_eq!(order, ["b", "e", "c", "d", "a"], "{text}");
    }

    fn check_readable(value: f64, expect: &str) {
        assert_eq!(readable(value), expect);
    }

    #[test]
    fn figures_show_three_digits_that_count() {
        check_readable(0.0, "0");
        check_readable(0.1234, "0.123");
        check_readable(12.345, "12.3");
        check_readable(999.6, "1,000");
        check_readable(-1234.5, "-1,234");
        check_readable(100_000.0, "100,000");
    }
}
