//! A computer and one of its states, as they are typed: `NAME`, `NAME@STATE`, `NAME@STATE:/PATH`.
//!
//! Invariant: what a state is called is not judged here; the daemon knows which there are.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use crate::report::Trouble;

/// The state that a name alone means.
pub const NOW: &str = "now";

/// `NAME[@STATE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateArg {
    /// Name or id.
    pub name: String,
    /// Which state; none: as it is now.
    pub state: Option<String>,
}

impl StateArg {
    /// Comes apart at the first `@`, which no name has.
    pub fn parse(text: &str) -> Result<Self, Trouble> {
        let wrong = |what: &str| {
            Trouble::usage(format_args!("`{text}` {what}")).hint("a state is NAME@STATE: web@12, web@before-upgrade")
        };
        let (name, state) = match text.split_once('@') {
            Some((name, state)) => (name, Some(state)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(wrong("names no computer"));
        }
        if state.is_some_and(str::is_empty) {
            return Err(wrong("names no state after the `@`"));
        }
        Ok(Self { name: name.to_owned(), state: state.map(str::to_owned) })
    }

    /// The state, `now` where none was given.
    pub fn state(&self) -> &str {
        self.state.as_deref().unwrap_or(NOW)
    }

    /// As the API takes it.
    pub fn text(&self) -> String {
        match &self.state {
            Some(state) => format!("{}@{state}", self.name),
            None => self.name.clone(),
        }
    }

    /// The state, which this command does not do without.
    pub fn needed(&self, what: &str) -> Result<&str, Trouble> {
        self.state.as_deref().ok_or_else(|| {
            Trouble::usage(format_args!("{what} wants a state: {}@STATE", self.name))
                .hint(format_args!("which there are: den snaps {}", self.name))
        })
    }
}

/// `NAME[@STATE]`, with the path behind it where it is written as `cp` has it.
pub fn with_path(text: &OsStr) -> Result<(StateArg, Option<Vec<u8>>), Trouble> {
    let bytes = text.as_bytes();
    let (state, path) = match bytes.iter().position(|&byte| byte == b':') {
        Some(colon) => (&bytes[..colon], Some(absolute(OsStr::from_bytes(&bytes[colon + 1..]))?)),
        None => (bytes, None),
    };
    let state = std::str::from_utf8(state)
        .map_err(|_| Trouble::usage(format_args!("`{}` is no name of a computer", text.display())))?;
    Ok((StateArg::parse(state)?, path))
}

/// A path inside, which begins at the root.
pub fn absolute(path: &OsStr) -> Result<Vec<u8>, Trouble> {
    let bytes = path.as_bytes();
    if !bytes.starts_with(b"/") {
        let shown = path.display();
        return Err(Trouble::usage(format_args!("`{shown}` is no absolute path"))
            .hint(format_args!("a path inside begins at the root: /{shown}")));
    }
    Ok(bytes.to_owned())
}

/// The path given behind the name, or as a word of its own.
pub fn one_path(behind: Option<Vec<u8>>, word: Option<&OsStr>) -> Result<Option<Vec<u8>>, Trouble> {
    match (behind, word) {
        (Some(_), Some(word)) => Err(Trouble::usage(format_args!("`{}` is one path too many", word.display()))),
        (behind, None) => Ok(behind),
        (None, Some(word)) => absolute(word).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_apart() {
        let check = |text: &str, name: &str, state: Option<&str>| {
            let parsed = StateArg::parse(text).unwrap();
            assert_eq!((parsed.name.as_str(), parsed.state.as_deref()), (name, state), "{text}");
            assert_eq!(parsed.text(), text);
        };
        check("web", "web", None);
        check("web@12", "web", Some("12"));
        check("cmp_1@before-upgrade", "cmp_1", Some("before-upgrade"));
        for bad in ["", "@12", "web@"] {
            assert!(StateArg::parse(bad).is_err(), "{bad}");
        }
        assert!(StateArg::parse("web").unwrap().needed("x").is_err());
    }

    #[test]
    fn a_path_may_stand_behind_the_name() {
        let (state, path) = with_path(OsStr::new("web@12:/etc/a:b")).unwrap();
        assert_eq!((state.text().as_str(), path.as_deref()), ("web@12", Some(&b"/etc/a:b"[..])));
        assert!(with_path(OsStr::new("web:etc")).is_err());
        assert!(one_path(Some(b"/a".to_vec()), Some(OsStr::new("/b"))).is_err());
        assert_eq!(one_path(None, Some(OsStr::new("/b"))).unwrap(), Some(b"/b".to_vec()));
    }
}
