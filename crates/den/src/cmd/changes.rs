//! How changes look in a terminal: a count, facts by area, a line a path.
//!
//! ```text
//! +12 ~3 -1
//! dpkg  + nginx 1.22.1-9
//! + /etc/nginx/nginx.conf  1.4KiB          - /etc/old
//! ~ /etc/passwd  +1 -0 lines               > /srv/new from /srv/old
//! ```
//!
//! Invariant: what is cut is counted, and the line that says so says how to get all.

use std::collections::BTreeMap;

use den_api::{ChangeCount, ChangeKind, ChangePart, EntryKind, FactChange, FileChange, MetaView};

use crate::{report::Trouble, show};

/// Lines of text of one file that are shown before the rest is counted, where not all are asked for.
const FILE_LINES_MAX: usize = 400;

/// `+12 ~3 -1`.
pub fn count(count: &ChangeCount) -> String {
    format!("+{} ~{} -{}", count.added, count.changed, count.removed)
}

/// How many paths in all.
pub fn total(count: &ChangeCount) -> u64 {
    count.added + count.changed + count.removed
}

fn sign(kind: ChangeKind) -> char {
    match kind {
        ChangeKind::Added => '+',
        ChangeKind::Changed => '~',
        ChangeKind::Removed => '-',
        ChangeKind::Renamed => '>',
    }
}

/// Lines that are printed up to a number, and counted beyond it.
pub struct Lines {
    text: String,
    left: usize,
    cut: usize,
}

impl Lines {
    /// At most `most` lines; 0 is all.
    pub fn new(most: u32) -> Self {
        Self { text: String::new(), left: if most == 0 { usize::MAX } else { most as usize }, cut: 0 }
    }

    /// One line.
    pub fn push(&mut self, line: &str) {
        if self.left == 0 {
            self.cut += 1;
            return;
        }
        self.left -= 1;
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Every line of a text.
    pub fn push_all(&mut self, text: &str, indent: &str) {
        let most = if self.left == usize::MAX { usize::MAX } else { FILE_LINES_MAX };
        let mut more = 0;
        for (number, line) in text.lines().enumerate() {
            if number < most {
                self.push(&format!("{indent}{}", show::clean(line)));
            } else {
                more += 1;
            }
        }
        if more > 0 {
            self.push(&format!("{indent}… {more} more lines of it"));
        }
    }

    /// The text; where something was cut, or `more` were never here, with a line that says `how` to
    /// get all.
    pub fn finish(mut self, more: u64, how: &str) -> String {
        let cut = self.cut as u64 + more;
        if cut > 0 {
            self.text.push_str(&format!("… {cut} more: {how}\n"));
        }
        self.text
    }
}

/// Says which places beside the tree differ, once.
pub fn volumes(volumes: &[String], verb: &str) -> Result<(), Trouble> {
    if volumes.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = volumes.iter().map(|volume| show::clean(volume)).collect();
    show::line(&format!("volumes differ, not {verb}: {}", all.join(", ")))
}

/// One path, on one line.
pub fn line(change: &FileChange) -> String {
    let path = entry_path(&change.path, change.after.as_ref().or(change.before.as_ref()));
    let mut line = format!("{} {path}", sign(change.kind));
    if let Some(from) = &change.from {
        line.push_str(&format!(" from {}", show::clean(from)));
    }
    let details = match change.kind {
        ChangeKind::Added => change.after.as_ref().map(alone).unwrap_or_default(),
        ChangeKind::Removed => String::new(),
        ChangeKind::Changed | ChangeKind::Renamed => between(change),
    };
    if !details.is_empty() {
        line.push_str("  ");
        line.push_str(&details);
    }
    line
}

/// A path, with a slash behind a directory.
pub fn entry_path(path: &str, meta: Option<&MetaView>) -> String {
    let mut path = show::clean(path);
    if meta.is_some_and(|meta| meta.kind == EntryKind::Directory) && !path.ends_with('/') {
        path.push('/');
    }
    path
}

/// What there is to say of something that is new.
fn alone(meta: &MetaView) -> String {
    match meta.kind {
        EntryKind::File => show::size(meta.size),
        EntryKind::Symlink => format!("-> {}", show::clean(meta.target.as_deref().unwrap_or("?"))),
        EntryKind::Directory => String::new(),
        EntryKind::Special => "special".to_owned(),
    }
}

fn between(change: &FileChange) -> String {
    let (Some(before), Some(after)) = (&change.before, &change.after) else { return String::new() };
    let mut parts = Vec::new();
    for part in &change.parts {
        match part {
            ChangePart::Content => parts.push(match (change.lines_added, change.lines_removed) {
                (Some(added), Some(removed)) => format!("+{added} -{removed} lines"),
                _ if before.size == after.size => format!("{}, other bytes", show::size(after.size)),
                _ => format!("{} to {}", show::size(before.size), show::size(after.size)),
            }),
            ChangePart::Mode => parts.push(format!("mode {:04o} to {:04o}", before.mode, after.mode)),
            ChangePart::Owner => {
                parts.push(format!("owner {}:{} to {}:{}", before.uid, before.gid, after.uid, after.gid));
            }
            ChangePart::Xattr => parts.push("attributes".to_owned()),
            ChangePart::Target => {
                let target = |meta: &MetaView| show::clean(meta.target.as_deref().unwrap_or("?"));
                parts.push(format!("{} to {}", target(before), target(after)));
            }
            ChangePart::Kind => parts.push(format!("{} to {}", kind(before.kind), kind(after.kind))),
        }
    }
    parts.join(", ")
}

/// What an entry is, in a word.
pub fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "link",
        EntryKind::Special => "special",
    }
}

