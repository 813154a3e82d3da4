//! Records of one computer, on disk: `flows-<n>.jsonl`, one write a record.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::record::{FILE_BYTES_MAX, FILES_KEPT, Record};

/// The records of one computer. Writers of several threads take turns.
pub struct Journal {
    folder: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    number: u64,
    bytes: u64,
    /// The last write was cut short: what follows begins on a line of its own.
    torn: bool,
    line: Vec<u8>,
}

impl Journal {
    /// Goes on with the newest file in `folder`, and makes both where they are missing (0700, 0600).
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let number = numbers(folder)?.max().unwrap_or(1);
        let mut file = open(folder, number)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        let open = Open { file, number, bytes, torn: last != *b"\n", line: Vec::with_capacity(512) };
        Ok(Self { folder: folder.to_owned(), open: Mutex::new(open) })
    }

    /// Writes one down.
    pub fn record(&self, record: &Record<'_>) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = &mut *open;
        if open.bytes >= FILE_BYTES_MAX {
            self.turn(open)?;
        }
        open.line.clear();
        if open.torn {
            open.line.push(b'\n');
        }
        serde_json::to_writer(&mut open.line, record)?;
        open.line.push(b'\n');
        let written = open.file.write(&open.line);
        open.bytes += *written.as_ref().unwrap_or(&0) as u64;
        match written {
            Ok(length) if length == open.line.len() => {
                open.torn = false;
                Ok(())
            }
            Ok(length) => {
                open.torn |= length > 0;
                Err(io::ErrorKind::StorageFull.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Begins a new file and lets the oldest go.
    fn turn(&self, open: &mut Open) -> io::Result<()> {
        let number = open.number + 1;
        open.file = self::open(&self.folder, number)?;
        (open.number, open.bytes, open.torn) = (number, 0, false);
        for old in numbers(&self.folder)?.filter(|old| old + FILES_KEPT <= number) {
            fs::remove_file(path(&self.folder, old))?;
        }
        Ok(())
    }
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("flows-{number}.jsonl"))
}

fn open(folder: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path(folder, number))
}

fn numbers(folder: &Path) -> io::Result<impl Iterator<Item = u64>> {
    Ok(fs::read_dir(folder)?.filter_map(|entry| {
        entry.ok()?.file_name().to_str()?.strip_prefix("flows-")?.strip_suffix(".jsonl")?.parse().ok()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;

    fn lines(folder: &Path, number: u64) -> Vec<String> {
        fs::read_to_string(path(folder, number)).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_new_journal_goes_on_with_the_newest_file_and_mends_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let net = folder.path().join("net");
        Journal::open(&net).unwrap().record(&Record::new(Kind::Gate)).unwrap();
        let mut file = OpenOptions::new().append(true).open(path(&net, 1)).unwrap();
        file.write_all(b"{\"at\":1,\"ki").unwrap();
        Journal::open(&net).unwrap().record(&Record::new(Kind::Limit)).unwrap();
        let lines = lines(&net, 1);
        assert_eq!(lines.len(), 3);
        assert!(serde_json::from_str::<Record<'_>>(&lines[0]).is_ok());
        assert!(serde_json::from_str::<Record<'_>>(&lines[1]).is_err());
        assert!(serde_json::from_str::<Record<'_>>(&lines[2]).is_ok());
    }

    #[test]
    fn a_full_file_is_followed_by_another_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        for number in 1..=4 {
            journal.record(&Record::new(Kind::Gate)).unwrap();
            journal.open.lock().unwrap().bytes = FILE_BYTES_MAX;
            assert!(path(folder.path(), number).exists());
        }
        let mut kept: Vec<_> = numbers(folder.path()).unwrap().collect();
        kept.sort_unstable();
        assert_eq!(kept, [3, 4]);
    }
}
