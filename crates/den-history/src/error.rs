//! Why a state could not be read, compared or merged.

use std::fmt;
use std::io;
use std::path::Path;

use den_api::EntryKind;
use den_sys::SysError;

use crate::view::show;

/// Why a state could not be read, compared or merged. Nothing was changed in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// There is nothing at this path.
    #[error("there is nothing at `{path}` in this state")]
    NotFound {
        /// As it was asked for.
        path: String,
    },
    /// It is not a regular file.
    #[error("`{path}` is {}, and a file was wanted", kind_name(*kind))]
    NotAFile {
        /// As it was asked for.
        path: String,
        /// What it is.
        kind: EntryKind,
    },
    /// It is not a directory.
    #[error("`{path}` is {}, and a directory was wanted", kind_name(*kind))]
    NotADirectory {
        /// As it was asked for.
        path: String,
        /// What it is.
        kind: EntryKind,
    },
    /// The path is not one that a state can have.
    #[error("`{path}` is no path inside a computer: {why}")]
    BadPath {
        /// As it was asked for.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Symbolic links lead in a circle, or through too many.
    #[error("`{path}` leads through more than {max} symbolic links")]
    Loop {
        /// As it was asked for.
        path: String,
        /// The limit.
        max: usize,
    },
    /// A file is too large for what was asked.
    #[error("`{path}` has {size} bytes, and at most {max} are read here")]
    TooLarge {
        /// Which.
        path: String,
        /// Its size, in bytes.
        size: u64,
        /// The limit, in bytes.
        max: u64,
    },
    /// There is more of something than is taken.
    #[error("`{path}` has more than {max} {what}")]
    TooMany {
        /// Where.
        path: String,
        /// Of what, in the plural.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// What was to be searched for is no pattern.
    #[error("`{pattern}` is no pattern: {why}")]
    BadPattern {
        /// As it was given.
        pattern: String,
        /// What the parser said.
        why: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Reading or writing broke off.
    #[error("{what} of `{path}`")]
    Io {
        /// What was being done: "reading", "packing".
        what: &'static str,
        /// Of which path.
        path: String,
        /// Why it broke off.
        source: io::Error,
    },
}

impl HistoryError {
    /// A word that stays the same, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "path_not_found",
            Self::NotAFile { .. } => "not_a_file",
            Self::NotADirectory { .. } => "not_a_directory",
            Self::BadPath { .. } => "bad_path",
            Self::Loop { .. } => "too_many_links",
            Self::TooLarge { .. } => "file_too_large",
            Self::TooMany { .. } => "too_many",
            Self::BadPattern { .. } => "bad_pattern",
            Self::Sys(_) | Self::Io { .. } => "state_unreadable",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "list the directory to see what is there; another state may have it",
            Self::NotAFile { .. } => "list or stat it instead",
            Self::NotADirectory { .. } => "read or stat it instead",
            Self::BadPath { .. } => "give an absolute path without `..`, such as /etc/hostname",
            Self::Loop { .. } => "stat the links one by one to see where they lead",
            Self::TooLarge { .. } => "copy it out instead",
            Self::TooMany { .. } => "ask for a directory below it",
            Self::BadPattern { .. } => "escape special characters with a backslash, or search for fixed text",
            Self::Sys(_) | Self::Io { .. } => "try again; if it stays, look at the log of the daemon",
        }
    }

    /// Whether the request is at fault rather than this machine.
    pub fn is_of_request(&self) -> bool {
        !matches!(self, Self::Sys(_) | Self::Io { .. })
    }

    /// For `map_err` where bytes of `path` are read or written.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = shown(path);
        move |source| Self::Io { what, path, source }
    }

    /// For `map_err` on rustix calls about `path`.
    pub fn call(call: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let about = shown(path);
        move |errno| Self::Sys(SysError::new(call, about, errno.raw_os_error()))
    }

    /// There is nothing at `path`.
    pub fn not_found(path: &Path) -> Self {
        Self::NotFound { path: shown(path) }
    }
}

pub(crate) fn shown(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    show(path.as_os_str().as_bytes())
}

fn kind_name(kind: EntryKind) -> impl fmt::Display {
    match kind {
        EntryKind::File => "a file",
        EntryKind::Directory => "a directory",
        EntryKind::Symlink => "a symbolic link",
        EntryKind::Special => "a pipe, socket or device",
    }
}
