//! Counts of what happens, taken without a lock and read by whoever asks.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Bounds for times, in microseconds: 100 µs to 60 s.
pub const TIMES: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
/// Bounds for how long commands run, in microseconds: 1 ms to a day.
pub const RUNS: &[u64] = &[
    1_000,
    5_000,
    25_000,
    100_000,
    500_000,
    1_000_000,
    5_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
    7_200_000_000,
    86_400_000_000,
];
/// Bounds for how many at a time.
pub const SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256];

/// How often values fell up to each of some bounds, and their sum. Times are microseconds.
///
/// A reader may see a value in the buckets that is not in the sum yet: both are right a moment later.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One more than there are bounds: the rest.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What a [`Histogram`] held when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Upper bound of a bucket, and how many values fell up to it.
    pub upto: Vec<(u64, u64)>,
    /// How many values there were.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
}

impl Histogram {
    /// An empty one; `bounds` rise.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Counts a value.
    pub fn add(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts a time, in microseconds.
    pub fn add_time(&self, time: Duration) {
        self.add(time.as_micros().try_into().unwrap_or(u64::MAX));
    }

    /// What it holds now.
    pub fn read(&self) -> Distribution {
        let mut count = 0;
        let mut next = self.counts.iter().map(|bucket| {
            count += bucket.load(Ordering::Relaxed);
            count
        });
        let upto = self.bounds.iter().copied().zip(&mut next).collect();
        let _rest = next.next();
        drop(next);
        Distribution { upto, count, sum: self.sum.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_in_its_bucket_and_what_is_beyond_all_is_counted() {
        let sizes = Histogram::new(SIZES);
        for value in [0, 1, 2, 3, 256, 1000] {
            sizes.add(value);
        }
        let read = sizes.read();
        assert_eq!((read.count, read.sum), (6, 1262));
        assert_eq!(read.upto[..3], [(1, 2), (2, 3), (4, 4)]);
        assert_eq!(read.upto.last(), Some(&(256, 5)));
    }

    #[test]
    fn bounds_rise() {
        for bounds in [TIMES, RUNS, SIZES] {
            assert!(bounds.is_sorted_by(|a, b| a < b));
        }
    }
}
