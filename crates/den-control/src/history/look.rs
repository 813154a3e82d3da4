//! Looking into states, of computers that run or not.
//!
//! ```text
//! NAME@STATE ──resolve──► folder of the snapshot + layers ──► a view, opened in the blocking pool
//!                                                               ├─ file: pieces, as they are pulled
//!                                                               ├─ tar: a thread that writes, and waits
//!                                                               └─ list, stat, grep: one answer
//! ```
//!
//! Invariants:
//! - No path of a computer is resolved on the host but beneath the root of a view (`den-history`).
//! - At most [`LOOKS_MAX`] requests read states at a time; a client that does not take what it asked
//!   for gives its place up after [`TAKE_WAIT`].

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use den_api::{GrepList, MetaView, StateEntry, StateList};
use den_history::GrepOptions;
use den_model::StateRef;
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc},
    time::timeout,
};

use super::Resolved;
use crate::{
    Error,
    control::{Control, blocking},
    errors::too_many,
    limits::DEPTH_MAX,
};

/// Requests that read states at a time.
pub const LOOKS_MAX: usize = 8;
/// How long a request waits for its place.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// How long a piece of a tar stream waits for the client to take it.
const TAKE_WAIT: Duration = Duration::from_secs(60);
/// How much of a file is read at a time.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces of a tar stream that wait for the client.
const PIECES_MAX: usize = 4;
/// Entries of a list where it does not say.
const LIST_DEFAULT: usize = 10_000;
/// Entries of a list.
const LIST_MAX: usize = 100_000;
/// Lines of a grep where it does not say.
const GREP_DEFAULT: usize = 1000;
/// Lines of a grep.
const GREP_MAX: usize = 10_000;
/// A path, in bytes: PATH_MAX.
const PATH_BYTES_MAX: usize = 4096;
/// Paths that one request names.
const PATHS_MAX: usize = 1000;

static PLACES: Semaphore = Semaphore::const_new(LOOKS_MAX);

/// What to look for in the files of a state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrepRequest {
    /// A regular expression, or with `fixed` a text.
    pub pattern: String,
    /// Capitals and small letters are the same.
    pub ignore_case: bool,
    /// The pattern is a text.
    pub fixed: bool,
    /// Lines at most: 1 to 10,000, 1000 without.
    pub limit: Option<usize>,
}

/// Bytes on their way out of a state.
pub struct StateBytes(Source);

enum Source {
    /// A file, read as it is asked for; `left` bytes are to come.
    File { file: File, left: u64, _state: Resolved },
    /// What a thread packs.
    /// `whole` once it has packed all of it: an end without that is none.
    Tar { first: Option<Bytes>, pieces: mpsc::Receiver<Result<Bytes, Error>>, whole: Arc<AtomicBool> },
}

impl StateBytes {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.0 {
            Source::File { left: 0, .. } => Ok(None),
            Source::File { file, left, .. } => {
                let file = file.try_clone().map_err(|error| unreadable(&error))?;
                let wanted = usize::try_from(*left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                let piece = blocking(move || read_piece(file, wanted)).await??;
                *left -= piece.len() as u64;
                Ok(Some(piece))
            }
            Source::Tar { first, pieces, whole } => {
                if let Some(piece) = first.take() {
                    return Ok(Some(piece));
                }
                match pieces.recv().await.transpose()? {
                    None if !whole.load(Ordering::Acquire) => {
                        Err(Error::new("too_slow", 408, "the packed tree was not taken in time"))
                    }
                    piece => Ok(piece),
                }
            }
        }
    }
}

fn read_piece(mut file: File, wanted: usize) -> Result<Bytes, Error> {
    let mut piece = BytesMut::zeroed(wanted);
    let count = file.read(&mut piece).map_err(|error| unreadable(&error))?;
    if count == 0 {
        return Err(Error::internal("a file of a state is shorter than it was when it was opened"));
    }
    piece.truncate(count);
    Ok(piece.freeze())
}

fn unreadable(error: &io::Error) -> Error {
    Error::internal(format!("a file of a state cannot be read: {error}"))
}

/// Sends what is written to whoever reads the stream.
struct Pipe {
    pieces: mpsc::Sender<Result<Bytes, Error>>,
    buffer: BytesMut,
}

