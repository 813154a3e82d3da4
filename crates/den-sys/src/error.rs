//! A kernel's refusal, with the call and what it was about.

use std::{fmt, io, path::Path};

/// An errno with the call that returned it and what the call was about.
#[derive(Debug, Clone)]
pub struct SysError {
    /// The call, such as `mount_setattr(IDMAP)`.
    pub call: &'static str,
    /// A path or a name; empty where there is none.
    pub about: String,
    /// The error number.
    pub errno: i32,
}

impl SysError {
    /// From the thread's errno.
    pub fn last(call: &'static str, about: impl fmt::Display) -> Self {
        Self { call, about: about.to_string(), errno: io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }

    /// From a known number.
    pub fn new(call: &'static str, about: impl fmt::Display, errno: i32) -> Self {
        Self { call, about: about.to_string(), errno }
    }

    /// From an error of std, which keeps its number if it has one.
    pub fn io(call: &'static str, path: &Path, error: &io::Error) -> Self {
        Self { call, about: path.display().to_string(), errno: error.raw_os_error().unwrap_or(0) }
    }

    /// For `map_err` on rustix calls.
    pub fn rustix(call: &'static str, about: impl fmt::Display) -> impl FnOnce(rustix::io::Errno) -> Self {
        let about = about.to_string();
        move |errno| Self { call, about, errno: errno.raw_os_error() }
    }

    /// As an error of std.
    pub fn to_io(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if !self.about.is_empty() {
            write!(f, " on `{}`", self.about)?;
        }
        write!(f, ": {}", io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for SysError {}
