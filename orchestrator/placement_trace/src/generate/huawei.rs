//! The shape of Huawei-East-1.

use std::{cmp::Reverse, collections::BinaryHeap, f64::consts::TAU, time::Duration};

use drover_units::{Bytes, VcpuCount};

use super::{Random, Seed};
use crate::{
    Flavour, Moment, Priority, Trace,
    trace::{Stay, assemble},
};

/// Cores, GB and the share of requests of each of the 15 flavours.
///
/// Published are their number, that more than two thirds of requests are 1 core with at most 2 GB, and that 1U1G, 1U2G, 2U4G
/// and 4U8G are the main body; the documentation's table of sharing VMs names nine of them. The shares of the rest are ours:
/// a tail that gets thinner with size.
const FLAVOURS: [(u32, u64, f64); 15] = [
    (1, 1, 0.330),
    (1, 2, 0.355),
    (2, 4, 0.130),
    (4, 8, 0.085),
    (2, 8, 0.022),
    (4, 16, 0.020),
    (8, 16, 0.015),
    (1, 4, 0.012),
    (8, 32, 0.010),
    (2, 2, 0.008),
    (2, 16, 0.004),
    (4, 32, 0.003),
    (16, 32, 0.003),
    (16, 64, 0.002),
    (32, 64, 0.001),
];

const DAY_SECS: f64 = 86_400.0;

/// How much, over how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HuaweiShape {
    /// VMs created.
    pub creations: usize,
    /// VMs deleted; the difference is alive at the end.
    pub deletions: usize,
    /// From the first to the last event.
    pub days: u32,
}

impl Default for HuaweiShape {
    /// The published numbers: 125,430 creations and 116,313 deletions in 30 days, which leaves 9,117 alive.
    fn default() -> Self {
        Self { creations: 125_430, deletions: 116_313, days: 30 }
    }
}

impl HuaweiShape {
    /// The same shape with a given number of creations, and as many deletions in proportion.
    #[must_use]
    pub fn scaled(creations: usize) -> Self {
        let whole = Self::default();
        let deletions = (creations as f64 * whole.deletions as f64 / whole.creations as f64) as usize;
        Self { creations, deletions, ..whole }
    }
}

/// Number of VMs alive over time, as a share of those alive at the end: "increase, flux, increase, flux" of the published
/// curve, with its daily swing. Time is a share of the whole.
fn alive_share(time: f64, days: f64) -> f64 {
    const KNEES: [(f64, f64); 5] = [(0.0, 0.0), (0.25, 0.50), (0.5, 0.54), (0.75, 0.90), (1.0, 1.0)];
    let pair = KNEES.windows(2).find(|pair| time <= pair[1].0).unwrap_or(&KNEES[3..]);
    let along = (time - pair[0].0) / (pair[1].0 - pair[0].0);
    let level = pair[0].1 + (pair[1].1 - pair[0].1) * along;
    // No swing at either end, where the numbers are fixed.
    let swing = 0.03 * (TAU * time * days).sin() * (time * (1.0 - time) * 8.0).min(1.0);
    (level + swing).max(0.0)
}

/// Requests in an hour against the mean: fewer at night and at weekends.
fn rate(days: f64) -> f64 {
    let daily = 1.0 + 0.45 * (TAU * (days - 0.4)).sin();
    let weekend = if days.rem_euclid(7.0) >= 5.0 { 0.75 } else { 1.0 };
    daily * weekend
}

/// Seconds for which a VM means to stay. Most are gone within hours, a few stay for good; the proportions make about as many
/// alive as the published curve has, and deletions then take those first that mean to leave first.
fn stay_secs(random: &mut Random) -> f64 {
    match random.unit() {
        short if short < 0.75 => random.log_normal(1_800.0, 1.3),
        medium if medium < 0.92 => random.log_normal(DAY_SECS, 1.2),
        _ => random.log_normal(40.0 * DAY_SECS, 0.8),
    }
}

/// A trace of this shape.
///
/// # Panics
/// If the shape has no creations, more deletions than creations, or no days.
#[must_use]
pub fn huawei(shape: &HuaweiShape, seed: Seed) -> Trace {
    assert!(shape.creations > 0 && shape.deletions <= shape.creations && shape.days > 0, "{shape:?}");
    let mut random = Random::new(seed);
    let days = f64::from(shape.days);
    let begins = begins(shape.creations, days, &mut random);
    let alive_at_end = (shape.creations - shape.deletions) as f64;

    let mut stays: Vec<Stay> = Vec::with_capacity(shape.creations);
    // Who means to leave when, the soonest on top.
    let mut leaving: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut deleted = 0;
    let leave = |stays: &mut Vec<Stay>, leaving: &mut BinaryHeap<_>, at: Moment| {
        let Some(Reverse((_, index))) = leaving.pop() else { return false };
        let stay: &mut Stay = &mut stays[index];
        stay.end = Some(at.max(stay.begin + Duration::from_secs(1)));
        true
    };
    for begin in begins {
        let target = alive_at_end * alive_share(begin / (days * DAY_SECS), days);
        let due = ((stays.len() as f64 - target).max(0.0) as usize).min(shape.deletions);
        let at = Moment::from_secs(begin as u64);
        while deleted < due && leave(&mut stays, &mut leaving, at) {
            deleted += 1;
        }
        let (cores, gb, _) = FLAVOURS[random.weighted(FLAVOURS.iter().map(|(_, _, share)| *share))];
        let until = begin + stay_secs(&mut random);
        leaving.push(Reverse((until as u64, stays.len())));
        let flavour = Flavour { vcpus: VcpuCount::new(cores), memory: Bytes::gib(gb) };
        stays.push(Stay { begin: at, end: None, flavour, priority: Priority::High });
    }
    let end = Moment::from_secs((days * DAY_SECS) as u64);
    while deleted < shape.deletions && leave(&mut stays, &mut leaving, end) {
        deleted += 1;
    }
    assemble(stays, 0).expect("a generated trace has requests, and fewer than the limit")
}

