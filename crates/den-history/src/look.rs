//! Looking into a state: one file, a listing, a search, an archive.
//!
//! ```text
//! path as asked ──View::follow──► real path ──► read · stat · list · grep · tar
//!                                               └─ below it no link is followed
//! ```
//!
//! Invariants:
//! - What is shown is in the state, wherever links point.
//! - A listing and a search end at their limit and say so; neither holds more than one directory's
//!   names a level, and a search no more than one file.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use den_api::{EntryKind, GrepHit, GrepList, StateEntry, StateList};
use regex::bytes::{Regex, RegexBuilder};

use crate::error::{HistoryError, shown};
use crate::view::{DEPTH_MAX, Meta, View, show};

mod pack;

pub use pack::tar;

/// The largest file that is searched, in bytes.
const GREP_FILE_BYTES_MAX: u64 = 64 << 20;
/// How long a search goes on.
const GREP_TIME_MAX: Duration = Duration::from_secs(30);
/// The characters of a line that are shown.
const GREP_LINE_CHARS_MAX: usize = 1_000;
/// A file with a NUL in this many first bytes is binary.
const BINARY_LOOK_BYTES: usize = 8 << 10;
/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 4 << 10;
/// What a pattern may grow to, in bytes.
const PATTERN_PROGRAM_BYTES_MAX: usize = 1 << 20;

/// The regular file at `path`, links followed inside the root, and what it is.
pub fn read(view: &View, path: &Path) -> Result<(Meta, File), HistoryError> {
    view.open_with_meta(&view.follow(path)?)
}

/// What is at `path`; of a link, the link. Links before the last component are followed.
pub fn stat(view: &View, path: &Path) -> Result<StateEntry, HistoryError> {
    let meta = view.stat(&view.follow_parent(path)?)?;
    Ok(StateEntry { path: show(path.as_os_str().as_bytes()), meta: meta.view() })
}

/// What is in the directory at `path`, down to `depth` levels (1: its own entries), `limit` entries at
/// most. Of anything but a directory, and where `depth` is 0, that one.
pub fn list(view: &View, path: &Path, depth: u32, limit: usize) -> Result<StateList, HistoryError> {
    let one = || Ok(StateList { items: vec![stat(view, path)?], truncated: false });
    // A link that leads nowhere is an entry itself; what else is wrong with a path `stat` says too.
    let Ok(real) = view.follow(path) else { return one() };
    if depth == 0 || view.stat(&real)?.kind != EntryKind::Directory {
        return one();
    }
    let mut items = Vec::new();
    let mut truncated = false;
    walk(view, &real, depth as usize, &mut |entry, _| {
        if items.len() >= limit {
            truncated = true;
            return Ok(Next::Stop);
        }
        // One that is too deep to be looked at is left out.
        if let Some(meta) = view.lstat(entry)? {
            items.push(StateEntry { path: as_asked(path, &real, entry), meta: meta.view() });
        }
        Ok(Next::On)
    })?;
    Ok(StateList { items, truncated })
}

/// What to search for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrepOptions {
    /// A regular expression, or text.
    pub pattern: String,
    /// Whether capital and small letters are the same.
    pub ignore_case: bool,
    /// Whether the pattern is text.
    pub fixed: bool,
    /// How many lines to find at most.
    pub limit: usize,
}

/// The lines that match in the file at `path`, or in all files below it. Files of more than 64 MiB are
/// left out, and after 30 s the rest.
pub fn grep(view: &View, path: &Path, options: &GrepOptions) -> Result<GrepList, HistoryError> {
    let pattern = compile(options)?;
    let real = view.follow(path)?;
    let mut search = Search { pattern, limit: options.limit, items: Vec::new(), truncated: false, bytes: Vec::new() };
    match view.stat(&real)?.kind {
        EntryKind::File => search.file(view, &real, &show(path.as_os_str().as_bytes()))?,
        EntryKind::Directory => {
            let end = Instant::now() + GREP_TIME_MAX;
            walk(view, &real, DEPTH_MAX, &mut |entry, kind| {
                if kind == EntryKind::File {
                    search.file(view, entry, &as_asked(path, &real, entry))?;
                    search.truncated |= Instant::now() > end;
                }
                Ok(if search.truncated { Next::Stop } else { Next::On })
            })?;
        }
        kind => return Err(HistoryError::NotAFile { path: shown(path), kind }),
    }
    Ok(GrepList { items: search.items, truncated: search.truncated })
}

