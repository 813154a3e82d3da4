//! Reading what the gate wrote down: lines of JSON in files on the host that begin anew as they grow.
//!
//! ```text
//! DATA/computers/<id>/net/flows-<n>.jsonl     n from 1; the newest few are kept
//! cursor  `<n>:<byte>`                        of a line's beginning
//! ```
//!
//! A cursor into a file that is gone goes on at the oldest one there is, and says so. A line that is
//! still being written is left for the next reader. Files are read by a bounded window at a time, on a
//! thread that may block.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use den_api::{NetLogPage, NetRecord, SentView};
use den_model::{ComputerId, Micros, State};

use crate::{
    Error,
    control::{Control, Inner, blocking, page_limit},
    handle::Handle,
    limits::PAGE_MAX,
};

/// How much of a file is read at a time.
const WINDOW_BYTES: usize = 256 << 10;
/// The longest line; the gate writes none near it.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// Between two looks of one that follows.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);

/// Kinds that a filter may name.
const KINDS: [&str; 7] = ["open", "close", "http", "dns", "limit", "drop", "gate"];

/// Which records to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadRecords {
    /// From here on; the oldest that is kept without.
    pub cursor: Option<String>,
    /// How many at most.
    pub limit: Option<usize>,
    /// The latest so many, in place of a cursor and a limit.
    pub last: Option<usize>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only what was refused.
    pub denied: bool,
}

/// Follows the records of one computer.
pub struct RecordReader {
    handle: Arc<Handle>,
    scan: Scan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    file: u64,
    byte: u64,
}

/// Where a reader is, and what it wants.
#[derive(Debug, Clone)]
struct Scan {
    folder: PathBuf,
    at: Cursor,
    kind: Option<String>,
    denied: bool,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.byte)
    }
}

impl std::str::FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.split_once(':');
        let parsed = parts.and_then(|(file, byte)| Some(Self { file: file.parse().ok()?, byte: byte.parse().ok()? }));
        parsed.ok_or_else(|| {
            Error::bad_request(format!("`cursor`: `{text}` is no place in the records"))
                .hint("pass the `next` of an answer before")
        })
    }
}

impl Control {
    /// A page of what the gate wrote down about a computer, the oldest first.
    ///
    /// Errors: `computer_not_found`, `bad_request`.
    pub async fn net_log(&self, computer: &str, read: ReadRecords) -> Result<NetLogPage, Error> {
        let (_, scan) = self.net_scan(computer, &read)?;
        match read.last {
            Some(last @ 1..=PAGE_MAX) => blocking(move || scan.latest(last)).await?,
            Some(last) => Err(Error::bad_request(format!("`last`: {last} is not from 1 to {PAGE_MAX}"))),
            None => {
                let limit = page_limit(read.limit)?;
                blocking(move || scan.page(limit).map(|(page, _)| page)).await?
            }
        }
    }

    /// Reads on as the gate writes.
    ///
    /// Errors: `computer_not_found`, `bad_request`.
    pub async fn follow_net_log(&self, computer: &str, read: ReadRecords) -> Result<RecordReader, Error> {
        let (handle, scan) = self.net_scan(computer, &read)?;
        Ok(RecordReader { handle, scan })
    }

    fn net_scan(&self, computer: &str, read: &ReadRecords) -> Result<(Arc<Handle>, Scan), Error> {
        let handle = self.0.registry.find_any(computer)?;
        if let Some(kind) = &read.kind
            && !KINDS.contains(&kind.as_str())
        {
            return Err(Error::bad_request(format!("`kind`: `{kind}` is none of {}", KINDS.join(", "))));
        }
        let at = read.cursor.as_deref().map_or(Ok(Cursor { file: 0, byte: 0 }), str::parse)?;
        let folder = folder_of(&self.0, handle.id);
        Ok((handle, Scan { folder, at, kind: read.kind.clone(), denied: read.denied }))
    }
}

