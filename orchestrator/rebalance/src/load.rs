//! How full hosts are, and what a move would change: numbers only, no constraints.
//!
//! **Pressure** is the work that waits: on a host with `c` cores of which the share `u` is in use, `c·u` vCPUs want to
//! run at any time, and each finds its core taken about as often as cores are in use, so about `c·u²` cores' worth of
//! work waits. It is convex: moving load from a fuller host to an emptier one of the same kind always lowers the sum,
//! and evening out what is nearly even brings nearly nothing. Memory counts in the same way, as the cores that the
//! share stands for, so that both dimensions add up.

use std::collections::BTreeSet;

use crate::{CoreSeconds, Dimension, PerMille};

/// CPU and memory.
pub(crate) const DIMENSIONS: [Dimension; 2] = [Dimension::Cpu, Dimension::Memory];

/// An amount per dimension: cores, bytes.
pub(crate) type Amount = [f64; 2];

/// How full one host is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gauge {
    /// What it has to give.
    pub(crate) capacity: Amount,
    /// What is in use.
    pub(crate) used: Amount,
}

impl Gauge {
    /// The share in use of a dimension. A host without any of it is full.
    pub(crate) fn share(&self, dimension: usize) -> f64 {
        match self.capacity[dimension] {
            capacity if capacity > 0.0 => self.used[dimension] / capacity,
            _ => 1.0,
        }
    }

    /// Cores' worth of work that waits, weighed.
    pub(crate) fn pressure(&self, weights: Amount) -> f64 {
        let squares = weights[0] * self.share(0).powi(2) + weights[1] * self.share(1).powi(2);
        self.capacity[0] * squares
    }

    pub(crate) fn plus(&self, load: Amount) -> Self {
        Self { capacity: self.capacity, used: [self.used[0] + load[0], self.used[1] + load[1]] }
    }

    pub(crate) fn minus(&self, load: Amount) -> Self {
        Self {
            capacity: self.capacity,
            used: [(self.used[0] - load[0]).max(0.0), (self.used[1] - load[1]).max(0.0)],
        }
    }
}

/// A share as thousandths, for people.
pub(crate) fn per_mille(share: f64) -> PerMille {
    // A share is small and not negative; a cast of a float saturates.
    PerMille((share * 1000.0).round() as u32)
}

/// The loads of all hosts that take part, in order of how far above the others they are.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    gauges: Vec<Gauge>,
    mean: Amount,
    /// Hosts by how far they are above the mean in their worst dimension.
    by_excess: BTreeSet<(Key, usize)>,
    /// Hosts by how full they are in both dimensions together.
    by_load: BTreeSet<(Key, usize)>,
}

/// A float in an order: finite, so `total_cmp` is what one expects.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key(f64);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Board {
    /// Every host's gauge. Hosts are known by their position.
    pub(crate) fn new(gauges: Vec<Gauge>) -> Self {
        let mut board =
            Self { mean: mean(&gauges), gauges, by_excess: BTreeSet::new(), by_load: BTreeSet::new() };
        for host in 0..board.gauges.len() {
            board.insert(host);
        }
        board
    }

    fn insert(&mut self, host: usize) {
        let gauge = self.gauges[host];
        self.by_excess.insert((Key(self.excess(host).1), host));
        self.by_load.insert((Key(gauge.share(0) + gauge.share(1)), host));
    }

    fn remove(&mut self, host: usize) {
        let gauge = self.gauges[host];
        self.by_excess.remove(&(Key(self.excess(host).1), host));
        self.by_load.remove(&(Key(gauge.share(0) + gauge.share(1)), host));
    }

    pub(crate) fn gauge(&self, host: usize) -> &Gauge {
        &self.gauges[host]
    }

    /// The dimension in which a host is furthest above the mean, and by how much.
    pub(crate) fn excess(&self, host: usize) -> (usize, f64) {
        let over = |dimension: usize| self.gauges[host].share(dimension) - self.mean[dimension];
        if over(1) > over(0) { (1, over(1)) } else { (0, over(0)) }
    }

    /// Hosts, the one furthest above the mean first.
    pub(crate) fn hottest(&self) -> impl Iterator<Item = usize> {
        self.by_excess.iter().rev().map(|(_, host)| *host)
    }

    /// Hosts, the emptiest first.
    pub(crate) fn coldest(&self) -> impl Iterator<Item = usize> {
        self.by_load.iter().map(|(_, host)| *host)
    }

    /// Takes a load from one host to another.
    pub(crate) fn shift(&mut self, from: usize, to: usize, load: Amount) {
        for host in [from, to] {
            self.remove(host);
        }
        self.gauges[from] = self.gauges[from].minus(load);
        self.gauges[to] = self.gauges[to].plus(load);
        for host in [from, to] {
            self.insert(host);
        }
    }

    /// The standard deviation of the hosts' shares in the dimension where it is largest.
    pub(crate) fn imbalance(&self) -> f64 {
        if self.gauges.is_empty() {
            return 0.0;
        }
        let deviation = |dimension: usize| {
            let squares = |gauge: &Gauge| (gauge.share(dimension) - self.mean[dimension]).powi(2);
            (self.gauges.iter().map(squares).sum::<f64>() / self.gauges.len() as f64).sqrt()
        };
        deviation(0).max(deviation(1))
    }

    /// Pressure that a move takes away for as long as `seconds`.
    pub(crate) fn gain(
        &self,
        from: usize,
        to: usize,
        load: Amount,
        weights: Amount,
        seconds: f64,
    ) -> CoreSeconds {
        let (source, target) = (&self.gauges[from], &self.gauges[to]);
        let before = source.pressure(weights) + target.pressure(weights);
        let after = source.minus(load).pressure(weights) + target.plus(load).pressure(weights);
        CoreSeconds((before - after) * seconds)
    }
}

/// What every host would have in use if each had the same share.
fn mean(gauges: &[Gauge]) -> Amount {
    let share = |dimension: usize| {
        let capacity: f64 = gauges.iter().map(|gauge| gauge.capacity[dimension]).sum();
        let used: f64 = gauges.iter().map(|gauge| gauge.used[dimension]).sum();
        if capacity > 0.0 { used / capacity } else { 0.0 }
    };
    [share(0), share(1)]
}

#[cfg(test)]
mod tests;
