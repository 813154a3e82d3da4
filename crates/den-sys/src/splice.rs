//! Bytes from socket to socket by way of a pipe, without passing through this process. Source:
//! splice(2), pipe(7), fcntl(2) F_SETPIPE_SZ.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags};

/// A pipe that holds bytes on their way.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
    held: usize,
}

impl Pipe {
    /// An empty one of the kernel's usual size.
    pub fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let size = rustix::pipe::fcntl_getpipe_size(&write)?;
        Ok(Self { read, write, size, held: 0 })
    }

    /// Makes it this large; where the kernel does not allow that it stays as it is.
    pub fn grow(&mut self, bytes: usize) {
        if let Ok(size) = rustix::pipe::fcntl_setpipe_size(&self.write, bytes) {
            self.size = size;
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `limit` bytes into the pipe, which should be empty: `WouldBlock` then says that
    /// `from` has none. 0 is its end.
    pub fn fill(&mut self, from: impl AsFd, limit: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::pipe::splice(from, None, &self.write, None, limit, flags)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what is held on; `WouldBlock` where `to` is full.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::pipe::splice(&self.read, None, to, None, self.held, flags)?;
        self.held -= moved;
        Ok(moved)
    }
}
