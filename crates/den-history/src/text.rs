//! Lines: which of them differ between two versions of a file, and unified diffs.
//!
//! ```text
//! old, new ──► common start and end cut off ──► few enough differences? ── yes ──► the least edits (Myers)
//!                                                        └── no ──► the middle as one replacement
//! ```
//!
//! Invariants:
//! - Edits are in order, do not touch each other, and applied to the old lines give the new ones, always.
//! - The time is bounded: a search that would take more than `WORK_MAX` steps is not begun.

use std::collections::HashMap;
use std::ops::Range;

/// Files above this are not compared by line.
pub(crate) const TEXT_BYTES_MAX: u64 = 1 << 20;

/// Up to this many lines on both sides together, any difference is found in good time.
const LINES_FREE: usize = 4_000;

/// More differing lines than this, among many, are shown as one replacement.
const EDITS_MAX: usize = 4_000;

/// Steps of the search that finds out whether there are more than `EDITS_MAX`.
const WORK_MAX: usize = 20_000_000;

/// Lines of context in a unified diff.
const CONTEXT: usize = 3;

/// Whether these bytes are lines for people: UTF-8 without a NUL.
pub fn is_text(bytes: &[u8]) -> bool {
    // A NUL is mostly near the start of what is binary, so that most of it is decided early.
    !bytes[..bytes.len().min(8192)].contains(&0) && std::str::from_utf8(bytes).is_ok() && !bytes.contains(&0)
}

/// The lines with their ends. The last may have none.
pub(crate) fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').collect()
}

/// Lines `old` of one version are lines `new` of the other. Either may be empty, not both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    /// Which lines of the old version go.
    pub old: Range<usize>,
    /// Which lines of the new version come.
    pub new: Range<usize>,
}

