//! An event: something that happened to a computer or to the house, for who watches from outside.
//!
//! Commands are no events; they are steps, with a record of their own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ComputerId, Micros};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $text:literal,)*) => {
        /// What happened. Its text is a contract: kinds are added, never renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $text)] $kind,)*
        }

        impl EventKind {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// As it is stored, sent and shown.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// A computer was made; the detail says of which image.
    Created = "created",
    /// A computer is gone for good.
    Removed = "removed",
    /// A computer runs again.
    Started = "started",
    /// A computer was stopped, by somebody or for being idle.
    Stopped = "stopped",
    /// A computer ended by itself or did not come up; the detail says why.
    Failed = "failed",
    /// All its processes were frozen, by somebody or for being idle.
    Paused = "paused",
    /// They go on.
    Resumed = "resumed",
    /// A request woke it.
    Woken = "woken",
    /// It was cut off from everything, as evidence.
    Unplugged = "unplugged",
    /// It was taken back from that.
    Replugged = "replugged",
    /// A computer was made of a state of another one.
    Forked = "forked",
    /// A disk was taken back to a state.
    Restored = "restored",
    /// Changes of a fork came in.
    Merged = "merged",
    /// What it may reach was changed.
    PolicyChanged = "policy_changed",
    /// It has another size.
    Resized = "resized",
    /// It was put into the trash.
    Trashed = "trashed",
    /// It came back from there.
    Undeleted = "undeleted",
    /// Something was taken back.
    Undone = "undone",
    /// A service was started.
    ServiceStarted = "service_started",
    /// A service passed its check.
    ServiceReady = "service_ready",
    /// A service ended and is not started again.
    ServiceFailed = "service_failed",
    /// A service ended and is started again in a while.
    ServiceBackingOff = "service_backing_off",
    /// A backup of the house was made; the detail says where to.
    BackupDone = "backup_done",
    /// A backup of the house was not made; the detail says why.
    BackupFailed = "backup_failed",
    /// A shared volume was made; the detail says which.
    VolumeMade = "volume_made",
    /// A shared volume is gone for good; the detail says which.
    VolumeRemoved = "volume_removed",
    /// A service was stopped.
    ServiceStopped = "service_stopped",
    /// The kernel ended a process inside, because the computer's memory was used up.
    Oom = "oom",
    /// A limit was reached; the detail's `what` says which.
    LimitReached = "limit_reached",
    /// Kept states were let go; the detail says which and why.
    StateDropped = "state_dropped",
    /// The disk of the data folder has little room left.
    DiskLow = "disk_low",
    /// The gate had ended and runs again.
    GateRestarted = "gate_restarted",
    /// The launcher had ended and runs again.
    LauncherRestarted = "launcher_restarted",
    /// The daemon has taken up the house.
    DaemonStarted = "daemon_started",
    /// The daemon was told to end everything.
    DaemonEnded = "daemon_ended",
    /// More happened than could be written down; the detail says how much was left out.
    EventsLost = "events_lost",
}

impl EventKind {
    /// The kind of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An event as it is kept. It outlives its computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counts the events of a house from 1, in the order in which they were written down.
    pub number: u64,
    /// When it happened.
    pub at: Micros,
    /// What happened.
    pub kind: EventKind,
    /// To which computer.
    pub computer: Option<ComputerId>,
    /// As it was called then.
    pub name: Option<String>,
    /// Who asked for it, where somebody did.
    pub who: Option<String>,
    /// The rest, a JSON object.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_read_back_and_no_two_are_called_the_same() {
        for &kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(EventKind::parse("exploded"), None);
    }
}
