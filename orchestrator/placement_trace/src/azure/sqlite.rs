//! The two tables in the SQLite file that is published.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row, config::DbConfig, params};

use super::{MAX_TYPES, MAX_VMS, Tables, VmRow, VmTypeRow, is_fraction, is_time};
use crate::{Error, Priority, Problem, lines::shortened};

const SCHEMA: &str = "
CREATE TABLE vm (vmId INTEGER, tenantId INTEGER, vmTypeId INTEGER, priority INTEGER, starttime REAL, endtime REAL);
CREATE TABLE vmType (id INTEGER PRIMARY KEY, vmTypeId INTEGER, machineId INTEGER, core REAL, memory REAL, hdd REAL,
    ssd REAL, nic REAL);";

/// Reads a published file. It comes from elsewhere: it is opened read-only, and nothing in its schema may run.
///
/// Errors count rows of a table where they would count lines of a file.
///
/// # Errors
/// If it is no such database, lacks a column, or has a value that the column cannot have.
pub fn read_sqlite(path: &Path) -> Result<Tables, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(failed("opening it"))?;
    let distrust = |database: &Connection| -> rusqlite::Result<()> {
        database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        database.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).map(drop)
    };
    distrust(&database).map_err(failed("opening it"))?;
    let vm_types = "SELECT vmTypeId, machineId, core, memory, hdd, ssd, nic FROM vmType";
    let vms = "SELECT vmId, tenantId, vmTypeId, priority, starttime, endtime FROM vm";
    Ok(Tables {
        vm_types: table(
            &database,
            ("reading the table vmType", vm_types),
            (MAX_TYPES, "VM types"),
            vm_type_row,
        )?,
        vms: table(&database, ("reading the table vm", vms), (MAX_VMS, "VMs"), vm_row)?,
    })
}

fn failed(what: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |cause| Error::Database { what, cause }
}

fn table<T>(
    database: &Connection,
    (what, query): (&'static str, &str),
    (max, of_what): (usize, &'static str),
    read: impl Fn(&Cells<'_, '_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut statement = database.prepare(query).map_err(failed(what))?;
    let mut rows = statement.query([]).map_err(failed(what))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(failed(what))? {
        let line = found.len() as u64 + 1;
        if found.len() == max {
            return Err(Error::at(line)(Problem::TooMany { what: of_what, max }));
        }
        found.push(read(&Cells { row, line })?);
    }
    Ok(found)
}

/// One row, with its number.
struct Cells<'r, 's> {
    row: &'r Row<'s>,
    line: u64,
}

impl Cells<'_, '_> {
    fn get<T: rusqlite::types::FromSql>(&self, column: usize, name: &'static str) -> Result<T, Error> {
        self.row.get(column).map_err(|_| {
            let value = self.row.get_ref(column).map(|value| format!("{:?}", value.data_type()));
            self.bad(name, &value.unwrap_or_default(), "the schema's type")
        })
    }

    fn bad(&self, column: &'static str, value: &str, expected: &'static str) -> Error {
        Error::at(self.line)(Problem::BadValue { column, value: shortened(value), expected })
    }

    fn days(&self, column: usize, name: &'static str) -> Result<Option<f64>, Error> {
        match self.get::<Option<f64>>(column, name)? {
            Some(days) if !is_time(&days) => {
                Err(self.bad(name, &days.to_string(), "fractional days since the collection began"))
            }
            days => Ok(days),
        }
    }

    fn fraction(&self, column: usize, name: &'static str) -> Result<f64, Error> {
        match self.get::<Option<f64>>(column, name)?.unwrap_or(0.0) {
            fraction if is_fraction(&fraction) => Ok(fraction),
            other => Err(self.bad(name, &other.to_string(), "a fraction of a machine, 0 to 1")),
        }
    }
}

fn vm_row(cells: &Cells<'_, '_>) -> Result<VmRow, Error> {
    let priority = match cells.get::<i64>(3, "priority")? {
        0 => Priority::High,
        1 => Priority::Low,
        other => return Err(cells.bad("priority", &other.to_string(), "0 for high, 1 for low")),
    };
    let start = cells.days(4, "starttime")?;
    let start_days = start.ok_or_else(|| cells.bad("starttime", "NULL", "fractional days"))?;
    let end_days = cells.days(5, "endtime")?;
    if let Some(end) = end_days.filter(|end| *end < start_days) {
        return Err(cells.bad("endtime", &end.to_string(), "not before starttime"));
    }
    Ok(VmRow {
        vm: cells.get(0, "vmId")?,
        tenant: cells.get(1, "tenantId")?,
        vm_type: cells.get(2, "vmTypeId")?,
        priority,
        start_days,
        end_days,
    })
}

fn vm_type_row(cells: &Cells<'_, '_>) -> Result<VmTypeRow, Error> {
    Ok(VmTypeRow {
        vm_type: cells.get(0, "vmTypeId")?,
        machine: cells.get(1, "machineId")?,
        core: cells.fraction(2, "core")?,
        memory: cells.fraction(3, "memory")?,
        hdd: cells.fraction(4, "hdd")?,
        ssd: cells.fraction(5, "ssd")?,
        nic: cells.fraction(6, "nic")?,
    })
}

/// Writes a file of the published form. It must not exist yet.
///
/// # Errors
/// If the database refuses.
pub fn write_sqlite(tables: &Tables, path: &Path) -> Result<(), Error> {
    let mut database = Connection::open(path).map_err(failed("creating it"))?;
    let mut write = || -> rusqlite::Result<()> {
        database.execute_batch(SCHEMA)?;
        let transaction = database.transaction()?;
        {
            let mut insert = transaction.prepare("INSERT INTO vm VALUES (?, ?, ?, ?, ?, ?)")?;
            for row in &tables.vms {
                let low = row.priority == Priority::Low;
                insert.execute(params![
                    row.vm,
                    row.tenant,
                    row.vm_type,
                    low,
                    row.start_days,
                    row.end_days
                ])?;
            }
            let mut insert = transaction.prepare("INSERT INTO vmType VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
            for (id, row) in tables.vm_types.iter().enumerate() {
                let id = i64::try_from(id).unwrap_or(i64::MAX);
                let VmTypeRow { vm_type, machine, core, memory, hdd, ssd, nic } = row;
                insert.execute(params![id, vm_type, machine, core, memory, hdd, ssd, nic])?;
            }
        }
        transaction.commit()
    };
    write().map_err(failed("writing it"))
}
