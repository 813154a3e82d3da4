//! Watching directories (inotify(7)).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify;

use crate::SysError;

pub use rustix::fs::inotify::{ReadFlags, WatchFlags};

/// How many bytes of events are read at once.
const BUFFER_BYTES: usize = 16 << 10;

/// One set of watches and its queue of events.
#[derive(Debug)]
pub struct Inotify(OwnedFd);

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The watch, as [`Inotify::add`] returned it; -1 for an overflow.
    pub watch: i32,
    /// What happened.
    pub flags: ReadFlags,
    /// The same in both halves of a move.
    pub cookie: u32,
    /// Which entry of the directory; `None` for what is watched itself.
    pub name: Option<Vec<u8>>,
}

impl Inotify {
    /// Makes an empty set whose reads do not block.
    ///
    /// Errors: EMFILE at the user's limit on sets (`fs.inotify.max_user_instances`).
    pub fn new() -> Result<Self, SysError> {
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map(Self)
            .map_err(SysError::rustix("inotify_init1", ""))
    }

    /// Watches what `path` names.
    ///
    /// Errors: ENOSPC at the user's limit on watches (`fs.inotify.max_user_watches`).
    pub fn add(&self, path: &[u8], flags: WatchFlags) -> Result<i32, SysError> {
        inotify::add_watch(&self.0, path, flags)
            .map_err(|errno| SysError::new("inotify_add_watch", path.escape_ascii(), errno.raw_os_error()))
    }

    /// Ends a watch; one that has ended already is no error.
    pub fn remove(&self, watch: i32) {
        let _ = inotify::remove_watch(&self.0, watch);
    }

    /// Takes the events that are at hand, up to a buffer full; none if none are.
    pub fn read(&self) -> Result<Vec<Event>, SysError> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(rustix::io::Errno::AGAIN) => return Ok(events),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(SysError::new("read", "inotify", errno.raw_os_error())),
            }
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
