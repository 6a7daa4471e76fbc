//! The index: ready hosts, by what they are and how much they have free.
//!
//! Hosts that are alike but for what they hold form a class; what a request asks of a host as such is looked at once for
//! each class. Within a class hosts lie in the cells of a [grid](super::grid), and bitmaps say which cells have any.

use std::sync::Arc;

use crate::containers::{HostSet, NameId, SlotTable, hash_of};

use super::grid::{ROWS, Scale};

/// What hosts of a class have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClassKey {
    pub(crate) traits: u32,
    pub(crate) zone: NameId,
    /// What VMs may take, hundredths of shared vCPUs and bytes of base pages.
    pub(crate) cpu: u32,
    pub(crate) memory: u64,
    pub(crate) cpu_overcommit: u16,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// Which columns have hosts.
    columns: u128,
    /// Their hosts, in the order of columns.
    cells: Vec<HostSet>,
}

impl Row {
    /// Columns from `first` on that have hosts.
    pub(crate) fn columns_from(&self, first: u8) -> u128 {
        self.columns & (u128::MAX << first)
    }

    fn rank(&self, column: u8) -> usize {
        (self.columns & !(u128::MAX << column)).count_ones() as usize
    }

    /// The hosts of a column that has some.
    pub(crate) fn cell(&self, column: u8) -> &HostSet {
        &self.cells[self.rank(column)]
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) key: ClassKey,
    pub(crate) scale: Scale,
    /// How many hosts it has.
    pub(crate) hosts: u32,
    /// Which rows have hosts.
    pub(crate) rows_in_use: u64,
    rows: [Option<Arc<Row>>; ROWS],
}

impl Class {
    pub(crate) fn row(&self, row: u8) -> Option<&Row> {
        self.rows[usize::from(row)].as_deref()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Classes {
    classes: Vec<Option<Arc<Class>>>,
    table: SlotTable,
    free: Vec<u32>,
}

/// A cell of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) class: u32,
    pub(crate) row: u8,
    pub(crate) column: u8,
}

impl Classes {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Class)> {
        self.classes.iter().enumerate().filter_map(|(slot, class)| Some((slot as u32, class.as_deref()?)))
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Class> {
        self.classes.get(slot as usize)?.as_deref()
    }

    /// One more than the largest slot.
    pub(crate) fn slots(&self) -> usize {
        self.classes.len()
    }

    /// The class of a host; a new one if there is none.
    pub(crate) fn intern(&mut self, key: ClassKey) -> (u32, Scale) {
        let hash = hash_of(&key);
        let is = |slot: u32| self.get(slot).is_some_and(|class| class.key == key);
        if let Some(slot) = self.table.find(hash, is) {
            return (slot, self.classes[slot as usize].as_ref().map_or(Scale::default(), |c| c.scale));
        }
        let scale = Scale::of(key.cpu, key.memory);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.classes.push(None);
            self.classes.len() as u32 - 1
        });
        let rows = [const { None }; ROWS];
        self.classes[slot as usize] = Some(Arc::new(Class { key, scale, hosts: 0, rows_in_use: 0, rows }));
        let classes = &self.classes;
        self.table.insert(hash, slot, |slot| classes[slot as usize].as_ref().map_or(0, |c| hash_of(&c.key)));
        (slot, scale)
    }

    pub(crate) fn insert(&mut self, cell: Cell, host: u32, id_of: impl Fn(u32) -> u128) {
        let Some(class) = self.classes[cell.class as usize].as_mut().map(Arc::make_mut) else { return };
        class.hosts += 1;
        class.rows_in_use |= 1 << cell.row;
        let row = Arc::make_mut(class.rows[usize::from(cell.row)].get_or_insert_default());
        let rank = row.rank(cell.column);
        if row.columns & (1 << cell.column) == 0 {
            row.columns |= 1 << cell.column;
            row.cells.insert(rank, HostSet::default());
        }
        row.cells[rank].insert(host, id_of);
    }

    pub(crate) fn remove(&mut self, cell: Cell, host: u32, id_of: impl Fn(u32) -> u128) {
        let Some(class) = self.classes[cell.class as usize].as_mut().map(Arc::make_mut) else { return };
        class.hosts -= 1;
        let Some(row) = class.rows[usize::from(cell.row)].as_mut().map(Arc::make_mut) else { return };
        let rank = row.rank(cell.column);
        row.cells[rank].remove(host, id_of);
        if row.cells[rank].is_empty() {
            row.cells.remove(rank);
            row.columns &= !(1 << cell.column);
        }
        if row.columns == 0 {
            class.rows[usize::from(cell.row)] = None;
            class.rows_in_use &= !(1 << cell.row);
        }
    }

    /// Forgets a class that has no hosts.
    pub(crate) fn forget_if_empty(&mut self, slot: u32) {
        let Some(class) = self.get(slot).filter(|class| class.hosts == 0) else { return };
        let key = class.key;
        let classes = &self.classes;
        let hash = |slot: u32| classes[slot as usize].as_ref().map_or(0, |c| hash_of(&c.key));
        self.table.remove(hash_of(&key), slot, hash);
        self.classes[slot as usize] = None;
        self.free.push(slot);
    }
}
