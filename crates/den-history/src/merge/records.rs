//! Merging files of records, each known by a key: by package, by user, never by line.
//!
//! ```text
//! ours, its records in order ─ each three-way by its key ─► merged
//!                            theirs' new ones at the end ─┘
//! ```

use std::collections::HashMap;

use super::names::How;

/// Why records could not be brought together.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// Both have changed these (at most [`NAMES_MAX`] are named), each in its own way.
    Records(Vec<String>),
    /// Two records have the same number that only one may have.
    Number {
        /// The number.
        number: String,
        /// Whose it is in ours, and in theirs.
        names: (String, String),
    },
    /// It is not of the form that its name promises.
    Form,
}

/// How many clashing records are named.
const NAMES_MAX: usize = 20;

/// Merges records, `how` says of which form.
pub(super) fn merge(how: How, base: &[u8], ours: &[u8], theirs: &[u8]) -> Result<Vec<u8>, Clash> {
    let (base, ours_all, theirs_all) = (parse(how, base)?, parse(how, ours)?, parse(how, theirs)?);
    let old = by_key(&base)?;
    let mine = by_key(&ours_all)?;
    let other = by_key(&theirs_all)?;
    let mut clashes = Vec::new();
    let mut merged: Vec<&Record<'_>> = Vec::with_capacity(ours_all.len());
    let all = ours_all.iter().chain(theirs_all.iter().filter(|record| !mine.contains_key(&record.key)));
    for record in all {
        let key = &record.key;
        let (b, o, t) = (old.get(key), mine.get(key), other.get(key));
        let (base_body, our_body, their_body) = (b.map(|b| b.body), o.map(|o| o.body), t.map(|t| t.body));
        let taken = if our_body == their_body || base_body == their_body {
            o
        } else if base_body == our_body {
            t
        } else {
            clashes.push(String::from_utf8_lossy(key).into_owned());
            continue;
        };
        merged.extend(taken.copied());
    }
    if !clashes.is_empty() {
        clashes.truncate(NAMES_MAX);
        return Err(Clash::Records(clashes));
    }
    if let How::Colons { unique } = how {
        unique_numbers(unique, &merged, &mine, &other)?;
    }
    Ok(write(how, &merged))
}

struct Record<'a> {
    key: Vec<u8>,
    body: &'a [u8],
}

fn parse(how: How, text: &[u8]) -> Result<Vec<Record<'_>>, Clash> {
    match how {
        How::Stanzas { key } => stanzas(text).map(|body| Ok(Record { key: stanza_key(body, key)?, body })).collect(),
        _ => text
            .split(|&b| b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|body| {
                // A comment, or a `+` line of NIS, is known by itself.
                let key = body.split(|&b| b == b':').next().unwrap_or(body);
                Ok(Record { key: key.to_vec(), body })
            })
            .collect(),
    }
}

/// Paragraphs without the empty lines around them.
fn stanzas(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while let Some(after) = rest.strip_prefix(b"\n") {
            rest = after;
        }
        if rest.is_empty() {
            return None;
        }
        let end = rest.windows(2).position(|pair| pair == b"\n\n").map_or(rest.len(), |at| at + 1);
        let (stanza, after) = rest.split_at(end);
        rest = after;
        Some(stanza.strip_suffix(b"\n").unwrap_or(stanza))
    })
}

fn stanza_key(body: &[u8], fields: &[&str]) -> Result<Vec<u8>, Clash> {
    let mut key = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let line = body.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(field.as_bytes()));
        match line {
            Some(value) if index == 0 => key.extend_from_slice(value.trim_ascii()),
            Some(value) => {
                key.push(b':');
                key.extend_from_slice(value.trim_ascii());
            }
            None if index == 0 => return Err(Clash::Form),
            None => {}
        }
    }
    Ok(key)
}

fn by_key<'a, 'b>(records: &'b [Record<'a>]) -> Result<HashMap<Vec<u8>, &'b Record<'a>>, Clash> {
    let mut map = HashMap::with_capacity(records.len());
    for record in records {
        if map.insert(record.key.clone(), record).is_some() {
            return Err(Clash::Form);
        }
    }
    Ok(map)
}

