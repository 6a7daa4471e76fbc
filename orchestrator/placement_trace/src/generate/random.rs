//! Random numbers that are the same in every version.

/// Where a sequence of random numbers begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed(pub u64);

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
///
/// Figures are quoted for seeds, so a seed must mean the same in years to come: the crates for random numbers reserve the
/// right to change theirs between versions.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins a sequence.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self(seed.0)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1): the 53 bits that a float can tell apart.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `bound`, by multiplication: the bias is below 2^-32 for the bounds used here.
    ///
    /// # Panics
    /// If the bound is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "no number is below zero");
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// The index of one of some weights.
    ///
    /// # Panics
    /// Without weights.
    pub fn weighted(&mut self, weights: impl Iterator<Item = f64> + Clone) -> usize {
        let mut rest = self.unit() * weights.clone().sum::<f64>();
        let mut last = None;
        for (index, weight) in weights.enumerate() {
            last = Some(index);
            if rest < weight {
                break;
            }
            rest -= weight;
        }
        last.expect("there is something to choose from")
    }

    /// A log-normal value of this median, where `sigma` is the deviation of its logarithm (Box and Muller, 1958).
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        median * (sigma * radius * (std::f64::consts::TAU * self.unit()).cos()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_the_reference() {
        // First outputs of the authors' reference implementation for the seed 1234567.
        let mut random = Random::new(Seed(1_234_567));
        assert_eq!([random.bits(), random.bits()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn values_follow_their_distributions() {
        let mut random = Random::new(Seed(1));
        let count = 20_000;
        let heavy = (0..count).filter(|_| random.weighted([1.0, 3.0].into_iter()) == 1).count();
        assert!((14_600..15_400).contains(&heavy), "{heavy}");
        let mut values: Vec<f64> = (0..count).map(|_| random.log_normal(60.0, 1.5)).collect();
        values.sort_by(f64::total_cmp);
        assert!((56.0..64.0).contains(&values[count / 2]), "{}", values[count / 2]);
        assert!((0..count).all(|_| random.below(3) < 3));
    }
}
