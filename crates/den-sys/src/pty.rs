//! Terminals.
//!
//! The slave side is reached through the master's descriptor (`TIOCGPTPEER`), never by its path,
//! which whoever owns the mount of /dev/pts could point elsewhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::SysError;

/// Both sides of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// What the one who runs the program holds; does not block.
    pub master: OwnedFd,
    /// What the program gets as descriptors 0, 1 and 2.
    pub slave: OwnedFd,
}

impl Pty {
    /// Opens a terminal of this size, owned by `uid`.
    ///
    /// Errors: ENOSPC where devpts holds its `max`; ENOENT without /dev/ptmx.
    pub fn open(rows: u16, cols: u16, uid: u32) -> Result<Self, SysError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let master =
            rustix::fs::open(c"/dev/ptmx", flags, Mode::empty()).map_err(SysError::rustix("open", "/dev/ptmx"))?;
        rustix::pty::unlockpt(&master).map_err(SysError::rustix("ioctl(TIOCSPTLCK)", ""))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave =
            rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(SysError::rustix("ioctl(TIOCGPTPEER)", ""))?;
        if uid != 0 {
            // A program that opens /dev/tty's path as its user wants this; one that cannot have it still runs.
            let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
        let pty = Self { master, slave };
        resize(pty.master.as_fd(), rows, cols)?;
        Ok(pty)
    }
}

/// Sets a terminal's size; programs on it get SIGWINCH.
pub fn resize(master: BorrowedFd<'_>, rows: u16, cols: u16) -> Result<(), SysError> {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).map_err(SysError::rustix("ioctl(TIOCSWINSZ)", ""))
}