impl RecordReader {
    /// The next records, as soon as there are some; `None` once the computer is removed.
    pub async fn next(&mut self) -> Result<Option<NetLogPage>, Error> {
        loop {
            let scan = self.scan.clone();
            let (page, at) = blocking(move || scan.page(PAGE_MAX)).await??;
            self.scan.at = at;
            if !page.records.is_empty() || page.lost {
                return Ok(Some(page));
            }
            if self.handle.state() == State::Removing {
                return Ok(None);
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }
}

impl Scan {
    /// Up to `limit` records from where it is, and where that ends.
    fn page(mut self, limit: usize) -> Result<(NetLogPage, Cursor), Error> {
        let lost = self.settle()?;
        let mut records = Vec::new();
        self.each(|record| {
            records.push(record);
            records.len() < limit
        })?;
        Ok((NetLogPage { records, next: self.at.to_string(), lost }, self.at))
    }

    /// The latest `count` records.
    fn latest(mut self, count: usize) -> Result<NetLogPage, Error> {
        self.at = Cursor { file: 0, byte: 0 };
        self.settle()?;
        let mut records = VecDeque::with_capacity(count + 1);
        self.each(|record| {
            records.push_back(record);
            if records.len() > count {
                records.pop_front();
            }
            true
        })?;
        Ok(NetLogPage { records: records.into(), next: self.at.to_string(), lost: false })
    }

    /// Moves to the oldest file where the present one is gone, and says whether something was lost.
    fn settle(&mut self) -> Result<bool, Error> {
        let files = files(&self.folder)?;
        let Some(&oldest) = files.first() else { return Ok(false) };
        if self.at.file == 0 {
            self.at = Cursor { file: oldest, byte: 0 };
            return Ok(false);
        }
        if files.contains(&self.at.file) {
            return Ok(false);
        }
        // Before the oldest: lost. Beyond the newest: of another life of these files.
        self.at = Cursor { file: oldest, byte: 0 };
        Ok(true)
    }

    /// Gives each record that is wanted to `take`, until that says stop or there are no more.
    fn each(&mut self, mut take: impl FnMut(NetRecord) -> bool) -> Result<(), Error> {
        let wants = self.clone();
        self.each_line(|line| wants.wanted(line).is_none_or(&mut take))
    }

    /// Gives each line to `take`, until that says stop or there are no more.
    fn each_line(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), Error> {
        let mut window = vec![0; WINDOW_BYTES];
        while self.at.file != 0 {
            let path = path_of(&self.folder, self.at.file);
            let file = match open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(unreadable(&path, error)),
            };
            // Asked before it is read: what is added to this file is there before the next one is.
            let successor = files(&self.folder)?.into_iter().find(|&file| file > self.at.file);
            loop {
                let length = file.read_at(&mut window, self.at.byte).map_err(|error| unreadable(&path, error))?;
                let mut taken = 0;
                while let Some(end) = window[taken..length].iter().position(|&byte| byte == b'\n') {
                    let line = &window[taken..taken + end];
                    taken += end + 1;
                    if !take(line) {
                        self.at.byte += taken as u64;
                        return Ok(());
                    }
                }
                if taken == 0 && length > RECORD_BYTES_MAX {
                    taken = length; // No gate wrote that; the rest of it will be no record either.
                }
                self.at.byte += taken as u64;
                if taken == 0 {
                    break;
                }
            }
            match successor {
                Some(file) => self.at = Cursor { file, byte: 0 },
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// The record of a line, if it is one that is wanted.
    fn wanted(&self, line: &[u8]) -> Option<NetRecord> {
        let record: NetRecord = match serde_json::from_slice(line) {
            Ok(record) => record,
            Err(error) => {
                tracing::debug!(%error, folder = %self.folder.display(), "a line that is no record");
                return None;
            }
        };
        let is_denied = || record.verdict.as_deref() == Some("deny") || record.kind == "limit";
        let wanted = self.kind.as_ref().is_none_or(|kind| *kind == record.kind) && (!self.denied || is_denied());
        wanted.then_some(record)
    }
}

/// Flows that carried bytes out of a computer in some time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The first of them.
    pub flows: Vec<SentView>,
    /// How many more there were.
    pub more: u64,
}

/// Flows of `id` that began before `until`, ended after `since`, and sent something. `most` of them are
/// told one by one. What the gate has let go of is not known any more. Blocks.
pub(crate) fn sent(inner: &Inner, id: ComputerId, since: Micros, until: Micros, most: usize) -> Result<Sent, Error> {
    sent_in(&folder_of(inner, id), since, until, most)
}

fn sent_in(folder: &Path, since: Micros, until: Micros, most: usize) -> Result<Sent, Error> {
    let mut scan = Scan { folder: folder.to_owned(), at: Cursor { file: 0, byte: 0 }, kind: None, denied: false };
    scan.settle()?;
    // The newest file whose first record is old enough has all that matters.
    for file in files(folder)? {
        let path = path_of(folder, file);
        let mut beginning = [0; 32];
        let read = open(&path).and_then(|file| file.read_at(&mut beginning, 0));
        if read.is_ok_and(|length| time_of(&beginning[..length]).is_some_and(|at| at <= since)) {
            scan.at = Cursor { file, byte: 0 };
        }
    }
    let mut sent = Sent::default();
    scan.each_line(|line| {
        if time_of(line).is_some_and(|at| at <= since) || !line.windows(CLOSE.len()).take(64).any(|part| part == CLOSE)
        {
            return true;
        }
        let Ok(record) = serde_json::from_slice::<NetRecord>(line) else { return true };
        let Some(bytes) = record.up_bytes.filter(|&bytes| bytes > 0 && record.kind == "close") else { return true };
        let began = (record.at as Micros).saturating_sub(record.ms.unwrap_or(0).saturating_mul(1000) as Micros);
        if began >= until {
            return true;
        }
        if sent.flows.len() == most {
            sent.more += 1;
            return true;
        }
        let to = match (&record.name, record.target) {
            (Some(name), Some(target)) => format!("{name}:{}", target.port()),
            (Some(name), None) => name.clone(),
            (None, target) => target.or(record.dialled).map_or_else(|| "unknown".to_owned(), |to| to.to_string()),
        };
        sent.flows.push(SentView { at: began, to, bytes });
        true
    })?;
    Ok(sent)
}

/// How the gate writes the end of a flow.
const CLOSE: &[u8] = b"\"kind\":\"close\"";

/// When a record was written, from its first bytes; none if they are in another order.
fn time_of(line: &[u8]) -> Option<Micros> {
    let digits = line.strip_prefix(b"{\"at\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

fn folder_of(inner: &Inner, id: ComputerId) -> PathBuf {
    inner.data.join("computers").join(id.to_string()).join("net")
}

fn path_of(folder: &Path, file: u64) -> PathBuf {
    folder.join(format!("flows-{file}.jsonl"))
}

fn open(path: &Path) -> io::Result<File> {
    const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    File::options().read(true).custom_flags(NO_FOLLOW).open(path)
}

/// The numbers of the files there are, rising.
fn files(folder: &Path) -> Result<Vec<u64>, Error> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(folder, error)),
    };
    let number = |entry: std::fs::DirEntry| -> Option<u64> {
        entry.file_name().to_str()?.strip_prefix("flows-")?.strip_suffix(".jsonl")?.parse().ok()
    };
    let mut files: Vec<u64> = entries.flatten().filter_map(number).filter(|&file| file > 0).collect();
    files.sort_unstable();
    Ok(files)
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::new("storage_failed", 500, format!("the records in {}: {error}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(at: u64, kind: &str, verdict: &str) -> String {
        format!("{{\"at\":{at},\"kind\":\"{kind}\",\"verdict\":\"{verdict}\"}}\n")
    }

    fn scan(folder: &Path, cursor: &str) -> Scan {
        Scan { folder: folder.to_owned(), at: cursor.parse().unwrap(), kind: None, denied: false }
    }

    fn times(page: &NetLogPage) -> Vec<u64> {
        page.records.iter().map(|record| record.at).collect()
    }

    fn write(folder: &Path, file: u64, text: &str) {
        File::options()
            .append(true)
            .create(true)
            .open(path_of(folder, file))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    #[test]
    fn pages_go_on_across_files_and_leave_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        assert_eq!(scan(folder, "0:0").page(10).unwrap().0.records, vec![]);
        write(folder, 3, &(line(1, "open", "allow") + &line(2, "dns", "deny") + "nonsense\n"));
        write(folder, 4, &(line(3, "close", "allow") + "{\"at\":4,"));
        let (page, at) = scan(folder, "0:0").page(2).unwrap();
        assert_eq!((times(&page), page.lost), (vec![1, 2], false));
        assert_eq!(page.records[0].trust, "host");
        let (page, _) = scan(folder, &at.to_string()).page(10).unwrap();
        assert_eq!((times(&page), page.lost), (vec![3], false));
        write(folder, 4, "\"kind\":\"gate\"}\n");
        let (page, _) = scan(folder, &page.next).page(10).unwrap();
        assert_eq!(times(&page), [4]);
        assert!(times(&scan(folder, &page.next).page(10).unwrap().0).is_empty());
    }

    #[test]
    fn filters_and_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..10 {
            write(
                dir.path(),
                1 + n / 5,
                &line(n, if n % 2 == 0 { "open" } else { "dns" }, if n > 6 { "deny" } else { "allow" }),
            );
        }
        assert_eq!(times(&scan(dir.path(), "0:0").latest(3).unwrap()), [7, 8, 9]);
        let denied = Scan { denied: true, kind: Some("open".into()), ..scan(dir.path(), "0:0") };
        assert_eq!(times(&denied.page(10).unwrap().0), [8]);
    }

    #[test]
    fn what_was_sent_since() {
        let dir = tempfile::tempdir().unwrap();
        let close = |at: u64, ms: u64, name: &str, up: u64| {
            format!(
                "{{\"at\":{at},\"kind\":\"close\",\"flow\":1,\"target\":\"192.0.2.7:443\",{name}\"up_bytes\":{up},\"ms\":{ms}}}\n"
            )
        };
        write(dir.path(), 1, &(line(1000, "gate", "allow") + &close(2000, 0, "", 7)));
        write(dir.path(), 2, &(close(5000, 1, "\"name\":\"a.example\",", 10) + &line(5500, "open", "allow")));
        write(dir.path(), 2, &(close(6000, 3, "", 20) + &close(7000, 0, "", 0) + &close(99_000, 1, "", 5)));
        let seen = |since, until, most| {
            let sent = sent_in(dir.path(), since, until, most).unwrap();
            (sent.flows.into_iter().map(|flow| (flow.at, flow.to, flow.bytes)).collect::<Vec<_>>(), sent.more)
        };
        let first = (2000, "192.0.2.7:443".to_owned(), 7);
        let second = (4000, "a.example:443".to_owned(), 10);
        let third = (3000, "192.0.2.7:443".to_owned(), 20);
        assert_eq!(seen(0, 50_000, 10), (vec![first.clone(), second.clone(), third.clone()], 0));
        assert_eq!(seen(0, 50_000, 1), (vec![first], 2));
        // One that went on from before is told.
        assert_eq!(seen(4500, 50_000, 10), (vec![second, third], 0));
        assert_eq!(seen(6000, 50_000, 10), (vec![], 0));
        assert_eq!(sent_in(&dir.path().join("none"), 0, 9, 9).unwrap(), Sent::default());
    }

    #[test]
    fn a_cursor_into_a_file_that_is_gone_says_so() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 7, &line(1, "open", "allow"));
        for cursor in ["5:100", "9:0"] {
            let (page, _) = scan(dir.path(), cursor).page(10).unwrap();
            assert_eq!((times(&page), page.lost), (vec![1], true), "{cursor}");
        }
        for bad in ["", "x", "1", "1:x", "-1:0"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_longer_than_a_window_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1, &("x".repeat(3 * WINDOW_BYTES) + "\n" + &line(1, "open", "allow")));
        assert_eq!(times(&scan(dir.path(), "0:0").page(10).unwrap().0), [1]);
    }
}
