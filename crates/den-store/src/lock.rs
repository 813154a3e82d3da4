//! One process owns a store: a lock on a file beside it, which the kernel drops with the process.
//!
//! ```text
//! 1234        pid of its holder: the store is being opened, or was closed
//! 1234 MARK   it has a write-ahead log, which goes when it is closed; the log has the mark in it
//! ```

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use crate::StoreError;

/// The right to the store; ends when dropped. The file stays, with the pid of its last holder.
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
    left: Option<String>,
}

impl Lock {
    /// Takes the lock or says who has it.
    pub(crate) fn take(path: PathBuf) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(|source| failed("open the lock", &path, source))?;
        let locked = file.try_lock();
        let mut text = String::new();
        // What cannot be read says nothing.
        let _ = file.read_to_string(&mut text);
        let mut words = text.split_whitespace();
        let (pid, state) = (words.next(), words.next());
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path, pid: pid.and_then(|pid| pid.parse().ok()) });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path, source)),
        }
        let lock = Self { file, left: state.map(str::to_owned), path };
        // One that was left stays marked until it is open again: it may be refused for that.
        if lock.left.is_none() {
            lock.write("").map_err(|source| failed("write the lock", &lock.path, source))?;
        }
        Ok(lock)
    }

    /// The mark of the last holder, where it ended without closing the store.
    pub(crate) fn left(&self) -> Option<&str> {
        self.left.as_deref()
    }

    /// The store in `dir` is open: its log has a name that survives the end of power, and is written down.
    pub(crate) fn in_use(&self, dir: &Path, mark: &str) -> Result<(), StoreError> {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed("sync", dir, source))?;
        self.write(mark).map_err(|source| failed("write the lock", &self.path, source))
    }

    /// The store is about to be closed, and its log with it.
    pub(crate) fn no_longer_in_use(&self) {
        if let Err(error) = self.write("").and_then(|()| self.file.sync_data()) {
            tracing::warn!(%error, "the store will look as if it was not closed");
        }
    }

    /// In place. On a full disk it stays as it was: no reason to refuse a start.
    fn write(&self, state: &str) -> io::Result<()> {
        let mut file = &self.file;
        file.rewind()?;
        let text = format!("{:<10} {state}\n", process::id());
        match file.write_all(text.as_bytes()).and_then(|()| file.set_len(text.len() as u64)) {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                tracing::warn!(%error, path = %self.path.display(), "the lock says nothing of its holder");
                Ok(())
            }
            written => written,
        }
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::File { doing, path: path.to_owned(), source: Arc::new(source) }
}
