//! The log files of one computer: where they are, and which go when there are too many.
//!
//! The sum is taken from the folder when the first step has ended, and counted from there on.
//!
//! Logs are made ahead: btrfs makes no file while it commits, and a neighbour that flushes without end has it commit
//! without end. To open one that is there waits for nothing.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use den_model::EventKind;
use serde_json::json;

use crate::{
    control::Inner,
    handle::Handle,
    limits::{LOGS_AHEAD_FROM, LOGS_AHEAD_MAX, LOGS_KEEP_BYTES},
};

/// Below this share of the limit a pruning stops, so that it is not needed again at once.
const PRUNE_TO_PERCENT: u64 = 90;
/// A log with a hole larger than this was cut.
const CUT_BYTES_MIN: u64 = 64 << 10;

pub(crate) struct Logs {
    dir: PathBuf,
    /// Bytes on disk of the logs of ended steps; unknown until the folder was looked through.
    sum: Mutex<Sum>,
    ahead: Mutex<Ahead>,
}

/// Empty logs of steps to come.
#[derive(Default)]
struct Ahead {
    numbers: BTreeSet<u64>,
    /// More are being made.
    making: bool,
}

#[derive(Clone, Copy)]
enum Sum {
    Unknown,
    /// The folder is being looked through.
    Counting,
    Known(u64),
}

impl Logs {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, sum: Mutex::new(Sum::Unknown), ahead: Mutex::default() }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number}.log"))
    }

    /// Makes the log of a new step. One that a crash left under this number never had a row.
    pub(crate) fn create(&self, number: u64) -> io::Result<File> {
        if self.is_ahead(number)
            && let Some(log) = self.go_on(number)
        {
            return Ok(log);
        }
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(self.path(number))
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the log of this step was made ahead; from here on it is not.
    fn is_ahead(&self, number: u64) -> bool {
        let mut ahead = self.ahead();
        let found = ahead.numbers.remove(&number);
        // Of a number that was passed by, somebody else has made it meanwhile.
        while ahead.numbers.first().is_some_and(|&first| first + LOGS_AHEAD_MAX < number) {
            ahead.numbers.pop_first();
        }
        found
    }

    /// A step of this number has no log.
    pub(crate) fn not_needed(&self, inner: &Inner, handle: &Arc<Handle>, number: u64) {
        if self.is_ahead(number) {
            let handle = Arc::clone(handle);
            inner.tasks.spawn_blocking(move || handle.steps.logs.remove(number));
        }
    }

    /// Makes the logs of the next steps in the background: the more, the more steps there were, and many at a time,
    /// so that it is seldom done.
    pub(crate) fn make_ahead(&self, inner: &Inner, handle: &Arc<Handle>) {
        let last = handle.steps.last();
        let wanted = last.min(LOGS_AHEAD_MAX);
        {
            let mut ahead = self.ahead();
            if last < LOGS_AHEAD_FROM || ahead.making || ahead.numbers.len() as u64 > wanted / 2 {
                return;
            }
            ahead.making = true;
        }
        let handle = Arc::clone(handle);
        inner.tasks.spawn_blocking(move || {
            let logs = &handle.steps.logs;
            let last = logs.ahead().numbers.last().copied().unwrap_or(0).max(handle.steps.last());
            for number in last + 1..=handle.steps.last() + wanted {
                // One that is there is in use, or was left by a crash: then its step empties it.
                let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(logs.path(number));
                if made.is_ok() {
                    logs.ahead().numbers.insert(number);
                }
            }
            logs.ahead().making = false;
        });
    }

    /// Opens the log of a step that goes on, for its agent; `None` where it is gone.
    pub(crate) fn go_on(&self, number: u64) -> Option<File> {
        OpenOptions::new().read(true).write(true).open(self.path(number)).ok()
    }

    /// Opens the log of a step; `None` where it is gone.
    pub(crate) fn open(&self, number: u64) -> io::Result<Option<File>> {
        match File::open(self.path(number)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn remove(&self, number: u64) {
        let _ = std::fs::remove_file(self.path(number));
    }

    /// Counts the log of a step that has ended, and prunes in the background where it is too much.
    pub(crate) fn ended(&self, inner: &Arc<Inner>, handle: &Arc<Handle>, number: u64, log: &File) {
        let (length, bytes) = log.metadata().map_or((0, 0), |metadata| (metadata.len(), metadata.blocks() * 512));
        if length > bytes + CUT_BYTES_MIN {
            let detail = json!({ "what": "output", "step": number, "kept_bytes": bytes });
            inner.events.tell(EventKind::LimitReached, Some(handle), None, detail);
        }
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        match *sum {
            Sum::Known(known) if known + bytes <= LOGS_KEEP_BYTES.0 => *sum = Sum::Known(known + bytes),
            Sum::Counting => {}
            // A computer's first step need not look through a folder that has nothing else in it.
            Sum::Unknown if number == 1 => *sum = Sum::Known(bytes),
            Sum::Unknown | Sum::Known(_) => {
                *sum = Sum::Counting;
                drop(sum);
                let handle = Arc::clone(handle);
                inner.tasks.spawn_blocking(move || {
                    let logs = &handle.steps.logs;
                    let running = |number| handle.steps.get(number).is_some();
                    let kept = prune(&logs.dir, LOGS_KEEP_BYTES.0, &running).inspect_err(|error| {
                        tracing::warn!(computer = %handle.id, %error, "the logs of old steps are not pruned");
                    });
                    *logs.sum.lock().unwrap_or_else(PoisonError::into_inner) = kept.map_or(Sum::Unknown, Sum::Known);
                });
            }
        }
    }

    /// Removes the logs of ended steps below a number.
    pub(crate) fn prune_below(&self, inner: &Arc<Inner>, handle: &Arc<Handle>, below: u64) {
        let handle = Arc::clone(handle);
        inner.tasks.spawn_blocking(move || {
            for (number, _) in list(&handle.steps.logs.dir).unwrap_or_default() {
                if number < below && handle.steps.get(number).is_none() {
                    handle.steps.logs.remove(number);
                }
            }
            *handle.steps.logs.sum.lock().unwrap_or_else(PoisonError::into_inner) = Sum::Unknown;
        });
    }
}

/// The logs in a folder by number, with their bytes on disk.
fn list(dir: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|number| number.parse().ok());
        if let Some(number) = number {
            logs.push((number, entry.metadata()?.blocks() * 512));
        }
    }
    logs.sort_unstable();
    Ok(logs)
}

