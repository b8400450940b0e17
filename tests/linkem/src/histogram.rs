//! Durations counted in buckets whose width is at most an eighth of their value.

use std::time::Duration;

use serde::Serialize;

const STEPS: u64 = 8;

/// A histogram of durations, in microseconds.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
    min: Option<u64>,
}

/// What people want to know of a histogram, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Smallest.
    pub min: u64,
    /// Median.
    pub p50: u64,
    /// 90 % are no longer.
    pub p90: u64,
    /// 99 % are no longer.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}

/// The bucket of a value: exact below [`STEPS`], then [`STEPS`] per doubling.
fn bucket(micros: u64) -> usize {
    if micros < STEPS {
        return micros as usize;
    }
    let octave = u64::from(micros.ilog2() - STEPS.ilog2());
    (STEPS + octave * STEPS + (micros >> octave) - STEPS) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let octave = (bucket - STEPS) / STEPS;
    (((bucket - STEPS) % STEPS + STEPS + 1) << octave) - 1
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let index = bucket(micros);
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(micros);
        self.min = Some(self.min.map_or(micros, |min| min.min(micros)));
    }

    /// The value that the share `at` (0 to 1) does not exceed, microseconds, to an eighth.
    pub fn quantile(&self, at: f64) -> u64 {
        let wanted = (at * self.total as f64).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return upper(index).min(self.max);
            }
        }
        self.max
    }

    /// Its figures.
    pub fn summary(&self) -> Summary {
        Summary {
            min: self.min.unwrap_or(0),
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p99: self.quantile(0.99),
            max: self.max,
        }
    }

    /// Buckets that are not empty: largest value in microseconds, and count.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let all = self.counts.iter().enumerate();
        all.filter(|(_, count)| **count > 0)
            .map(|(index, count)| (upper(index), *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for value in (0..5000).chain([123_456, 9_999_999]) {
            let index = bucket(value);
            assert!(
                value <= upper(index) && (index == 0 || value > upper(index - 1)),
                "{value} {index}"
            );
        }
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.add(Duration::from_micros(micros));
        }
        let summary = histogram.summary();
        assert_eq!((summary.min, summary.max), (1, 1000));
        assert!((500..=563).contains(&summary.p50), "{summary:?}");
        assert!((990..=1000).contains(&summary.p99), "{summary:?}");
        assert_eq!(
            histogram.buckets().iter().map(|(_, count)| count).sum::<u64>(),
            1000
        );
    }
}
