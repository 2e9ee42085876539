//! The distribution of measurements: median, range, percentiles, ratios. Pure.

/// The median and the range of measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Distribution {
    /// The distribution of these values; `None` without values.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let sorted = sort(values);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median, min, max })
    }
}

/// The least value that this share of the values does not exceed (nearest rank); `None` without values.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let sorted = sort(values);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Whether at least one of this number of samples is expected beyond the percentile.
pub fn supports(share: f64, samples: usize) -> bool {
    // 100 samples support 0.99, although 0.99 is not exact.
    (1.0 - share) * samples as f64 > 1.0 - 1e-9
}

/// The ratio of each pair.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

fn sort(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_depend_on_order() {
        assert_eq!(Distribution::from_values(&[]), None);
        assert_eq!(Distribution::from_values(&[3.0]), Some(Distribution { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(Distribution::from_values(&[9.0, 1.0, 2.0]), Some(Distribution { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(
            Distribution::from_values(&[4.0, 1.0, 9.0, 2.0]),
            Some(Distribution { median: 3.0, min: 1.0, max: 9.0 })
        );
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let of = |share| percentile(&values, share);
        assert_eq!([of(0.0), of(0.5), of(0.99), of(1.0)], [Some(1.0), Some(100.0), Some(198.0), Some(200.0)]);
        assert_eq!((percentile(&[], 0.5), percentile(&[7.0], 0.99)), (None, Some(7.0)));
    }

    #[test]
    fn a_ratio_is_of_neighbours() {
        assert_eq!(ratios(&[1.0, 9.0, 5.0], &[2.0, 3.0]), [0.5, 3.0]);
    }
}
