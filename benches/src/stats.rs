//! What is made of samples: medians, tails, and the ratio of pairs with an interval that says how sure it is.

use serde::{Deserialize, Serialize};

/// How often a bootstrap draws.
const DRAWS: usize = 2000;

/// The samples of one arm of an experiment, round by round. The arms of a round ran one after the other: a pair is
/// what two of them measured in the same round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<Vec<f64>>);

/// An estimate, and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Samples {
    pub(crate) fn all(&self) -> Vec<f64> {
        let mut all: Vec<f64> = self.0.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        all
    }

    fn medians(&self) -> Vec<f64> {
        self.0.iter().map(|round| median(round)).collect()
    }

    /// How many times `base`, pair by pair.
    pub(crate) fn ratio_to(&self, base: &Samples) -> Option<Estimate> {
        estimate(&self.pairs(base, |a, b| a / b))
    }

    /// How much more than `base`, pair by pair.
    pub(crate) fn added_to(&self, base: &Samples) -> Option<Estimate> {
        estimate(&self.pairs(base, |a, b| a - b))
    }

    fn pairs(&self, base: &Samples, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.medians()
            .into_iter()
            .zip(base.medians())
            .map(|(a, b)| f(a, b))
            .filter(|x| x.is_finite())
            .collect()
    }
}

/// The value below which a share of the values lies. The values are sorted.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// The median, and the percentile bootstrap of it. The draws are the same in every run.
pub(crate) fn estimate(values: &[f64]) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut medians: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let draw: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
            median(&draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Some(Estimate { value: median(values), low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) })
}

/// xorshift64*: good enough to draw with, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.99), 9.9);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_constant_ratio_is_found_under_drift() {
        let base: Vec<Vec<f64>> = (1..=20).map(|i| vec![f64::from(i), f64::from(i)]).collect();
        let slow = base.iter().map(|round| round.iter().map(|x| x * 1.5).collect()).collect();
        let ratio = Samples(slow).ratio_to(&Samples(base)).unwrap();
        assert_eq!((ratio.value, ratio.low, ratio.high), (1.5, 1.5, 1.5));
    }

    #[test]
    fn the_interval_holds_the_median_and_widens_with_noise() {
        let noise: Vec<f64> = (0..50).map(|i| if i % 2 == 0 { 1.0 } else { 2.0 }).collect();
        let estimate = estimate(&noise).unwrap();
        assert!(estimate.low <= estimate.value && estimate.value <= estimate.high);
        assert!(estimate.high - estimate.low >= 0.5, "{estimate:?}");
        assert_eq!(super::estimate(&[]), None);
    }
}
