//! Log-linear buckets: which hosts have about how much free.
//!
//! Free vCPUs are rows, free memory is columns. A bucket is exact for small amounts and a fixed fraction of larger ones:
//! a row is at most 1/8 wide, a column at most 1/16. Amounts are first scaled so that the largest one of a
//! class falls into the last buckets.

/// Rows for hosts by free vCPUs: 0 to [`ROW_LAST`]. The one after is for hosts that hold nothing.
pub(crate) const ROWS: usize = 64;
/// Where hosts are that hold no VM: what an empty host is good for does not depend on buckets.
pub(crate) const ROW_EMPTY: u8 = 63;
const ROW_LAST: u64 = 62;
/// Columns for hosts by free memory.
pub(crate) const COLUMNS: usize = 128;
const COLUMN_LAST: u64 = 127;
/// Values below this have a row each; from here on 8 rows each time the value doubles (3 bits of mantissa).
const ROWS_EXACT: u64 = 16;
/// The first value beyond the last row: 16 + 8*5 + 6 = 62 is the row of 512 * (1 + 6/8) … 959.
const ROW_VALUES: u64 = 960;
/// Values below this have a column each; from here on 16 columns each time the value doubles.
const COLUMNS_EXACT: u64 = 32;
/// The first value beyond the last column: 32 + 16*5 + 15 = 127 is the column of 1984 … 2047.
const COLUMN_VALUES: u64 = 2048;

/// How amounts of one class of hosts become rows and columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scale {
    cpu_shift: u8,
    memory_shift: u8,
}

fn shift_below(mut value: u64, limit: u64) -> u8 {
    let mut shift = 0;
    while value >= limit {
        value >>= 1;
        shift += 1;
    }
    shift
}

impl Scale {
    /// For hosts with so many hundredths of vCPUs and so many bytes.
    pub(crate) fn of(cpu: u32, memory: u64) -> Self {
        Self {
            cpu_shift: shift_below(u64::from(cpu / 100), ROW_VALUES),
            memory_shift: shift_below(memory, COLUMN_VALUES),
        }
    }

    /// The row of so many free hundredths of vCPUs.
    pub(crate) fn row(self, cpu: u32) -> u8 {
        let value = u64::from(cpu / 100) >> self.cpu_shift;
        log_linear(value, ROWS_EXACT).min(ROW_LAST) as u8
    }

    /// The column of so many free bytes.
    pub(crate) fn column(self, memory: u64) -> u8 {
        log_linear(memory >> self.memory_shift, COLUMNS_EXACT).min(COLUMN_LAST) as u8
    }

    /// The least number of free hundredths of vCPUs that falls in a row.
    pub(crate) fn row_floor(self, row: u8) -> u32 {
        u32::try_from((floor(u64::from(row), ROWS_EXACT) << self.cpu_shift) * 100).unwrap_or(u32::MAX)
    }

    /// The least number of free bytes that falls in a column.
    pub(crate) fn column_floor(self, column: u8) -> u64 {
        floor(u64::from(column), COLUMNS_EXACT) << self.memory_shift
    }
}

/// `exact` values are their own bucket; after that each doubling has `exact / 2` buckets.
fn log_linear(value: u64, exact: u64) -> u64 {
    if value < exact {
        return value;
    }
    let per_octave = exact / 2;
    let octave = u64::from(value.ilog2() - exact.ilog2());
    let mantissa = (value >> (octave + 1)) & (per_octave - 1);
    exact + octave * per_octave + mantissa
}

/// The least value of a bucket of [`log_linear`].
fn floor(bucket: u64, exact: u64) -> u64 {
    if bucket < exact {
        return bucket;
    }
    let per_octave = exact / 2;
    let (octave, mantissa) = ((bucket - exact) / per_octave, (bucket - exact) % per_octave);
    (per_octave + mantissa) << (octave + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        for exact in [ROWS_EXACT, COLUMNS_EXACT] {
            let mut last = 0;
            for value in 0..5000 {
                let bucket = log_linear(value, exact);
                assert!(bucket == last || bucket == last + 1, "{value} of {exact}");
                assert!(
                    floor(bucket, exact) <= value && floor(bucket + 1, exact) > value,
                    "{value} of {exact}"
                );
                last = bucket;
            }
        }
    }

    #[test]
    fn the_largest_values_fall_in_the_last_buckets() {
        assert_eq!(log_linear(ROW_VALUES - 1, ROWS_EXACT), ROW_LAST);
        assert_eq!(log_linear(COLUMN_VALUES - 1, COLUMNS_EXACT), COLUMN_LAST);
        for cpu in [0u32, 100, 12_800, 95_900, 96_000, 409_600, u32::MAX] {
            for memory in [0u64, 1 << 30, (1 << 40) + 12345, u64::MAX] {
                let scale = Scale::of(cpu, memory);
                assert!(
                    scale.row_floor(scale.row(cpu)) <= cpu
                        && scale.column_floor(scale.column(memory)) <= memory
                );
            }
        }
    }
}
