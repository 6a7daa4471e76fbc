//! Measuring a disk: what the probe is asked for, and how it counts latencies.
//!
//! `probe.bench=<pattern>,<request bytes>,<queue depth>,<milliseconds>[,<span>[,<wait>[,<queues>]]]`: the probe keeps `queue depth` requests
//! of one size in flight, first for [`WARM_UP_MS`] without counting, then for so long; it reports where counting begins and what
//! was counted. Requests are aligned to their size and lie within the first `span` bytes (by default the whole disk).

use core::fmt;

use crate::stamp::BLOCK_BYTES;

/// Caches, connections and the backend's own start-up settle in this time.
pub const WARM_UP_MS: u64 = 500;
/// The largest request: what sequential comparisons commonly use.
pub const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Ten minutes.
pub const BENCH_MS_MAX: u64 = 600_000;

/// Queues that the probe can use at a time.
pub const QUEUES_MAX: u64 = 2;

/// The order of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads at random places.
    RandomRead,
    /// Writes at random places.
    RandomWrite,
    /// Reads one after the other, from the start again at the end.
    SequentialRead,
    /// Writes one after the other.
    SequentialWrite,
}

impl Pattern {
    /// Every pattern with its word, which is also fio's.
    pub const WORDS: [(Pattern, &'static str); 4] = [
        (Pattern::RandomRead, "randread"),
        (Pattern::RandomWrite, "randwrite"),
        (Pattern::SequentialRead, "read"),
        (Pattern::SequentialWrite, "write"),
    ];

    /// The pattern's word.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(pattern, _)| *pattern == self).map_or("", |(_, word)| word)
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        matches!(self, Pattern::RandomWrite | Pattern::SequentialWrite)
    }

    /// Whether each place is drawn.
    pub fn is_random(self) -> bool {
        matches!(self, Pattern::RandomRead | Pattern::RandomWrite)
    }
}

/// How the probe waits for completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Sleeps until an interrupt: the VMM and the storage have the CPU meanwhile.
    #[default]
    Sleep,
    /// Looks at the used ring all the time: the vCPU is busy, and the guest adds next to nothing to a latency.
    Poll,
}

impl Wait {
    fn word(self) -> &'static str {
        match self {
            Wait::Sleep => "sleep",
            Wait::Poll => "poll",
        }
    }
}

/// One measurement. Displays as the value of `probe.bench=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchWork {
    /// The order of requests.
    pub pattern: Pattern,
    /// Bytes of each, a multiple of 4096 up to [`REQUEST_BYTES_MAX`].
    pub request_bytes: u64,
    /// Requests in flight, `1..=`[`QUEUE_DEPTH_MAX`](crate::command_line::QUEUE_DEPTH_MAX).
    pub queue_depth: u64,
    /// How long is counted, `1..=`[`BENCH_MS_MAX`].
    pub ms: u64,
    /// The part of the disk that is used, in bytes from its start, at least one request; 0 for all of it.
    pub span_bytes: u64,
    /// How completions are waited for.
    pub wait: Wait,
    /// Queues of the disk among which requests are spread evenly. One vCPU serves them all.
    pub queues: u64,
}

impl fmt::Display for BenchWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BenchWork { pattern, request_bytes, queue_depth, ms, span_bytes, wait, queues } = self;
        let (pattern, wait) = (pattern.word(), wait.word());
        write!(f, "{pattern},{request_bytes},{queue_depth},{ms},{span_bytes},{wait},{queues}")
    }
}

impl BenchWork {
    /// Reads the value of `probe.bench=`. Sizes may end in `K` or `M`.
    ///
    /// # Errors
    /// What would be valid.
    pub(crate) fn parse(value: &str) -> Result<BenchWork, &'static str> {
        use crate::command_line::{QUEUE_DEPTH_MAX, byte_size, number_in};
        const EXPECTED: &str = "<randread|randwrite|read|write>,<bytes of a request: 4K to 1M, a multiple of 4K>,<depth: 1 to 64>,\
                                <milliseconds: 1 to 600000>[,<span: at least a request, 0 for all>[,<sleep|poll>[,<queues: 1 or 2>]]]";
        let mut parts = value.split(',');
        let mut next = || parts.next();
        let word = next().ok_or(EXPECTED)?;
        let (pattern, _) = Pattern::WORDS.into_iter().find(|(_, known)| *known == word).ok_or(EXPECTED)?;
        let whole = |bytes: &u64| *bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES as u64);
        let request_bytes = next().and_then(byte_size).filter(whole).ok_or(EXPECTED)?;
        let queue_depth = next().and_then(|text| number_in(text, 1, QUEUE_DEPTH_MAX)).ok_or(EXPECTED)?;
        let ms = next().and_then(|text| number_in(text, 1, BENCH_MS_MAX)).ok_or(EXPECTED)?;
        let span_bytes = next().map_or(Some(0), byte_size).ok_or(EXPECTED)?;
        let wait = match next() {
            None | Some("sleep") => Wait::Sleep,
            Some("poll") => Wait::Poll,
            Some(_) => return Err(EXPECTED),
        };
        let queues = next().map_or(Some(1), |text| number_in(text, 1, QUEUES_MAX)).ok_or(EXPECTED)?;
        if request_bytes > REQUEST_BYTES_MAX || (1..request_bytes).contains(&span_bytes) || next().is_some() {
            return Err(EXPECTED);
        }
        Ok(BenchWork { pattern, request_bytes, queue_depth, ms, span_bytes, wait, queues })
    }
}