/// Refuses a number that a record of ours and a new one of theirs both have.
fn unique_numbers(
    columns: &[usize],
    merged: &[&Record<'_>],
    ours: &HashMap<Vec<u8>, &Record<'_>>,
    theirs: &HashMap<Vec<u8>, &Record<'_>>,
) -> Result<(), Clash> {
    for &column in columns {
        let mut seen: HashMap<&[u8], &Record<'_>> = HashMap::new();
        for record in merged {
            let Some(number) = record.body.split(|&b| b == b':').nth(column) else { continue };
            if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
                continue;
            }
            let Some(first) = seen.insert(number, record) else { continue };
            // What one side has twice by itself is its own affair.
            let both =
                |side: &HashMap<Vec<u8>, &Record<'_>>| side.contains_key(&first.key) && side.contains_key(&record.key);
            if !both(ours) && !both(theirs) {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return Err(Clash::Number { number: text(number), names: (text(&first.key), text(&record.key)) });
            }
        }
    }
    Ok(())
}

fn write(how: How, records: &[&Record<'_>]) -> Vec<u8> {
    let end: &[u8] = if matches!(how, How::Stanzas { .. }) { b"\n\n" } else { b"\n" };
    let mut text = Vec::with_capacity(records.iter().map(|record| record.body.len() + end.len()).sum());
    for record in records {
        text.extend_from_slice(record.body);
        text.extend_from_slice(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPKG: How = How::Stanzas { key: &["Package:", "Architecture:"] };
    const PASSWD: How = How::Colons { unique: &[2] };

    fn check(how: How, base: &str, ours: &str, theirs: &str, expected: Result<&str, Clash>) {
        let merged = merge(how, base.as_bytes(), ours.as_bytes(), theirs.as_bytes());
        assert_eq!(merged.map(|text| String::from_utf8(text).expect("text")), expected.map(str::to_owned));
    }

    fn package(name: &str, version: &str) -> String {
        format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
    }

    #[test]
    fn packages_merge_by_package() {
        let (a, b, c, d) = (package("a", "1"), package("b", "1"), package("c", "1"), package("d", "1"));
        let a2 = package("a", "2");
        check(DPKG, &format!("{a}{b}"), &format!("{a}{b}{c}"), &format!("{a2}{b}{d}"), Ok(&format!("{a2}{b}{c}{d}")));
        check(DPKG, &format!("{a}{b}"), &format!("{a}{b}{c}"), &a, Ok(&format!("{a}{c}")));
        let clash = Err(Clash::Records(vec!["a:amd64".into()]));
        check(DPKG, &a, &a2, &package("a", "3"), clash);
        check(DPKG, &format!("{a}{b}"), &format!("{a2}{b}"), &b, Err(Clash::Records(vec!["a:amd64".into()])));
        check(DPKG, &a, &a2, "no package\n", Err(Clash::Form));
        check(DPKG, &a, &format!("{a}{a}"), &a2, Err(Clash::Form));
        // The same on both sides.
        check(DPKG, &a, &format!("{a2}{c}"), &format!("{a2}{d}"), Ok(&format!("{a2}{c}{d}")));
    }

    #[test]
    fn users_merge_by_name_and_numbers_are_not_given_twice() {
        let base = "root:x:0:0::/root:/bin/sh\n";
        let with = |lines: &str| format!("{base}{lines}");
        let (u, v) = ("u:x:1000:1000::/home/u:/bin/sh\n", "v:x:1001:1001::/home/v:/bin/sh\n");
        check(PASSWD, base, &with(u), &with(v), Ok(&with(&format!("{u}{v}"))));
        check(
            PASSWD,
            base,
            &with(u),
            &with("w:x:1000:1000::/:/bin/sh\n"),
            Err(Clash::Number { number: "1000".into(), names: ("u".into(), "w".into()) }),
        );
        // Two names for root in ours are its own affair.
        check(
            PASSWD,
            base,
            &with("toor:x:0:0::/:/bin/sh\n"),
            &with(v),
            Ok(&with(&format!("toor:x:0:0::/:/bin/sh\n{v}"))),
        );
    }

    #[test]
    fn empty_lines_do_not_matter() {
        assert_eq!(stanzas(b"\n\na\nb\n\n\n\nc").collect::<Vec<_>>(), [&b"a\nb"[..], b"c"]);
        assert_eq!(stanzas(b"\n\n").count(), 0);
    }
}