/// What makes `old` into `new`.
pub(crate) fn edits(old: &[&[u8]], new: &[&[u8]]) -> Vec<Edit> {
    let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    if a.is_empty() && b.is_empty() {
        return Vec::new();
    }
    if a.is_empty() || b.is_empty() || !is_cheap(a, b) {
        return vec![Edit { old: start..start + a.len(), new: start..start + b.len() }];
    }
    let (a_text, b_text) = (a.concat(), b.concat());
    // With enough context everything is one hunk, and its lines are the whole script.
    let patch = diffy::DiffOptions::new()
        .set_context_len(a.len() + b.len() + 1)
        .create_patch_bytes(a_text.as_slice(), b_text.as_slice());
    let (mut i, mut j) = (start, start);
    let mut edits: Vec<Edit> = Vec::new();
    for line in patch.hunks().iter().flat_map(diffy::Hunk::lines) {
        let touched = match line {
            diffy::Line::Context(_) => {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            diffy::Line::Delete(_) => (1, 0),
            diffy::Line::Insert(_) => (0, 1),
        };
        match edits.last_mut() {
            Some(last) if last.old.end == i && last.new.end == j => {}
            _ => edits.push(Edit { old: i..i, new: j..j }),
        }
        (i, j) = (i + touched.0, j + touched.1);
        if let Some(last) = edits.last_mut() {
            (last.old.end, last.new.end) = (i, j);
        }
    }
    edits
}

/// Whether the least edits between these can be found in good time.
fn is_cheap(old: &[&[u8]], new: &[&[u8]]) -> bool {
    if old.len() + new.len() <= LINES_FREE {
        return true;
    }
    let mut ids = HashMap::new();
    let mut number = |lines: &[&[u8]]| -> Vec<u32> { Vec::from_iter(lines.iter().map(|line| id(&mut ids, line))) };
    fn id(ids: &mut HashMap<Vec<u8>, u32>, line: &[u8]) -> u32 {
        let next = ids.len() as u32;
        match ids.get(line) {
            Some(&id) => id,
            None => *ids.entry(line.to_vec()).or_insert(next),
        }
    }
    let (a, b) = (number(old), number(new));
    differ_by_at_most(&a, &b, EDITS_MAX)
}

/// Myers' greedy search, forward and without a trace: whether at most `most` insertions and deletions lead from
/// `a` to `b`. "No" too if that cannot be said within `WORK_MAX` steps.
fn differ_by_at_most(a: &[u32], b: &[u32], most: usize) -> bool {
    let (n, m) = (a.len() as isize, b.len() as isize);
    let middle = most as isize + 1;
    let mut reach = vec![0_isize; 2 * most + 3];
    let mut work = 0;
    for d in 0..=most as isize {
        for k in (-d..=d).step_by(2) {
            let at = (k + middle) as usize;
            let mut x =
                if k == -d || (k != d && reach[at - 1] < reach[at + 1]) { reach[at + 1] } else { reach[at - 1] + 1 };
            let begin = x;
            while x < n && x - k < m && x >= 0 && x - k >= 0 && a[x as usize] == b[(x - k) as usize] {
                x += 1;
            }
            work += (x - begin) as usize + 1;
            reach[at] = x;
            if x >= n && x - k >= m {
                return true;
            }
        }
        if work > WORK_MAX {
            return false;
        }
    }
    false
}

/// Lines that came and lines that went.
pub(crate) fn line_counts(old: &[u8], new: &[u8]) -> (u64, u64) {
    edits(&lines(old), &lines(new))
        .iter()
        .fold((0, 0), |(added, removed), edit| (added + edit.new.len() as u64, removed + edit.old.len() as u64))
}

/// The difference as a unified diff of `path` (absolute), empty where there is none.
///
/// What is no UTF-8 is replaced; give it text (see [`is_text`]) and it can be applied.
pub fn unified(old: &[u8], new: &[u8], path: &str) -> String {
    unified_between(old, new, Some(path.as_bytes()), Some(path.as_bytes()))
}

/// The same for a file that has moved, or is only on one side.
pub(crate) fn unified_between(old: &[u8], new: &[u8], old_path: Option<&[u8]>, new_path: Option<&[u8]>) -> String {
    let (old_lines, new_lines) = (lines(old), lines(new));
    if old == new {
        return String::new();
    }
    let edits = edits(&old_lines, &new_lines);
    let mut out = format!("--- {}\n+++ {}\n", name("a", old_path), name("b", new_path)).into_bytes();
    let mut rest = edits.as_slice();
    while !rest.is_empty() {
        // Edits whose contexts would touch share a hunk.
        let many = 1 + rest.windows(2).take_while(|pair| pair[1].old.start - pair[0].old.end <= 2 * CONTEXT).count();
        let (hunk, later) = rest.split_at(many);
        write_hunk(&mut out, &old_lines, &new_lines, hunk);
        rest = later;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path as `patch` and `git apply` read it: quoted where it has to be.
fn name(side: &str, path: Option<&[u8]>) -> String {
    let Some(path) = path else { return "/dev/null".into() };
    let path = path.strip_prefix(b"/").unwrap_or(path);
    match std::str::from_utf8(path) {
        Ok(path) if !path.contains(|c: char| c.is_control() || c == '"' || c == '\\') => format!("{side}/{path}"),
        _ => {
            let quoted = path.iter().map(|&byte| match byte {
                b'"' | b'\\' => format!("\\{}", char::from(byte)),
                b' '..=b'~' => char::from(byte).to_string(),
                byte => format!("\\{byte:03o}"),
            });
            format!("\"{side}/{}\"", quoted.collect::<String>())
        }
    }
}

fn write_hunk(out: &mut Vec<u8>, old: &[&[u8]], new: &[&[u8]], edits: &[Edit]) {
    let (Some(first), Some(last)) = (edits.first(), edits.last()) else { return };
    let before = CONTEXT.min(first.old.start);
    let after = CONTEXT.min(old.len() - last.old.end);
    let old_range = first.old.start - before..last.old.end + after;
    let new_range = first.new.start - before..last.new.end + after;
    // A range without lines is named by the line before it.
    let place = |range: &Range<usize>| match range.len() {
        0 => format!("{},0", range.start),
        1 => format!("{}", range.start + 1),
        lines => format!("{},{lines}", range.start + 1),
    };
    out.extend_from_slice(format!("@@ -{} +{} @@\n", place(&old_range), place(&new_range)).as_bytes());
    let mut line = |sign: u8, text: &[u8]| {
        out.push(sign);
        out.extend_from_slice(text);
        if !text.ends_with(b"\n") {
            out.extend_from_slice(b"\n\\ No newline at end of file\n");
        }
    };
    let mut at = old_range.start;
    for edit in edits {
        old[at..edit.old.start].iter().for_each(|text| line(b' ', text));
        old[edit.old.clone()].iter().for_each(|text| line(b'-', text));
        new[edit.new.clone()].iter().for_each(|text| line(b'+', text));
        at = edit.old.end;
    }
    old[at..old_range.end].iter().for_each(|text| line(b' ', text));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unified_diff_reads_as_usual() {
        let shown = unified(b"a\nb\nc\nd\ne\nf\n", b"a\nb\nc\nD\ne\nf", "/etc/x");
        assert_eq!(
            shown,
            "--- a/etc/x\n+++ b/etc/x\n@@ -1,6 +1,6 @@\n a\n b\n c\n-d\n+D\n e\n-f\n+f\n\\ No newline at end of file\n"
        );
        assert_eq!(unified(b"", b"new\n", "/n"), "--- a/n\n+++ b/n\n@@ -0,0 +1 @@\n+new\n");
        let odd = unified_between(b"", b"x\n", Some(b"/a b/\xff\""), None);
        assert!(odd.starts_with("--- \"a/a b/\\377\\\"\"\n+++ /dev/null\n"), "{odd}");
        assert_eq!(unified(b"same\n", b"same\n", "/n"), "");
    }

    #[test]
    fn binary_is_no_text() {
        assert!(is_text("größe\n".as_bytes()) && is_text(b""));
        assert!(!is_text(b"\0") && !is_text(b"\xff\xfe") && !is_text(&[b"x".repeat(10_000), vec![0]].concat()));
    }

    #[test]
    fn a_file_turned_around_costs_no_minutes() {
        let text: Vec<String> = (0..150_000).map(|n| format!("{n}\n")).collect();
        let old = text.concat().into_bytes();
        let new = text.iter().rev().cloned().collect::<String>().into_bytes();
        let start = std::time::Instant::now();
        assert_eq!(line_counts(&old, &new), (150_000, 150_000));
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        // A few edits far apart in as long a file are still found one by one.
        let mut few = text.clone();
        few[10] = "x\n".into();
        few.remove(140_000);
        assert_eq!(line_counts(&old, few.concat().as_bytes()), (1, 2));
    }

    fn text() -> impl Strategy<Value = String> {
        (prop::collection::vec("[abc]", 0..40), any::<bool>())
            .prop_map(|(lines, end)| lines.join("\n") + if end { "\n" } else { "" })
    }

    proptest! {
        #[test]
        fn edits_and_unified_diffs_give_the_new_text(old in text(), new in text()) {
            let (a, b) = (lines(old.as_bytes()), lines(new.as_bytes()));
            let (mut made, mut at) = (Vec::new(), 0);
            for edit in edits(&a, &b) {
                made.extend_from_slice(&a[at..edit.old.start]);
                made.extend_from_slice(&b[edit.new.clone()]);
                at = edit.old.end;
            }
            made.extend_from_slice(&a[at..]);
            prop_assert_eq!(made, b);
            let shown = unified(old.as_bytes(), new.as_bytes(), "/f");
            if old != new {
                let patch = diffy::Patch::from_str(&shown).unwrap();
                prop_assert_eq!(diffy::apply(&old, &patch).unwrap(), new);
            }
        }
    }
}