/// Buckets in each power of two: a reported latency is at most an eighth too long.
const STEPS: usize = 8;
/// Powers of two above the first [`STEPS`] microseconds: up to more than an hour.
const OCTAVES: usize = 30;
const BUCKETS: usize = STEPS * (OCTAVES + 1);

/// Latencies in fixed buckets: one microsecond wide up to 8 µs, then eight to each power of two.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: [u32; BUCKETS],
    total: u64,
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { counts: [0; BUCKETS], total: 0, max_us: 0 }
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, us: u64) {
        let count = &mut self.counts[bucket_of(us)];
        *count = count.saturating_add(1);
        self.total += 1;
        self.max_us = self.max_us.max(us);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest, exactly.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// The end of the bucket within which so many per thousand lie, 0 without any, never above the longest.
    pub fn per_mille(&self, per_mille: u64) -> u64 {
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return end_of(bucket).min(self.max_us);
            }
        }
        self.max_us
    }
}

fn bucket_of(us: u64) -> usize {
    let steps = STEPS as u64;
    if us < steps {
        return us as usize;
    }
    // The three bits below the highest one choose the step.
    let octave = us.ilog2() - steps.ilog2();
    let step = (us >> octave) - steps;
    (STEPS + octave as usize * STEPS + step as usize).min(BUCKETS - 1)
}

/// The last microsecond that a bucket holds.
fn end_of(bucket: usize) -> u64 {
    let steps = STEPS as u64;
    let Some(above) = bucket.checked_sub(STEPS) else { return bucket as u64 };
    let (octave, step) = (above / STEPS, (above % STEPS) as u64);
    ((steps + step + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_is_read_with_and_without_its_defaults() {
        let work = BenchWork::parse("randwrite,4K,32,2000").unwrap();
        let expect = BenchWork {
            pattern: Pattern::RandomWrite,
            request_bytes: 4096,
            queue_depth: 32,
            ms: 2000,
            span_bytes: 0,
            wait: Wait::Sleep,
            queues: 1,
        };
        assert_eq!(work, expect);
        let work = BenchWork::parse("read,1M,4,10,1024M,poll,2").unwrap();
        assert_eq!((work.span_bytes, work.wait, work.queues), (1 << 30, Wait::Poll, 2));
        assert_eq!(BenchWork::parse(&work.to_string()), Ok(work));
    }

    #[test]
    fn what_no_disk_can_do_is_refused() {
        for value in [
            "",
            "rand,4K,1,1",
            "read,4095,1,1",
            "read,0,1,1",
            "read,2M,1,1",
            "read,4K,0,1",
            "read,4K,65,1",
            "read,4K,1,0",
            "read,1M,1,1,4K",
            "read,4K,1,1,0,spin",
            "read,4K,1,1,0,poll,more",
            "read,4K,1,1,0,poll,3",
            "read,4K,1,1,0,poll,1,more",
        ] {
            assert!(BenchWork::parse(value).is_err(), "{value}");
        }
    }

    #[test]
    fn percentiles_lie_where_the_samples_do() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.per_mille(500), 0);
        (1..=1000).for_each(|us| latencies.record(us));
        assert_eq!((latencies.count(), latencies.max_us()), (1000, 1000));
        for (per_mille, exact) in [(500, 500), (990, 990), (999, 999)] {
            let told = latencies.per_mille(per_mille);
            assert!((exact..=exact + exact / 8).contains(&told), "{per_mille}: {told}");
        }
        assert_eq!(latencies.per_mille(1), 1);
    }

    proptest! {
        #[test]
        fn every_latency_lies_in_a_bucket_that_ends_an_eighth_above_it_at_most(us in 0_u64..1 << 32) {
            let end = end_of(bucket_of(us));
            prop_assert!(end >= us && end <= us + us / 8, "{us} in a bucket that ends at {end}");
        }

        #[test]
        fn the_longest_latencies_are_counted_too(us: u64) {
            let mut latencies = Latencies::default();
            latencies.record(us);
            prop_assert_eq!(latencies.max_us(), us);
            prop_assert!(latencies.per_mille(1000) <= us);
        }
    }
}
