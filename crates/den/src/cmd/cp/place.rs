//! One side of a copy.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

use crate::report::Trouble;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// `NAME:/PATH`.
    Inside {
        /// The computer.
        name: String,
        /// The path in it.
        path: Vec<u8>,
    },
    /// A path on this host.
    Host(PathBuf),
    /// `-`.
    Stream,
}

impl Place {
    /// Reads one side. A host path with a `:` before its first `/` is written `./a:b`.
    pub fn parse(text: &OsStr) -> Result<Self, Trouble> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        if bytes.is_empty() {
            return Err(Trouble::usage("a path is empty"));
        }
        let colon = bytes.iter().position(|&byte| byte == b':');
        match colon {
            Some(colon) if colon > 0 && !bytes[..colon].contains(&b'/') => {
                let name = String::from_utf8_lossy(&bytes[..colon]).into_owned();
                let path = &bytes[colon + 1..];
                if !path.starts_with(b"/") {
                    let shown = text.to_string_lossy();
                    let (_, rest) = shown.split_once(':').unwrap_or_default();
                    return Err(Trouble::usage(format_args!("`{shown}` has no absolute path after the `:`")).hint(
                        format_args!("{name}:/root/{rest} for a path in the computer, ./{shown} for a file here"),
                    ));
                }
                Ok(Self::Inside { name, path: path.to_owned() })
            }
            _ => Ok(Self::Host(PathBuf::from(text))),
        }
    }
}

/// Whether what a directory holds is meant: `/`, `/a/.`.
pub fn is_contents(path: &[u8]) -> bool {
    path == b"/" || path == b"." || path.ends_with(b"/.")
}

/// Without slashes at the end.
pub fn trim(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(1, |last| last + 1);
    &path[..end.min(path.len())]
}

/// The directory and the last component of an absolute path other than `/`.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(0) => (b"/", &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"/", path),
    }
}

/// `directory/name`.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_owned();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_of_a_copy() {
        let check = |text: &str, expected: Place| assert_eq!(Place::parse(OsStr::new(text)).unwrap(), expected);
        check("-", Place::Stream);
        check("web:/a:b", Place::Inside { name: "web".to_owned(), path: b"/a:b".to_vec() });
        check("./a:b", Place::Host("./a:b".into()));
        check("/x/a:b", Place::Host("/x/a:b".into()));
        check("dir", Place::Host("dir".into()));
        assert!(Place::parse(OsStr::new("web:")).is_err());
        assert!(Place::parse(OsStr::new("web:a")).is_err());
        assert!(Place::parse(OsStr::new("")).is_err());
    }

    #[test]
    fn paths_come_apart_and_together() {
        assert_eq!(trim(b"/a//"), b"/a");
        assert_eq!(trim(b"//"), b"/");
        assert_eq!(split(b"/a/b"), (&b"/a"[..], &b"b"[..]));
        assert_eq!(split(b"/a"), (&b"/"[..], &b"a"[..]));
        assert_eq!(join(b"/", b"a"), b"/a");
        assert!(is_contents(b"/a/.") && is_contents(b"/") && !is_contents(b"/a."));
    }
}
