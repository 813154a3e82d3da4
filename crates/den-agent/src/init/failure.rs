//! From the kernel's errors to the protocol's.

use den_wire::agent::{Failure, FailureKind};
use rustix::io::Errno;

/// What an operation returns.
pub type Outcome<T> = Result<T, Failure>;

/// A failure of this kind.
pub fn failure(kind: FailureKind, subject: impl Into<String>, errno: Option<i32>) -> Failure {
    Failure { kind, subject: subject.into(), errno }
}

/// For `map_err` on a call about `path`.
pub fn at(path: &[u8]) -> impl Fn(Errno) -> Failure {
    move |errno| from_errno(errno, path)
}

/// A refusal of the kernel's about `path`.
pub fn from_errno(errno: Errno, path: &[u8]) -> Failure {
    let kind = match errno {
        Errno::NOENT => FailureKind::NotFound,
        Errno::EXIST => FailureKind::Exists,
        Errno::NOTDIR => FailureKind::NotADirectory,
        Errno::ISDIR => FailureKind::IsADirectory,
        Errno::NOTEMPTY => FailureKind::NotEmpty,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => FailureKind::PermissionDenied,
        Errno::NOSPC | Errno::DQUOT => FailureKind::NoSpace,
        Errno::LOOP => FailureKind::LinkLoop,
        _ => FailureKind::Other,
    };
    failure(kind, text(path), Some(errno.raw_os_error()))
}

/// An error of std's about `path`.
pub fn from_io(error: &std::io::Error, path: &[u8]) -> Failure {
    match Errno::from_io_error(error) {
        Some(errno) => from_errno(errno, path),
        None => failure(FailureKind::Other, text(path), None),
    }
}

/// A request that makes no sense.
pub fn bad(subject: impl Into<String>) -> Failure {
    failure(FailureKind::BadRequest, subject, None)
}

/// A path as words.
pub fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// What the C library says about an error number, as shells print it.
pub fn words(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
