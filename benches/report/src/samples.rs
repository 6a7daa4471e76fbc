//! Rounds and medians.

/// Rounds of a comparison whose medians are reported: an odd number, so that a median is a value that was measured.
pub const ROUNDS: usize = 5;

/// Each contender's name and what it reached in each round.
pub type Samples = Vec<(String, Vec<f64>)>;

/// Runs every contender once in each round, so that a slow moment of the machine meets all of them.
///
/// The order turns by one in each round: nobody always runs on caches that the same neighbour has left.
pub fn interleaved(rounds: usize, contenders: &mut [(&str, &mut dyn FnMut() -> f64)]) -> Samples {
    let mut samples: Samples =
        contenders.iter().map(|(name, _)| ((*name).to_owned(), Vec::with_capacity(rounds))).collect();
    let count = contenders.len();
    for round in 0..rounds {
        for turn in 0..count {
            let index = (round + turn) % count;
            samples[index].1.push(contenders[index].1());
        }
    }
    samples
}

/// The value in the middle, or the mean of the two in the middle; `None` without values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn check(values: &[f64], expect: Option<f64>) {
        assert_eq!(median(values), expect, "{values:?}");
    }

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0, 2.0, 9.0], Some(3.0));
    }

    #[test]
    fn contenders_take_turns_and_the_first_changes() {
        let order = RefCell::new(String::new());
        let turn = |name: char| {
            order.borrow_mut().push(name);
            1.0
        };
        let samples = interleaved(
            2,
            &mut [("a", &mut || turn('a')), ("b", &mut || turn('b')), ("c", &mut || turn('c'))],
        );
        assert_eq!(*order.borrow(), "abcbca");
        assert!(samples.iter().all(|(_, values)| values.len() == 2));
    }
}
