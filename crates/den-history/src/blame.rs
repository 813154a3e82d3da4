//! Which step each line of a file comes from.
//!
//! ```text
//! made: a b c ──► step 3: a x c ──► step 7: a x c d        a: made · x: 3 · c: made · d: 7
//! ```
//!
//! A line belongs to the step that put it there; one that stayed keeps its step. A file that was away for a
//! while is a version without bytes: what comes back belongs to the step that brought it back.

use crate::text::{edits, lines};

/// A line and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlamedLine {
    /// The step; none: it was there when the computer was made.
    pub step: Option<u64>,
    /// The line without its end. What is no UTF-8 is replaced.
    pub text: String,
}

/// The lines of the last of these versions, which are given oldest first: after which step, and what it was.
pub fn blame_lines(versions: &[(Option<u64>, Vec<u8>)]) -> Vec<BlamedLine> {
    let mut owners: Vec<Option<u64>> = Vec::new();
    let mut before: Vec<&[u8]> = Vec::new();
    for (step, bytes) in versions {
        let now = lines(bytes);
        let mut next = Vec::with_capacity(now.len());
        let mut at = 0;
        for edit in edits(&before, &now) {
            next.extend_from_slice(&owners[at..edit.old.start]);
            next.extend(edit.new.map(|_| *step));
            at = edit.old.end;
        }
        next.extend_from_slice(&owners[at..]);
        (owners, before) = (next, now);
    }
    let text = |line: &[u8]| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
    };
    owners.into_iter().zip(before).map(|(step, line)| BlamedLine { step, text: text(line) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blamed(versions: &[(Option<u64>, &str)]) -> Vec<(Option<u64>, String)> {
        let versions: Vec<_> = versions.iter().map(|(step, text)| (*step, text.as_bytes().to_vec())).collect();
        blame_lines(&versions).into_iter().map(|line| (line.step, line.text)).collect()
    }

    #[test]
    fn each_line_belongs_to_who_put_it_there() {
        let got =
            blamed(&[(None, "a\nb\nc\n"), (Some(3), "a\nx\nc\n"), (Some(5), "a\nx\nc\n"), (Some(7), "a\nx\nc\nd")]);
        let expected = [(None, "a"), (Some(3), "x"), (None, "c"), (Some(7), "d")];
        assert_eq!(got, expected.map(|(step, text)| (step, text.to_owned())));
        assert_eq!(blamed(&[]), []);
        assert_eq!(blamed(&[(None, "a\n"), (Some(2), "")]), []);
        assert_eq!(blamed(&[(None, "a\n"), (Some(2), ""), (Some(4), "a\r\n")]), [(Some(4), "a".to_owned())]);
    }
}
