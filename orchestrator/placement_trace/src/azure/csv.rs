//! The two tables as CSV exports, such as `sqlite3 -header -csv trace.sqlite 'SELECT * FROM vm'` writes.

use std::io::{BufRead, Write};

use super::{MAX_TYPES, MAX_VMS, Tables, VmRow, VmTypeRow, is_fraction, is_time};
use crate::{
    Error, Priority, Problem,
    lines::{Row, Rows, shortened},
};

const VM_TITLES: &str = "vmId,tenantId,vmTypeId,priority,starttime,endtime";
const VM: [&[&str]; 6] =
    [&["vmId"], &["tenantId"], &["vmTypeId"], &["priority"], &["starttime"], &["endtime"]];
const TYPE_TITLES: &str = "vmTypeId,machineId,core,memory,hdd,ssd,nic";
const TYPE: [&[&str]; 7] =
    [&["vmTypeId"], &["machineId"], &["core"], &["memory"], &["hdd"], &["ssd"], &["nic"]];
const TIME: &str = "fractional days since the collection began";
const FRACTION: &str = "a fraction of a machine, 0 to 1";

/// Reads both tables.
///
/// # Errors
/// With the line's number, if a row lacks a column or has a value that the column cannot have.
pub fn read_csv(vm: impl BufRead, vm_type: impl BufRead) -> Result<Tables, Error> {
    let mut tables = Tables::default();
    let mut rows = Rows::open(vm_type, &TYPE, TYPE_TITLES)?;
    while let Some(row) = rows.next()? {
        limit(&row, tables.vm_types.len(), MAX_TYPES, "VM types")?;
        tables.vm_types.push(vm_type_row(&row)?);
    }
    let mut rows = Rows::open(vm, &VM, VM_TITLES)?;
    while let Some(row) = rows.next()? {
        limit(&row, tables.vms.len(), MAX_VMS, "VMs")?;
        tables.vms.push(vm_row(&row)?);
    }
    Ok(tables)
}

fn limit(row: &Row<'_>, count: usize, max: usize, what: &'static str) -> Result<(), Error> {
    if count == max { Err(Error::at(row.line)(Problem::TooMany { what, max })) } else { Ok(()) }
}

fn vm_row(row: &Row<'_>) -> Result<VmRow, Error> {
    let start_days: f64 = row.value(4, "starttime", TIME, is_time)?;
    // NULL is an empty cell in an export.
    let end_days = match row.text(5) {
        "" | "NULL" => None,
        _ => Some(row.value(5, "endtime", TIME, is_time)?),
    };
    if end_days.is_some_and(|end| end < start_days) {
        let value = shortened(row.text(5));
        let expected = "not before starttime";
        return Err(Error::at(row.line)(Problem::BadValue { column: "endtime", value, expected }));
    }
    Ok(VmRow {
        vm: row.value(0, "vmId", "a whole number", |_| true)?,
        tenant: row.value(1, "tenantId", "a whole number", |_| true)?,
        vm_type: row.value(2, "vmTypeId", "a whole number", |_| true)?,
        priority: match row.value(3, "priority", "0 for high, 1 for low", |n: &u8| *n <= 1)? {
            0 => Priority::High,
            _ => Priority::Low,
        },
        start_days,
        end_days,
    })
}

fn vm_type_row(row: &Row<'_>) -> Result<VmTypeRow, Error> {
    // A resource that the machine does not have, or that was not recorded, takes nothing of it.
    let optional = |column: usize, name: &'static str| match row.text(column) {
        "" | "NULL" => Ok(0.0),
        _ => row.value(column, name, FRACTION, is_fraction),
    };
    Ok(VmTypeRow {
        vm_type: row.value(0, "vmTypeId", "a whole number", |_| true)?,
        machine: row.value(1, "machineId", "a whole number", |_| true)?,
        core: row.value(2, "core", FRACTION, is_fraction)?,
        memory: row.value(3, "memory", FRACTION, is_fraction)?,
        hdd: optional(4, "hdd")?,
        ssd: optional(5, "ssd")?,
        nic: optional(6, "nic")?,
    })
}

/// Writes both tables; reading them again gives the same.
///
/// # Errors
/// If a target does.
pub fn write_csv(tables: &Tables, mut vm: impl Write, mut vm_type: impl Write) -> Result<(), Error> {
    let mut text = || -> std::io::Result<()> {
        writeln!(vm, "{VM_TITLES}")?;
        for row in &tables.vms {
            let priority = u8::from(row.priority == Priority::Low);
            write!(vm, "{},{},{},{priority},{},", row.vm, row.tenant, row.vm_type, row.start_days)?;
            match row.end_days {
                Some(end) => writeln!(vm, "{end}")?,
                None => writeln!(vm)?,
            }
        }
        writeln!(vm_type, "id,{TYPE_TITLES}")?;
        for (id, row) in tables.vm_types.iter().enumerate() {
            let VmTypeRow { vm_type: name, machine, core, memory, hdd, ssd, nic } = row;
            writeln!(vm_type, "{id},{name},{machine},{core},{memory},{hdd},{ssd},{nic}")?;
        }
        vm.flush()?;
        vm_type.flush()
    };
    text().map_err(Error::Write)
}
