//! Huawei-East-1: CSV with the columns `vmid,cpu,memory,time,type`.
//!
//! `cpu` is a number of cores, `memory` a number of GB, `time` seconds since the beginning, `type` 0 for a creation and 1
//! for a deletion. Source: VMAgent's documentation, "Dataset" (<https://vmagent.readthedocs.io/en/latest/simulator/dataset.html>).

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
};

use drover_units::{Bytes, VcpuCount};

use crate::{
    Action, Error, Flavour, MAX_EVENTS, Moment, Priority, Problem, Trace,
    lines::{Row, Rows},
    trace::{Stay, assemble},
};

const TITLES: &str = "vmid,cpu,memory,time,type";
const COLUMNS: [&[&str]; 5] = [&["vmid"], &["cpu"], &["memory", "mem"], &["time"], &["type"]];

/// More cores or GB than any host has are a mistake in the file.
const MAX_CORES: u32 = 4096;
const MAX_GB: u32 = 1 << 16;

#[derive(Clone, Copy)]
struct Record {
    line: u64,
    vm: u64,
    at: Moment,
    /// `None`: a deletion.
    created: Option<Flavour>,
}

/// Reads a trace. Rows may be in any order; those of one moment count as they stand in the file, deletions first.
///
/// A deletion of a VM that the file never created is left out and counted ([`Trace::unmatched_deletions`]): excerpts of a
/// trace have them.
///
/// # Errors
/// With the line's number, if a row lacks a column, has a value that the column cannot have, or creates a VM that exists.
pub fn read(source: impl BufRead) -> Result<Trace, Error> {
    let mut rows = Rows::open(source, &COLUMNS, TITLES)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        if records.len() == MAX_EVENTS {
            return Err(Error::at(row.line)(Problem::TooMany { what: "events", max: MAX_EVENTS }));
        }
        records.push(record(&row)?);
    }
    records.sort_by_key(|record| record.at);
    pair(&records)
}

fn record(row: &Row<'_>) -> Result<Record, Error> {
    let vm = row.value(0, "vmid", "a whole number", |_| true)?;
    let at = Moment::from_secs(row.value(3, "time", "whole seconds", |secs: &u64| *secs < u64::MAX / 1000)?);
    let kind: u8 = row.value(4, "type", "0 for a creation, 1 for a deletion", |kind| *kind <= 1)?;
    let created = if kind == 0 {
        let cores = row.value(1, "cpu", "1 to 4096 cores", |n: &u32| (1..=MAX_CORES).contains(n))?;
        let gb = row.value(2, "memory", "1 to 65536 GB", |n: &u32| (1..=MAX_GB).contains(n))?;
        Some(Flavour { vcpus: VcpuCount::new(cores), memory: Bytes::gib(u64::from(gb)) })
    } else {
        None
    };
    Ok(Record { line: row.line, vm, at, created })
}

/// Finds the end of each beginning.
fn pair(records: &[Record]) -> Result<Trace, Error> {
    let mut stays: Vec<Stay> = Vec::new();
    let mut alive: BTreeMap<u64, usize> = BTreeMap::new();
    let mut unmatched = 0;
    for record in records {
        match record.created {
            Some(flavour) => {
                if alive.insert(record.vm, stays.len()).is_some() {
                    let vm = record.vm.to_string();
                    return Err(Error::at(record.line)(Problem::CreatedTwice { vm }));
                }
                stays.push(Stay { begin: record.at, end: None, flavour, priority: Priority::High });
            }
            None => match alive.remove(&record.vm) {
                Some(index) => stays[index].end = Some(record.at),
                None => unmatched += 1,
            },
        }
    }
    assemble(stays, unmatched)
}

/// Writes a trace. Sizes are rounded up to whole GB, times down to whole seconds: that is what the format can say.
///
/// # Errors
/// If the target does.
pub fn write(trace: &Trace, mut target: impl Write) -> Result<(), Error> {
    let mut flavours = vec![None; trace.creations()];
    let mut text = || -> std::io::Result<()> {
        writeln!(target, "{TITLES}")?;
        for event in trace.events() {
            let index = event.vm.0 as usize;
            let kind = match event.action {
                Action::Create { flavour, .. } => {
                    flavours[index] = Some(trace.flavour(flavour));
                    0
                }
                Action::Delete => 1,
            };
            let Some(flavour) = flavours[index] else { continue };
            let gb = flavour.memory.get().div_ceil(Bytes::gib(1).get());
            writeln!(target, "{},{},{gb},{},{kind}", event.vm.0, flavour.vcpus.get(), event.at.secs())?;
        }
        target.flush()
    };
    text().map_err(Error::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Trace, Error> {
        read(text.as_bytes())
    }

    #[test]
    fn rows_become_events_in_the_order_of_time_and_deletions_make_room_first() {
        let trace =
            read_text("vmid,cpu,memory,time,type\n7,4,8,20,0\n5,1,2,10,0\n\n5,1,2,20,1\n9,1,2,30,1\n")
                .unwrap();
        let order: Vec<_> = trace
            .events()
            .iter()
            .map(|event| (event.at.secs(), event.vm.0, event.action == Action::Delete))
            .collect();
        assert_eq!(order, [(10, 0, false), (20, 0, true), (20, 1, false)]);
        assert_eq!((trace.creations(), trace.deletions(), trace.unmatched_deletions()), (2, 1, 1));
        assert_eq!(trace.flavours().len(), 2);
    }

    #[test]
    fn columns_are_found_by_their_titles() {
        let trace = read_text("\u{feff}time, \"mem\",cpu,type,vmid\r\n10,2,1,0,5\r\n").unwrap();
        assert_eq!(trace.flavours(), [Flavour { vcpus: VcpuCount::new(1), memory: Bytes::gib(2) }]);
    }

    fn check(text: &str, expect: &str) {
        assert_eq!(read_text(text).unwrap_err().to_string(), expect, "{text}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_line() {
        check("", "the trace: it has no requests");
        check("vmid,cpu,memory,time,type\n", "the trace: it has no requests");
        check(
            "vmid,cpu,time,type\n",
            "line 1 of the trace: no column 'memory'; the titles should be: vmid,cpu,memory,time,type",
        );
        let row = |row: &str| format!("vmid,cpu,memory,time,type\n1,1,1,0,0\n{row}\n");
        check(&row("2,1,1"), "line 3 of the trace: no value for 'time'");
        check(&row("2,0.3,1,0,0"), "line 3 of the trace: '0.3' is no valid cpu: 1 to 4096 cores");
        check(&row("2,0,1,0,0"), "line 3 of the trace: '0' is no valid cpu: 1 to 4096 cores");
        check(&row("2,1,1,-4,0"), "line 3 of the trace: '-4' is no valid time: whole seconds");
        check(
            &row("2,1,1,4,2"),
            "line 3 of the trace: '2' is no valid type: 0 for a creation, 1 for a deletion",
        );
        check(&row("1,1,1,4,0"), "line 3 of the trace: VM 1 is created a second time");
        check(&row(&"9".repeat(5000)), "line 3 of the trace: longer than 1024 bytes: this is no trace");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let error = read(&b"vmid,cpu,memory,time,type\n\xff\xfe\n"[..]).unwrap_err();
        assert_eq!(error.to_string(), "line 2 of the trace: not UTF-8");
    }
}