/// Removes the oldest logs of ended steps where all together take more than `limit`; what is left.
fn prune(dir: &Path, limit: u64, running: &dyn Fn(u64) -> bool) -> io::Result<u64> {
    let logs = list(dir)?;
    let mut sum: u64 = logs.iter().map(|(_, bytes)| bytes).sum();
    if sum > limit {
        for (number, bytes) in logs {
            if sum <= limit / 100 * PRUNE_TO_PERCENT {
                break;
            }
            if !running(number) {
                std::fs::remove_file(dir.join(format!("{number}.log")))?;
                sum -= bytes;
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ended_logs_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().to_owned());
        for number in [2, 10, 1, 3] {
            std::io::Write::write_all(&mut logs.create(number).unwrap(), &[1; 100_000]).unwrap();
        }
        let each = list(dir.path()).unwrap()[0].1;
        assert_eq!(prune(dir.path(), 4 * each, &|_| false).unwrap(), 4 * each);
        assert_eq!(prune(dir.path(), 3 * each, &|number| number == 1).unwrap(), 2 * each);
        let left: Vec<u64> = list(dir.path()).unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(left, [1, 10]);
        assert!(logs.open(2).unwrap().is_none());
    }

    #[test]
    fn a_log_that_was_made_ahead_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().to_owned());
        std::fs::write(logs.path(2), "").unwrap();
        logs.ahead.lock().unwrap().numbers.extend([2, 3]);
        std::io::Write::write_all(&mut logs.create(2).unwrap(), b"two").unwrap();
        assert!(!logs.is_ahead(2));
        // The file of 3 is gone: it is made.
        std::io::Write::write_all(&mut logs.create(3).unwrap(), b"three").unwrap();
        // What a crash left is emptied.
        std::fs::write(logs.path(4), "left").unwrap();
        assert_eq!(logs.create(4).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(std::fs::read(logs.path(2)).unwrap(), b"two");
        logs.ahead.lock().unwrap().numbers.extend([5, 6, 100]);
        assert!(logs.is_ahead(100) && !logs.is_ahead(5));
    }
}
