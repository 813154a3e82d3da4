//! Stopping the processes of a cgroup, and letting them go on.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Hierarchies, open_directory};
use crate::SysError;

/// Stops the processes of one cgroup.
///
/// ```text
/// v2  freeze: "1" ► cgroup.freeze ··· kernel stops each process ··· cgroup.events: "frozen 1"
///     thaw:   "0" ► cgroup.freeze
/// v1  "FROZEN", "THAWED" ► freezer.state, which reads "FREEZING" meanwhile
/// ```
///
/// A process inside cannot end it: the file belongs to the host. Dropped, it thaws, unless it was told
/// to [`Freezer::keep`].
#[derive(Debug)]
pub struct Freezer {
    freeze: OwnedFd,
    /// v2; the v1 file has both.
    events: Option<OwnedFd>,
    on: bool,
}

/// Between two looks at a v1 freezer, which tells nobody when it is done.
const V1_LOOK_AGAIN: Duration = Duration::from_micros(500);

/// How long those that do not stand yet are waited for before all are let go on for [`NUDGE`].
const PATIENCE: Duration = Duration::from_millis(8);
/// That moment.
const NUDGE: Duration = Duration::from_millis(1);
/// Every so many times they are waited for longer, and longer each time: there may be thousands of them.
const LONGER_EVERY: u32 = 6;

/// How long they are waited for after so many nudges.
fn patience(nudges: u32) -> Duration {
    match nudges % LONGER_EVERY {
        5 => PATIENCE * (4 << (nudges / LONGER_EVERY).min(8)),
        _ => PATIENCE,
    }
}

/// Opens the freezer of the cgroup `name` of `instance`. `None` where the host has none or the
/// cgroup is gone.
pub fn freezer(instance: &str, name: &str) -> Option<Freezer> {
    Freezer::of(&Hierarchies::find().ok()?.freezing()?.join(instance).join(name))
}

impl Freezer {
    /// Of the cgroup at `path`, of v2 or of the v1 freezer.
    pub fn of(path: &Path) -> Option<Self> {
        let directory = open_directory(rustix::fs::CWD, path).ok()?;
        let open = |file, flags| rustix::fs::openat(&directory, file, flags | OFlags::CLOEXEC, Mode::empty()).ok();
        match open("cgroup.freeze", OFlags::WRONLY) {
            Some(freeze) => Some(Self { freeze, events: Some(open("cgroup.events", OFlags::RDONLY)?), on: false }),
            None => Some(Self { freeze: open("freezer.state", OFlags::RDWR)?, events: None, on: false }),
        }
    }

    /// Whether processes that stand still can be ended; else they have to be let go on for it.
    pub fn ends_frozen(&self) -> bool {
        self.events.is_some()
    }

    /// Stops all processes in it; returns once they stand. `false` if one did not within `timeout`
    /// (it waits for a device, say): then all go on again.
    pub fn freeze(&mut self, timeout: Duration) -> Result<bool, SysError> {
        self.begin()?;
        let stands = self.wait(timeout)?;
        if !stands {
            self.thaw()?;
        }
        Ok(stands)
    }

    /// Has all processes in it stop, without waiting for them.
    pub fn begin(&mut self) -> Result<(), SysError> {
        self.on = true;
        self.write(if self.events.is_some() { b"1" } else { b"FROZEN" })
    }

    /// Waits until all stand, and says whether they do.
    ///
    /// A process that waits for another one by way of the kernel (a file behind FUSE) cannot be stopped until it is
    /// answered, and who would answer may stand already. So they are let go on for a moment from time to time.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, SysError> {
        let end = Instant::now() + timeout;
        let mut nudges = 0;
        let mut nudge = Instant::now() + patience(nudges);
        loop {
            if self.is_frozen()? {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= end {
                return Ok(false);
            }
            if now >= nudge {
                self.write(if self.events.is_some() { b"0" } else { b"THAWED" })?;
                std::thread::sleep(NUDGE);
                self.write(if self.events.is_some() { b"1" } else { b"FROZEN" })?;
                nudges += 1;
                nudge = Instant::now() + patience(nudges);
                continue;
            }
            let left = end.min(nudge).saturating_duration_since(now);
            let Some(events) = &self.events else {
                std::thread::sleep(left.min(V1_LOOK_AGAIN));
                continue;
            };
            // The kernel tells of every change of the file, from the last time that it was read.
            let mut wait = [PollFd::new(events, PollFlags::PRI)];
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match rustix::event::poll(&mut wait, Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(SysError::new("poll", "cgroup.events", errno.raw_os_error())),
            }
        }
    }

    /// Leaves them as they are when this is dropped.
    pub fn keep(&mut self) {
        self.on = false;
    }

    /// Lets them go on. What is not frozen stays so; a cgroup that is gone holds nothing.
    pub fn thaw(&mut self) -> Result<(), SysError> {
        match self.write(if self.events.is_some() { b"0" } else { b"THAWED" }) {
            Err(error) if !matches!(error.errno, libc::ENODEV | libc::ENOENT) => return Err(error),
            _ => self.on = false,
        }
        Ok(())
    }

    fn write(&self, value: &[u8]) -> Result<(), SysError> {
        rustix::io::pwrite(&self.freeze, value, 0).map(drop).map_err(SysError::rustix("write", "cgroup freezer"))
    }

    /// Whether all stand.
    pub fn is_frozen(&self) -> Result<bool, SysError> {
        let mut text = [0_u8; 256];
        let file = self.events.as_ref().unwrap_or(&self.freeze);
        let length = rustix::io::pread(file, &mut text, 0).map_err(SysError::rustix("read", "cgroup freezer"))?;
        let wanted: &[u8] = if self.events.is_some() { b"frozen 1" } else { b"FROZEN" };
        Ok(text[..length].split(|byte| *byte == b'\n').any(|line| line == wanted))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.on {
            let _ = self.thaw();
        }
    }
}
