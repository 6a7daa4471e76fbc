//! What a migration costs, learned from migrations that were measured.
//!
//! Pre-copy sends all memory once and then, round after round, what was written meanwhile. With bandwidth `b` and dirty
//! rate `d` a round's bytes are `d/b` of the one before, until the rest can be sent within the downtime that is
//! allowed (Clark et al., "Live Migration of Virtual Machines", NSDI 2005, section 5). The model follows those rounds
//! in whole numbers, so that equal samples give equal plans on every machine.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use drover_ids::VmId;
use drover_units::{Bytes, BytesPerSec};

/// Samples that the cluster's bandwidth is taken from. A few dozen make a median steady and still follow a change of
/// the network within a day of ordinary moves.
const SAMPLES_KEPT: usize = 64;
/// VMs whose own behaviour is remembered. At about 50 bytes each this is half a megabyte; the one measured longest ago
/// gives way.
const VMS_REMEMBERED: usize = 10_000;
/// Rounds after which a copy that does not converge is taken as it is: the sender slows the guest down by then.
const ROUNDS_MAX: u32 = 30;
/// Before anything was measured: a 10 Gbit/s link at two thirds.
const BANDWIDTH_AT_FIRST: u64 = 800 << 20;
/// Start, handshake and switch-over of a migration of an empty VM.
const FIXED_TIME: Duration = Duration::from_millis(200);
/// What may be left for the pause at the end, as time on the wire.
const PAUSE_ALLOWED: Duration = Duration::from_millis(100);

/// A migration that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationSample {
    /// Whose.
    pub vm: VmId,
    /// The VM's memory.
    pub memory: Bytes,
    /// What was sent.
    pub sent: Bytes,
    /// From start to the target's word that it runs.
    pub total: Duration,
    /// How long the guest stood still.
    pub downtime: Duration,
}

/// What a migration is expected to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationCost {
    /// From start to end.
    pub time: Duration,
    /// Over the network.
    pub sent: Bytes,
    /// How long the guest stands still.
    pub downtime: Duration,
}

/// Expectations, from [`MigrationSample`]s. Cheap to clone; feed it every migration that ends well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CostModel {
    /// The most recent, oldest first.
    recent: VecDeque<MigrationSample>,
    /// What each VM was seen to write while it moved, with the number of the sample.
    dirty: BTreeMap<VmId, (u64, BytesPerSec)>,
    observed: u64,
    medians: Medians,
}

/// What a VM that nobody measured is taken to be like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Medians {
    bandwidth: u64,
    dirty_rate: u64,
    downtime: Duration,
}

impl CostModel {
    /// One that has seen nothing and expects a 10 Gbit/s network.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns from a migration. One that sent nothing or took no time says nothing and is left out.
    pub fn observe(&mut self, sample: MigrationSample) {
        if sample.sent == Bytes::ZERO || sample.total.is_zero() {
            return;
        }
        self.observed += 1;
        if self.recent.len() == SAMPLES_KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
        self.dirty.insert(sample.vm, (self.observed, BytesPerSec::new(dirty_rate(&sample))));
        if self.dirty.len() > VMS_REMEMBERED {
            let oldest = self.dirty.iter().min_by_key(|(_, (at, _))| *at).map(|(vm, _)| *vm);
            if let Some(oldest) = oldest {
                self.dirty.remove(&oldest);
            }
        }
        self.medians = Medians {
            bandwidth: median(self.recent.iter().map(bandwidth)),
            dirty_rate: median(self.recent.iter().map(dirty_rate)),
            downtime: median(self.recent.iter().map(|sample| sample.downtime)),
        };
    }

    /// Forgets a VM that is gone.
    pub fn forget(&mut self, vm: VmId) {
        self.dirty.remove(&vm);
    }

    /// Bytes a second that migrations got, the median of the recent ones.
    pub fn bandwidth(&self) -> BytesPerSec {
        BytesPerSec::new(if self.recent.is_empty() {
            BANDWIDTH_AT_FIRST
        } else {
            self.medians.bandwidth.max(1)
        })
    }

    /// What moving a VM takes. `dirty_rate` is what is measured of it now; without it, what its last migration showed;
    /// without that, what is usual here.
    pub fn expect(&self, vm: VmId, memory: Bytes, dirty_rate: Option<BytesPerSec>) -> MigrationCost {
        let dirty_rate = dirty_rate
            .or_else(|| self.dirty.get(&vm).map(|(_, rate)| *rate))
            .map_or(self.medians.dirty_rate, BytesPerSec::get);
        let bandwidth = self.bandwidth().get();
        let pause_bytes = per_time(bandwidth, PAUSE_ALLOWED);
        let (mut sent, mut round) = (0_u64, memory.get());
        for _ in 0..ROUNDS_MAX {
            sent = sent.saturating_add(round);
            // Written while this round was sent; a guest cannot dirty more than it has.
            let written = u128::from(round) * u128::from(dirty_rate) / u128::from(bandwidth);
            round = u64::try_from(written).unwrap_or(u64::MAX).min(memory.get());
            if round <= pause_bytes {
                break;
            }
        }
        sent = sent.saturating_add(round);
        MigrationCost {
            time: FIXED_TIME + time_of(sent, bandwidth),
            sent: Bytes::new(sent),
            downtime: self.medians.downtime.max(time_of(round, bandwidth)),
        }
    }
}

/// Bytes a second of a migration.
fn bandwidth(sample: &MigrationSample) -> u64 {
    let nanos = sample.total.as_nanos().max(1);
    u64::try_from(u128::from(sample.sent.get()) * 1_000_000_000 / nanos).unwrap_or(u64::MAX).max(1)
}

/// What was sent beyond the memory itself had been written meanwhile. Pages that were never touched are not sent, so
/// this is the least that was written.
fn dirty_rate(sample: &MigrationSample) -> u64 {
    let again = sample.sent.saturating_sub(sample.memory);
    let nanos = sample.total.as_nanos().max(1);
    u64::try_from(u128::from(again.get()) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

fn per_time(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn median<T: Ord + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    let middle = values.len() / 2;
    values.into_iter().nth(middle).unwrap_or_default()
}

#[cfg(test)]
mod tests;
