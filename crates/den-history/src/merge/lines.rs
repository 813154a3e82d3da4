//! Merging what two have made of one file: by line, with diff3.
//!
//! The time is bounded: versions that differ in more lines than [`EDITS_MAX`] are not merged by line.

use diffy::{ConflictStyle, MergeOptions};

use super::names::How;
use super::records::{self, Clash};
use crate::text;

/// Larger files are not merged by what is in them.
pub(super) const BYTES_MAX: u64 = 8 << 20;

/// Versions that differ from their base in more lines are not merged by line.
const EDITS_MAX: usize = 4_000;

/// How much of the lines of a conflict is shown, in bytes.
const SHOWN_BYTES_MAX: usize = 64 << 10;

/// Why two versions were not brought together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotMerged {
    /// A word that stays the same: `content`, `package_database` or `lock_file`.
    pub why: &'static str,
    /// Behind the path and a colon.
    pub message: String,
    /// The lines with markers.
    pub text: Option<String>,
}

/// What became of two versions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Brought {
    /// Ours stays as it is.
    Ours,
    /// Together.
    Together(Vec<u8>),
}

/// Brings two versions together that both differ from `base` and from each other.
pub(super) fn together(how: How, base: &[u8], ours: &[u8], theirs: &[u8]) -> Result<Brought, NotMerged> {
    match how {
        How::Derived => Ok(Brought::Ours),
        How::Packages => Err(not("package_database", "both have changed this part of the package database")),
        How::Lock => Err(not("lock_file", "both have changed this lock file; make it anew after merging the rest")),
        How::Opaque => Err(not("content", "both have changed this database")),
        How::Log if ours.starts_with(base) && theirs.starts_with(base) => {
            Ok(Brought::Together([ours, &theirs[base.len()..]].concat()))
        }
        How::Lines | How::Log => by_line(base, ours, theirs).map(Brought::Together),
        How::Stanzas { .. } | How::Colons { .. } => {
            records::merge(how, base, ours, theirs).map(Brought::Together).map_err(|clash| {
                let why = if matches!(how, How::Stanzas { .. }) { "package_database" } else { "content" };
                match clash {
                    Clash::Records(names) => not(why, &format!("both have changed {}", names.join(", "))),
                    Clash::Number { number, names: (ours, theirs) } => {
                        not(why, &format!("number {number} is `{ours}` in one and `{theirs}` in the other"))
                    }
                    Clash::Form => not(why, "both have changed it, and it has another form than its name says"),
                }
            })
        }
    }
}

fn not(why: &'static str, message: &str) -> NotMerged {
    NotMerged { why, message: message.to_owned(), text: None }
}

fn by_line(base: &[u8], ours: &[u8], theirs: &[u8]) -> Result<Vec<u8>, NotMerged> {
    if [base, ours, theirs].iter().any(|bytes| bytes.contains(&0)) {
        return Err(not("content", "both have changed it, and it is not text"));
    }
    let (base_lines, our_lines, their_lines) = (text::lines(base), text::lines(ours), text::lines(theirs));
    let edited = |lines: &[&[u8]]| -> usize {
        text::edits(&base_lines, lines).iter().map(|edit| edit.old.len() + edit.new.len()).sum()
    };
    if edited(&our_lines) > EDITS_MAX || edited(&their_lines) > EDITS_MAX {
        return Err(not("content", "both have changed it, in too many lines to merge them"));
    }
    let mut options = MergeOptions::new();
    options.set_conflict_style(ConflictStyle::Diff3);
    options.merge_bytes(base, ours, theirs).map_err(|marked| NotMerged {
        why: "content",
        message: "both have changed the same lines".to_owned(),
        text: Some(shown(&marked)),
    })
}

/// The beginning, as text.
fn shown(marked: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(&marked[..marked.len().min(SHOWN_BYTES_MAX)]).into_owned();
    if text.len() > SHOWN_BYTES_MAX {
        let cut = (0..=SHOWN_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(base: &str, ours: &str, theirs: &str) -> Result<String, NotMerged> {
        by_line(base.as_bytes(), ours.as_bytes(), theirs.as_bytes())
            .map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn lines_that_are_apart_merge() {
        assert_eq!(
            lines("1\n2\n3\n4\n5\n", "1a\n2\n3\n4\n5\n", "1\n2\n3\n4\n5a\n6\n").as_deref(),
            Ok("1a\n2\n3\n4\n5a\n6\n")
        );
        assert_eq!(lines("1\n2\n3\n", "1\n3\n", "1\n2\n3\n4").as_deref(), Ok("1\n3\n4"));
    }

    #[test]
    fn the_same_lines_conflict_with_markers() {
        let not = lines("1\n2\n3\n", "1\na\n3\n", "1\nb\n3\n").expect_err("a conflict");
        assert_eq!(not.why, "content");
        let marked = "1\n<<<<<<< ours\na\n||||||| original\n2\n=======\nb\n>>>>>>> theirs\n3\n";
        assert_eq!(not.text.as_deref(), Some(marked));
        assert_eq!(lines("1\n", "\0\n", "2\n").expect_err("a conflict").text, None);
    }

    #[test]
    fn a_hostile_file_is_refused_in_good_time() {
        let many = |seed: usize| (0..400_000).map(|n| format!("{}\n", (n * seed) % 7919)).collect::<String>();
        let start = std::time::Instant::now();
        let not = lines(&many(1), &many(3), &many(5)).expect_err("a conflict");
        assert_eq!(not.why, "content");
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    #[test]
    fn logs_are_put_one_after_the_other() {
        let merged = together(How::Log, b"a\n", b"a\nb\n", b"a\nc\n");
        assert_eq!(merged, Ok(Brought::Together(b"a\nb\nc\n".to_vec())));
        assert_eq!(together(How::Log, b"a\n", b"b\n", b"c\n").expect_err("a conflict").why, "content");
    }

    #[test]
    fn what_is_resolved_as_a_whole_is_refused_by_name() {
        let why = |how| together(how, b"a", b"b", b"c").expect_err("a conflict").why;
        assert_eq!(
            (why(How::Lock), why(How::Packages), why(How::Opaque)),
            ("lock_file", "package_database", "content")
        );
        assert_eq!(together(How::Derived, b"a", b"b", b"c"), Ok(Brought::Ours));
    }
}
