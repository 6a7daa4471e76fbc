//! How good a host is.
//!
//! What a host has free counts by its [cell](crate::inventory::Scale), not to the last byte: hosts of one cell are
//! equally good, and all the search needs to know of a cell is one number. That number is worked out once for each
//! flavour and capacity and kept in a [`ScoreTable`].

use crate::{
    TERM_SCALE, Term, Weights,
    inventory::{COLUMNS, Class, ROW_EMPTY, ROWS, Scale},
};

/// A host as far as the score of its room goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// What VMs may take, hundredths of vCPUs and bytes.
    pub(crate) capacity: (u32, u64),
    /// What is free before.
    pub(crate) free: (u32, u64),
    /// What the request takes.
    pub(crate) wanted: (u32, u64),
    /// It holds nothing.
    pub(crate) empty: bool,
}

impl Room {
    /// The room in a cell, for a request that falls in a row and a column.
    pub(crate) fn of_cell(class: &Class, wanted: (u8, u8), row: u8, column: u8) -> Self {
        let scale = class.scale;
        let capacity = (class.key.cpu, class.key.memory);
        let empty = row == ROW_EMPTY;
        let free = if empty { capacity } else { (scale.row_floor(row), scale.column_floor(column)) };
        let wanted = (scale.row_floor(wanted.0), scale.column_floor(wanted.1));
        Self { capacity, free, wanted, empty }
    }

    /// Free parts of the capacity, before and after, in [`TERM_SCALE`]ths.
    fn parts(&self) -> [i64; 4] {
        let part = |of: u64, all: u64| {
            let scaled = u128::from(of) * TERM_SCALE as u128 / u128::from(all.max(1));
            i64::try_from(scaled).unwrap_or(TERM_SCALE).min(TERM_SCALE)
        };
        let cpu = |free: u32| part(u64::from(free), u64::from(self.capacity.0));
        let memory = |free: u64| part(free, self.capacity.1);
        [
            cpu(self.free.0),
            memory(self.free.1),
            cpu(self.free.0.saturating_sub(self.wanted.0)),
            memory(self.free.1.saturating_sub(self.wanted.1)),
        ]
    }

    /// What a term says of it; nothing, for terms that are not about room.
    pub(crate) fn term(&self, term: Term) -> i64 {
        let [cpu_before, memory_before, cpu, memory] = self.parts();
        match term {
            Term::Pack => TERM_SCALE - (cpu + memory) / 2,
            Term::Spread => (cpu + memory) / 2,
            Term::Balance => TERM_SCALE - (cpu - memory).abs(),
            Term::Fragmentation => {
                TERM_SCALE - (lost(cpu_before, memory_before, cpu, memory)).clamp(0, TERM_SCALE)
            }
            Term::Energy if self.empty => 0,
            Term::Energy => TERM_SCALE,
            Term::Lifetime | Term::Load | Term::Preferences => 0,
        }
    }

    /// The weighted sum of what all terms about room say.
    pub(crate) fn score(&self, weights: &Weights) -> i64 {
        let weighed = weights.terms().into_iter().filter(|(_, weight)| *weight > 0);
        weighed.map(|(term, weight)| self.term(term) * i64::from(weight)).sum()
    }
}

/// Shapes that the fragmentation term keeps places for: 1/2, 1/4, 1/8 and 1/16 of a host.
const SHAPES: u32 = 4;

/// The mean, over shapes, of the part of the host that could take VMs of that shape before and cannot after.
fn lost(cpu_before: i64, memory_before: i64, cpu: i64, memory: i64) -> i64 {
    let places = |free: i64, shape: i64| free / shape;
    let each = (1..=SHAPES).map(|halvings| {
        let shape = TERM_SCALE >> halvings;
        let before = places(cpu_before.min(memory_before), shape);
        let after = places(cpu.min(memory), shape);
        (before - after) * shape
    });
    each.sum::<i64>() / i64::from(SHAPES)
}

/// What a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableKey {
    capacity: (u32, u64),
    wanted: (u8, u8),
    weights: Weights,
}

impl TableKey {
    /// For a class and a request that falls in a row and a column of it. Weights of terms that are not about room make no
    /// difference.
    pub(crate) fn new(class: &Class, wanted: (u8, u8), weights: &Weights) -> Self {
        let weights = Weights { lifetime: 0, load: 0, preferences: 0, ..*weights };
        Self { capacity: (class.key.cpu, class.key.memory), wanted, weights }
    }

    /// Where to look first. Weights hardly ever differ, and are compared anyway.
    pub(crate) fn hash(&self) -> u64 {
        let wanted = u64::from(self.wanted.0) << 8 | u64::from(self.wanted.1);
        let weights = u64::from(self.weights.pack) ^ u64::from(self.weights.spread) << 10;
        let cpu = u64::from(self.capacity.0);
        crate::containers::mix(
            u128::from(self.capacity.1) << 64 | u128::from(wanted << 32 ^ weights << 48 ^ cpu),
        )
    }
}

/// The score of every cell that may have room.
#[derive(Clone, Debug)]
pub(crate) struct ScoreTable {
    pub(crate) key: TableKey,
    scores: Vec<i32>,
    columns: usize,
    /// Rows, the one with the best cell first.
    pub(crate) order: Vec<u8>,
    /// The best score of each row.
    pub(crate) best: [i32; ROWS],
    empty: i32,
}

impl ScoreTable {
    pub(crate) fn new(key: TableKey, class: &Class) -> Self {
        let scale: Scale = class.scale;
        let (first_row, first_column) = key.wanted;
        let columns = COLUMNS - usize::from(first_column);
        let last_row = scale.row(class.key.cpu);
        let mut table = Self {
            key,
            scores: Vec::with_capacity(usize::from(last_row.saturating_sub(first_row) + 1) * columns),
            columns,
            order: Vec::new(),
            best: [i32::MIN; ROWS],
            empty: 0,
        };
        // Six terms of at most 100,000 times 1000 are below 2^31.
        let score = |row, column| {
            let score = Room::of_cell(class, key.wanted, row, column).score(&key.weights);
            i32::try_from(score).unwrap_or(i32::MAX)
        };
        for row in first_row..=last_row {
            for column in first_column..COLUMNS as u8 {
                let score = score(row, column);
                table.scores.push(score);
                table.best[usize::from(row)] = table.best[usize::from(row)].max(score);
            }
            table.order.push(row);
        }
        table.empty = score(ROW_EMPTY, 0);
        table.best[usize::from(ROW_EMPTY)] = table.empty;
        table.order.push(ROW_EMPTY);
        let best = table.best;
        table.order.sort_by_key(|row| std::cmp::Reverse(best[usize::from(*row)]));
        table
    }

    pub(crate) fn at(&self, row: u8, column: u8) -> i32 {
        if row == ROW_EMPTY {
            return self.empty;
        }
        let (first_row, first_column) = self.key.wanted;
        let index = usize::from(row - first_row) * self.columns + usize::from(column - first_column);
        self.scores[index]
    }
}