/// `-rw-r--r--  0:0  1.4KiB`: one side of a conflict, an entry of a list.
pub fn meta(meta: &MetaView) -> String {
    let size = match meta.kind {
        EntryKind::File => format!("  {}", show::size(meta.size)),
        EntryKind::Symlink => format!("  -> {}", show::clean(meta.target.as_deref().unwrap_or("?"))),
        EntryKind::Directory | EntryKind::Special => String::new(),
    };
    format!("{}  {}:{}{size}", mode(meta), meta.uid, meta.gid)
}

/// `-rw-r--r--`, as `ls -l` has it.
pub fn mode(meta: &MetaView) -> String {
    let first = match meta.kind {
        EntryKind::File => '-',
        EntryKind::Directory => 'd',
        EntryKind::Symlink => 'l',
        EntryKind::Special => '?',
    };
    let mut text = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = meta.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, meta.mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Facts by area, a line each.
pub fn facts(facts: &[FactChange], lines: &mut Lines) {
    let width = facts.iter().map(|fact| fact.area.len()).max().unwrap_or(0);
    let mut sorted: Vec<&FactChange> = facts.iter().collect();
    sorted.sort_by(|a, b| (&a.area, &a.name).cmp(&(&b.area, &b.name)));
    for fact in sorted {
        let value = match (&fact.before, &fact.after) {
            (Some(before), Some(after)) if before != after => format!(" {before} to {after}"),
            (_, Some(value)) | (Some(value), None) => format!(" {value}"),
            (None, None) => String::new(),
        };
        let text = format!("{:width$}  {} {}{value}", fact.area, sign(fact.kind), fact.name);
        lines.push(show::clean(&text).trim_end());
    }
}

/// How many of each, by `key`.
fn counted<K: Ord>(changes: impl Iterator<Item = (K, ChangeKind)>) -> BTreeMap<K, ChangeCount> {
    let mut counts: BTreeMap<K, ChangeCount> = BTreeMap::new();
    for (key, kind) in changes {
        let count = counts.entry(key).or_default();
        match kind {
            ChangeKind::Added => count.added += 1,
            ChangeKind::Changed | ChangeKind::Renamed => count.changed += 1,
            ChangeKind::Removed => count.removed += 1,
        }
    }
    counts
}

/// Counts by area, and by directory two levels deep.
pub fn stat(files: &[FileChange], facts: &[FactChange], lines: &mut Lines) {
    let areas = counted(facts.iter().map(|fact| (fact.area.as_str(), fact.kind)));
    let folders = counted(files.iter().map(|change| (folder(&change.path), change.kind)));
    let width = areas.keys().map(|area| area.len()).chain(folders.keys().map(|folder| folder.len())).max().unwrap_or(0);
    for (name, of) in areas.iter().chain(folders.iter()) {
        lines.push(&format!("{:width$}  {}", show::clean(name), count(of)));
    }
}

/// The directory that a path is counted under: at most two names deep.
fn folder(path: &str) -> &str {
    let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).skip(1).take(2).collect();
    match ends.last() {
        Some(end) => &path[..*end],
        None => "/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64, mode: u32) -> MetaView {
        MetaView { kind: EntryKind::File, mode, uid: 0, gid: 0, size, mtime: 0, target: None }
    }

    fn change(path: &str, kind: ChangeKind) -> FileChange {
        FileChange {
            path: path.to_owned(),
            kind,
            from: None,
            parts: Vec::new(),
            before: None,
            after: None,
            hash_before: None,
            hash_after: None,
            lines_added: None,
            lines_removed: None,
            text: None,
        }
    }

    #[test]
    fn a_change_is_one_line() {
        let added = FileChange { after: Some(file(1434, 0o644)), ..change("/etc/a", ChangeKind::Added) };
        assert_eq!(line(&added), "+ /etc/a  1.4KiB");
        let text = FileChange {
            before: Some(file(10, 0o644)),
            after: Some(file(12, 0o600)),
            parts: vec![ChangePart::Content, ChangePart::Mode],
            lines_added: Some(1),
            lines_removed: Some(0),
            ..change("/etc/passwd", ChangeKind::Changed)
        };
        assert_eq!(line(&text), "~ /etc/passwd  +1 -0 lines, mode 0644 to 0600");
        let moved = FileChange {
            from: Some("/srv/old".to_owned()),
            before: Some(file(1, 0o644)),
            after: Some(file(1, 0o644)),
            ..change("/srv/new", ChangeKind::Renamed)
        };
        assert_eq!(line(&moved), "> /srv/new from /srv/old");
        let directory = MetaView { kind: EntryKind::Directory, ..file(0, 0o755) };
        let gone = FileChange { before: Some(directory), ..change("/old", ChangeKind::Removed) };
        assert_eq!(line(&gone), "- /old/");
        assert_eq!(line(&change("/a\u{1b}[31mb\n", ChangeKind::Removed)), r"- /a\x1b[31mb\x0a");
    }

    #[test]
    fn modes_look_as_ls_has_them() {
        assert_eq!(mode(&file(0, 0o4755)), "-rwsr-xr-x");
        assert_eq!(mode(&MetaView { kind: EntryKind::Directory, ..file(0, 0o1777) }), "drwxrwxrwt");
        assert_eq!(mode(&file(0, 0o2640)), "-rw-r-S---");
    }

    #[test]
    fn what_is_cut_is_counted() {
        let mut lines = Lines::new(2);
        ["a", "b", "c", "d"].iter().for_each(|line| lines.push(line));
        assert_eq!(lines.finish(7, "--json"), "a\nb\n… 9 more: --json\n");
        let mut lines = Lines::new(0);
        lines.push("a");
        assert_eq!(lines.finish(0, "--json"), "a\n");
    }

    #[test]
    fn facts_stand_by_area() {
        let fact = |area: &str, name: &str, kind, before: Option<&str>, after: Option<&str>| FactChange {
            area: area.to_owned(),
            name: name.to_owned(),
            kind,
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            files_before: Vec::new(),
            files_after: Vec::new(),
        };
        let mut lines = Lines::new(0);
        let all = [
            fact("user", "deploy", ChangeKind::Added, None, Some("1001")),
            fact("dpkg", "curl", ChangeKind::Changed, Some("7.1"), Some("7.2")),
            fact("dpkg", "jq", ChangeKind::Removed, Some("1.6"), None),
        ];
        facts(&all, &mut lines);
        assert_eq!(lines.finish(0, ""), "dpkg  ~ curl 7.1 to 7.2\ndpkg  - jq 1.6\nuser  + deploy 1001\n");
        let mut lines = Lines::new(0);
        let files = [change("/etc/nginx/a/b", ChangeKind::Added), change("/x", ChangeKind::Removed)];
        stat(&files, &all, &mut lines);
        assert_eq!(
            lines.finish(0, ""),
            "dpkg        +0 ~1 -1\nuser        +1 ~0 -0\n/           +0 ~0 -1\n/etc/nginx  +1 ~0 -0\n"
        );
    }
}
