//! How much a computer may use: buckets, a day's total, and a note when a limit is met.
//!
//! A bucket is one number: the moment at which all that was taken will have been paid for. Nothing
//! has to run for it to fill.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A burst of new flows, or of queries, is this many seconds' worth.
const BURST_SECONDS: u64 = 4;
/// Bytes may run ahead of their limit by this long.
const RATE_AHEAD: Duration = Duration::from_millis(100);
/// Between two notes of one limit.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
const NANOS: u64 = 1_000_000_000;
const DAY: u64 = 24 * 60 * 60;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    START.elapsed().as_nanos() as u64
}

/// So many a second.
#[derive(Default)]
pub(super) struct Bucket(AtomicU64);

impl Bucket {
    /// Takes one; false: there is none. 0 a second is without a limit.
    pub(super) fn take(&self, per_second: u32) -> bool {
        per_second == 0 || self.take_at(now(), u64::from(per_second))
    }

    fn take_at(&self, now: u64, per_second: u64) -> bool {
        let (cost, ahead) = (NANOS / per_second, BURST_SECONDS * NANOS);
        let next = |paid: u64| Some(paid.max(now) + cost).filter(|paid| *paid <= now + ahead);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// Bits a second.
#[derive(Default)]
pub(super) struct Rate(AtomicU64);

impl Rate {
    /// Takes bytes that have been moved; returns how long to wait before moving more.
    pub(super) fn charge(&self, bytes: usize, bits_per_s: u64) -> Duration {
        if bits_per_s == 0 { Duration::ZERO } else { self.charge_at(now(), bytes, bits_per_s) }
    }

    fn charge_at(&self, now: u64, bytes: usize, bits_per_s: u64) -> Duration {
        let cost = (bytes as u128 * 8 * u128::from(NANOS) / u128::from(bits_per_s)) as u64;
        let next = |paid: u64| Some(paid.max(now).saturating_add(cost));
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(now);
        let paid = before.max(now).saturating_add(cost);
        Duration::from_nanos((paid - now).saturating_sub(RATE_AHEAD.as_nanos() as u64))
    }

    /// Bytes that may be moved in one go without running far ahead.
    pub(super) fn portion(bits_per_s: u64, most: usize) -> usize {
        let per_portion = (bits_per_s / 8 / 20) as usize;
        if bits_per_s == 0 { most } else { per_portion.clamp((16 << 10).min(most), most) }
    }
}

/// Bytes of this day, UTC. Kept in `day` of the computer's folder: a new gate goes on counting.
pub(super) struct Day {
    path: PathBuf,
    /// Days since 1970.
    day: AtomicU64,
    bytes: AtomicU64,
    saved: AtomicU64,
}

impl Day {
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join("day");
        let today = today();
        let kept = fs::read_to_string(&path).ok();
        let mut words = kept.iter().flat_map(|text| text.split_ascii_whitespace()).map(|word| word.parse::<u64>());
        let bytes = match (words.next(), words.next()) {
            (Some(Ok(day)), Some(Ok(bytes))) if day == today => bytes,
            _ => 0,
        };
        Self { path, day: today.into(), bytes: bytes.into(), saved: bytes.into() }
    }

    /// Adds bytes; returns the day's total.
    pub(super) fn add(&self, bytes: u64) -> u64 {
        let today = today();
        if self.day.swap(today, Ordering::Relaxed) != today {
            self.bytes.store(0, Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// Writes the total down, if it is another one.
    pub(super) fn save(&self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if self.saved.swap(bytes, Ordering::Relaxed) == bytes {
            return;
        }
        let text = format!("{} {bytes}\n", self.day.load(Ordering::Relaxed));
        let beside = self.path.with_extension("new");
        let saved = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &self.path));
        if let Err(error) = saved {
            tracing::warn!(path = %self.path.display(), %error, "the day's bytes are not written down");
        }
    }
}

fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY
}

/// Limits that were met: one note a second for each, with how often.
#[derive(Default)]
pub(super) struct Notes(Mutex<BTreeMap<&'static str, Note>>);

struct Note {
    at: Instant,
    unsaid: u64,
}

impl Notes {
    /// Counts; returns how many to note now, if it is time.
    pub(super) fn count(&self, limit: &'static str, count: u64) -> Option<u64> {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match notes.get_mut(limit) {
            Some(note) if now.duration_since(note.at) < NOTE_INTERVAL => {
                note.unsaid += count;
                None
            }
            Some(note) => {
                note.at = now;
                Some(std::mem::take(&mut note.unsaid) + count)
            }
            None => {
                notes.insert(limit, Note { at: now, unsaid: 0 });
                Some(count)
            }
        }
    }

    /// What was counted and not noted, where a second has gone by.
    pub(super) fn rest(&self) -> Vec<(&'static str, u64)> {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = notes.iter_mut().filter(|(_, note)| note.unsaid > 0 && now.duration_since(note.at) >= NOTE_INTERVAL);
        due.map(|(limit, note)| {
            note.at = now;
            (*limit, std::mem::take(&mut note.unsaid))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_four_seconds_at_once_and_then_its_rate() {
        let bucket = Bucket::default();
        let start = 1_000 * NANOS;
        assert_eq!((0..1000).filter(|_| bucket.take_at(start, 50)).count(), 200);
        assert_eq!((0..1000).filter(|_| bucket.take_at(start + NANOS, 50)).count(), 50);
        assert!(bucket.take(0));
    }

    #[test]
    fn bytes_beyond_the_rate_are_waited_for() {
        let rate = Rate::default();
        let start = 1_000 * NANOS;
        // 8 Mbit/s: 100 ms ahead is 100 kB.
        assert_eq!(rate.charge_at(start, 100_000, 8_000_000), Duration::ZERO);
        assert_eq!(rate.charge_at(start, 50_000, 8_000_000), Duration::from_millis(50));
        assert_eq!(rate.charge_at(start + NANOS, 1_000, 8_000_000), Duration::ZERO);
        assert_eq!(Rate::portion(0, 1 << 20), 1 << 20);
        assert_eq!(Rate::portion(8_000_000, 1 << 20), 50_000);
    }

    #[test]
    fn the_day_is_kept_and_another_day_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let day = Day::open(folder.path());
        day.add(7);
        assert_eq!(day.add(5), 12);
        day.save();
        assert_eq!(Day::open(folder.path()).add(0), 12);
        fs::write(folder.path().join("day"), "3 99\n").unwrap();
        assert_eq!(Day::open(folder.path()).add(0), 0);
    }

    #[test]
    fn one_note_a_second() {
        let notes = Notes::default();
        assert_eq!(notes.count("flows", 1), Some(1));
        assert_eq!(notes.count("flows", 1), None);
        assert_eq!(notes.count("new", 3), Some(3));
        assert!(notes.rest().is_empty());
    }
}