impl Pipe {
    fn send(&mut self) -> io::Result<()> {
        let piece = self.buffer.split().freeze();
        let sending = timeout(TAKE_WAIT, self.pieces.send(Ok(piece)));
        match tokio::runtime::Handle::current().block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Control {
    /// A file of a state: what it is, and its bytes. Links are followed inside the state.
    ///
    /// Errors: `state_not_found`, `bad_state`, `no_such_path`, `not_a_file`, as for all here.
    pub async fn state_file(&self, computer: &str, state: &str, path: &[u8]) -> Result<(MetaView, StateBytes), Error> {
        let (state, path) = self.look(computer, state, path).await?;
        let (meta, file, state) = looking(move || {
            let (meta, file) = den_history::read(&state.open()?.view, &path)?;
            Ok((meta.view(), file, state))
        })
        .await?;
        let left = meta.size;
        Ok((meta, StateBytes(Source::File { file, left, _state: state })))
    }

    /// What a directory of a state holds, to this many levels (1 without).
    pub async fn state_list(
        &self,
        computer: &str,
        state: &str,
        path: &[u8],
        depth: Option<u32>,
        limit: Option<usize>,
    ) -> Result<StateList, Error> {
        let depth = depth.unwrap_or(1);
        if depth == 0 || depth > DEPTH_MAX {
            return Err(Error::bad_request(format!("`depth`: {depth} is not from 1 to {DEPTH_MAX}")));
        }
        let limit = within("limit", limit, LIST_DEFAULT, LIST_MAX)?;
        let (state, path) = self.look(computer, state, path).await?;
        looking(move || Ok(den_history::list(&state.open()?.view, &path, depth, limit)?)).await
    }

    /// What a path of a state is; a link itself.
    pub async fn state_stat(&self, computer: &str, state: &str, path: &[u8]) -> Result<StateEntry, Error> {
        let (state, path) = self.look(computer, state, path).await?;
        looking(move || Ok(den_history::stat(&state.open()?.view, &path)?)).await
    }

    /// Lines of the files at and below a path that match.
    ///
    /// Errors: `bad_pattern`.
    pub async fn state_grep(
        &self,
        computer: &str,
        state: &str,
        path: &[u8],
        grep: GrepRequest,
    ) -> Result<GrepList, Error> {
        let GrepRequest { pattern, ignore_case, fixed, limit } = grep;
        let limit = within("limit", limit, GREP_DEFAULT, GREP_MAX)?;
        let (state, path) = self.look(computer, state, path).await?;
        let options = GrepOptions { pattern, ignore_case, fixed, limit };
        looking(move || Ok(den_history::grep(&state.open()?.view, &path, &options)?)).await
    }

    /// Packs a path of a state into a tar stream.
    pub async fn state_tar(&self, computer: &str, state: &str, path: &[u8]) -> Result<StateBytes, Error> {
        let contents = path.ends_with(b"/.");
        let (state, mut path) = self.look(computer, state, path).await?;
        if contents {
            // The names in the archive begin with `.` then, as those of a running computer's do.
            path.push(".");
        }
        let place = place().await?;
        let (sender, mut pieces) = mpsc::channel(PIECES_MAX);
        let whole = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&whole);
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut pipe = Pipe { pieces: sender, buffer: BytesMut::with_capacity(PIECE_BYTES) };
            let packed = state.open().and_then(|opened| {
                den_history::tar(&opened.view, &path, &mut pipe)?;
                pipe.flush().map_err(|error| unreadable(&error))
            });
            match packed {
                Ok(()) => done.store(true, Ordering::Release),
                // Where there is no room for it, the missing end says enough.
                Err(error) => drop(pipe.pieces.try_send(Err(error))),
            }
        });
        // So that a refusal is known before an answer begins.
        let first = pieces.recv().await.transpose()?;
        Ok(StateBytes(Source::Tar { first, pieces, whole }))
    }

    /// A state, held, and a path in it.
    async fn look(&self, computer: &str, state: &str, path: &[u8]) -> Result<(Resolved, PathBuf), Error> {
        let path = inside(path)?;
        let state = StateRef { computer: computer.to_owned(), state: state.parse()? };
        Ok((self.resolve(&state).await?, path))
    }
}