/// Seconds at which VMs are created, in order: drawn by rejection from the daily rate.
fn begins(count: usize, days: f64, random: &mut Random) -> Vec<f64> {
    let most = 1.45;
    let mut begins = Vec::with_capacity(count);
    while begins.len() < count {
        let day = random.unit() * days;
        if random.chance(rate(day) / most) {
            begins.push(day * DAY_SECS);
        }
    }
    begins.sort_by(f64::total_cmp);
    begins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, huawei as format};

    /// What is published: VMAgent's documentation, "Statistical Analysis".
    fn check_published_shape(trace: &Trace) {
        assert_eq!(trace.flavours().len(), 15);
        assert_eq!((trace.creations(), trace.deletions()), (125_430, 116_313));
        assert!((29.9..=30.001).contains(&trace.end().days()), "{}", trace.end().days());
        let counts = trace.requests_by_flavour();
        let small = |flavour: &Flavour| flavour.vcpus.get() == 1 && flavour.memory <= Bytes::gib(2);
        let smalls: u64 =
            trace.flavours().iter().zip(&counts).filter(|(f, _)| small(f)).map(|(_, count)| count).sum();
        assert!(3 * smalls > 2 * 125_430, "{smalls} of 125,430 are 1 core with at most 2 GB");
        let mut by_count: Vec<_> = counts.iter().zip(trace.flavours()).collect();
        by_count.sort_by(|a, b| b.cmp(a));
        let main: Vec<_> = by_count[..4].iter().map(|(_, f)| (f.vcpus.get(), f.memory.get() >> 30)).collect();
        assert_eq!(main, [(1, 2), (1, 1), (2, 4), (4, 8)]);
        // "From 0 to more than 8000"; the counts leave 9,117 at the end.
        assert!((8_000..=9_400).contains(&trace.alive_max()), "{}", trace.alive_max());
    }

    #[test]
    fn it_has_the_published_shape_whatever_the_seed() {
        for seed in 0..3 {
            check_published_shape(&huawei(&HuaweiShape::default(), Seed(seed)));
        }
    }

    #[test]
    fn the_number_alive_rises_rests_rises_and_rests() {
        let trace = huawei(&HuaweiShape::default(), Seed(1));
        let mut alive: i64 = 0;
        let mut at_day = vec![0; 31];
        for event in trace.events() {
            alive += if event.action == Action::Delete { -1 } else { 1 };
            at_day[event.at.days() as usize] = alive;
        }
        let gain = |from: usize, to: usize| at_day[to] - at_day[from];
        assert!(gain(0, 7) > 3_500, "{at_day:?}");
        assert!(gain(8, 14).abs() < 700, "{at_day:?}");
        assert!(gain(15, 22) > 2_500, "{at_day:?}");
        assert!(gain(23, 29).abs() < 1_200, "{at_day:?}");
    }

    #[test]
    fn most_vms_are_gone_within_hours_and_some_stay() {
        let trace = huawei(&HuaweiShape::default(), Seed(1));
        let lifetimes: Vec<_> = trace
            .events()
            .iter()
            .filter_map(|event| match event.action {
                Action::Create { lifetime, .. } => Some(lifetime),
                Action::Delete => None,
            })
            .collect();
        let within = |limit| lifetimes.iter().flatten().filter(|l| l.duration() < limit).count();
        assert!(within(Duration::from_secs(6 * 3600)) > lifetimes.len() / 2);
        assert!(within(Duration::from_secs(86_400 * 5)) < lifetimes.len());
    }

    #[test]
    fn equal_seeds_give_equal_traces_and_others_do_not() {
        let shape = HuaweiShape::scaled(2_000);
        assert_eq!(huawei(&shape, Seed(3)), huawei(&shape, Seed(3)));
        assert_ne!(huawei(&shape, Seed(3)), huawei(&shape, Seed(4)));
    }

    #[test]
    fn it_says_the_same_when_written_and_read() {
        let trace = huawei(&HuaweiShape::scaled(5_000), Seed(5));
        let mut file = Vec::new();
        format::write(&trace, &mut file).unwrap();
        let mut again = Vec::new();
        let read = format::read(&file[..]).unwrap();
        format::write(&read, &mut again).unwrap();
        assert_eq!((read.creations(), read.deletions()), (trace.creations(), trace.deletions()));
        assert_eq!(read.requests_by_flavour(), trace.requests_by_flavour());
        assert_eq!(String::from_utf8(file).unwrap(), String::from_utf8(again).unwrap());
    }
}