fn compile(options: &GrepOptions) -> Result<Regex, HistoryError> {
    let bad = |why: String| HistoryError::BadPattern {
        pattern: options.pattern.chars().take(200).collect(),
        why: why.lines().last().unwrap_or_default().trim().to_owned(),
    };
    if options.pattern.is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    if options.pattern.len() > PATTERN_BYTES_MAX {
        return Err(bad(format!("it is longer than {PATTERN_BYTES_MAX} bytes")));
    }
    let text = if options.fixed { regex::escape(&options.pattern) } else { options.pattern.clone() };
    RegexBuilder::new(&text)
        .case_insensitive(options.ignore_case)
        .size_limit(PATTERN_PROGRAM_BYTES_MAX)
        .build()
        .map_err(|error| bad(error.to_string()))
}

struct Search {
    pattern: Regex,
    limit: usize,
    items: Vec<GrepHit>,
    truncated: bool,
    /// The file that is searched; kept for its room.
    bytes: Vec<u8>,
}

impl Search {
    fn file(&mut self, view: &View, real: &Path, name: &str) -> Result<(), HistoryError> {
        let (meta, file) = view.open_with_meta(real)?;
        if meta.size > GREP_FILE_BYTES_MAX || meta.size == 0 {
            return Ok(());
        }
        self.bytes.clear();
        file.take(GREP_FILE_BYTES_MAX).read_to_end(&mut self.bytes).map_err(HistoryError::io("reading", real))?;
        let bytes = &self.bytes[..];
        if bytes[..bytes.len().min(BINARY_LOOK_BYTES)].contains(&0) {
            if self.pattern.is_match(bytes) {
                if self.items.len() >= self.limit {
                    self.truncated = true;
                } else {
                    let text = "a binary file that matches".to_owned();
                    self.items.push(GrepHit { path: name.to_owned(), line: 0, text });
                }
            }
            return Ok(());
        }
        let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        for (number, line) in body.split(|&b| b == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !self.pattern.is_match(line) {
                continue;
            }
            if self.items.len() >= self.limit {
                self.truncated = true;
                return Ok(());
            }
            let cut = &line[..line.len().min(GREP_LINE_CHARS_MAX * 4)];
            let text = String::from_utf8_lossy(cut).chars().take(GREP_LINE_CHARS_MAX).collect();
            self.items.push(GrepHit { path: name.to_owned(), line: number as u64 + 1, text });
        }
        Ok(())
    }
}

/// Whether a walk goes on.
enum Next {
    On,
    Stop,
}

/// Visits all below the directory `top`, by name, a directory before what is in it.
fn walk(
    view: &View,
    top: &Path,
    depth: usize,
    visit: &mut dyn FnMut(&Path, EntryKind) -> Result<Next, HistoryError>,
) -> Result<(), HistoryError> {
    // Of each directory on the way down: what is left of it.
    let mut open: Vec<std::vec::IntoIter<(OsString, EntryKind)>> = vec![view.entries(top)?.into_iter()];
    let mut here: PathBuf = top.to_owned();
    while let Some(level) = open.last_mut() {
        let Some((name, kind)) = level.next() else {
            open.pop();
            here.pop();
            continue;
        };
        here.push(name);
        if let Next::Stop = visit(&here, kind)? {
            return Ok(());
        }
        if kind == EntryKind::Directory && open.len() < depth.min(DEPTH_MAX) {
            open.push(view.entries(&here)?.into_iter());
        } else {
            here.pop();
        }
    }
    Ok(())
}

/// `real`, which is below `top`, as a path below what was asked for.
fn as_asked(asked: &Path, top: &Path, real: &Path) -> String {
    let below = real.strip_prefix(top).unwrap_or(real);
    shown(&asked.join(below))
}