/// Refuses what was read of states whose computers were removed meanwhile: it may have gaps.
pub(super) fn still_there(states: &[&Resolved]) -> Result<(), Error> {
    match states.iter().find(|state| !state.snapshot_path.join("data").is_dir()) {
        None => Ok(()),
        Some(gone) => {
            let message = format!("`{}` was removed while it was read", gone.shown);
            Err(Error::new("state_not_found", 404, message))
        }
    }
}

/// Runs what reads states, at most [`LOOKS_MAX`] at a time.
pub(super) async fn looking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let place = place().await?;
    blocking(move || {
        let _place = place;
        work()
    })
    .await?
}

pub(super) async fn place() -> Result<SemaphorePermit<'static>, Error> {
    match timeout(PLACE_WAIT, PLACES.acquire()).await {
        Ok(place) => place.map_err(|_| Error::shutting_down()),
        Err(_) => Err(too_many("requests that read states", LOOKS_MAX)),
    }
}

/// A path in a state, without `.`, `..` and what is doubled.
pub(super) fn inside(path: &[u8]) -> Result<PathBuf, Error> {
    let shown = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    let bad = |why: &str| {
        Error::bad_request(format!("the path `{shown}` {why}"))
            .hint("paths of a state are absolute, as inside the computer: /etc/hostname")
    };
    if path.first() != Some(&b'/') {
        return Err(bad("does not begin with `/`"));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(bad("is longer than a path can be"));
    }
    if path.contains(&0) {
        return Err(bad("has a zero byte in it"));
    }
    // `..` is not taken out by hand: behind a link it leads elsewhere.
    let mut depth = 0_usize;
    let mut clean = PathBuf::from("/");
    for part in Path::new(std::ffi::OsStr::from_bytes(path)).components() {
        match part {
            Component::Normal(name) => {
                depth += 1;
                clean.push(name);
            }
            Component::ParentDir => {
                depth = depth.checked_sub(1).ok_or_else(|| bad("climbs out of the state's root"))?;
                clean.push("..");
            }
            _ => {}
        }
    }
    Ok(clean)
}

/// Paths that choose what is compared or merged; they name, and are not resolved.
pub(super) fn chosen(paths: &[String]) -> Result<Vec<PathBuf>, Error> {
    if paths.len() > PATHS_MAX {
        return Err(Error::bad_request(format!("more than {PATHS_MAX} paths are named")));
    }
    let mut clean = Vec::with_capacity(paths.len());
    for path in paths {
        let path = inside(path.as_bytes())?;
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Error::bad_request(format!("the path `{}` has `..` in it", path.display())));
        }
        clean.push(path);
    }
    Ok(clean)
}

/// A limit that was asked for, or its default.
pub(super) fn within(name: &str, asked: Option<usize>, default: usize, most: usize) -> Result<usize, Error> {
    match asked.unwrap_or(default) {
        limit if (1..=most).contains(&limit) => Ok(limit),
        limit => Err(Error::bad_request(format!("`{name}`: {limit} is not from 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_inside() {
        let check = |given: &str, wanted: &str| assert_eq!(inside(given.as_bytes()).unwrap(), Path::new(wanted));
        check("/", "/");
        check("//etc/./passwd/", "/etc/passwd");
        check("/var/run/../log", "/var/run/../log");
        for wrong in ["", "etc", "/..", "/a/../../b", "/a\0b", &format!("/{}", "x".repeat(5000))] {
            assert_eq!(inside(wrong.as_bytes()).unwrap_err().code, "bad_request", "{wrong}");
        }
        assert!(chosen(&["/a/../b".to_owned()]).is_err());
        assert!(chosen(&vec!["/a".to_owned(); PATHS_MAX + 1]).is_err());
    }

    #[test]
    fn limits_have_ends() {
        assert_eq!(within("limit", None, 3, 9).unwrap(), 3);
        assert_eq!(within("limit", Some(9), 3, 9).unwrap(), 9);
        assert!(within("limit", Some(0), 3, 9).is_err() && within("limit", Some(10), 3, 9).is_err());
    }
}
