//! Which state follows which: two pure functions that the task of a computer obeys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a computer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its row is there, its processes are not yet.
    Creating,
    /// Its agent has answered.
    Running,
    /// Being ended; the disk stays.
    Stopping,
    /// No process; the disk is there.
    Stopped,
    /// Coming back on the disk it had.
    Starting,
    /// It ended without being asked to, or did not come up. The disk is there.
    Failed,
    /// Being unmade; the name is free again.
    Removing,
    /// All of its processes stand still; memory and connections are kept. A request wakes it.
    Paused,
    /// It stands still, nothing leaves it and nothing gets in: kept as evidence.
    Unplugged,
    /// Removed, with its disk, steps and states kept until the trash is emptied; the name is free again.
    Trashed,
}

/// What someone may ask of a computer. A request may be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Boot on the disk.
    Start,
    /// End all processes, keep the disk.
    Stop,
    /// Unmake it.
    Remove,
    /// Run a command or touch a file inside.
    Use,
    /// Make another one of a state of it.
    Fork,
    /// Put the disk back to a state.
    Restore,
    /// Let its processes stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// Cut it off, standing still.
    Unplug,
    /// Take it back to what it was when it was cut off.
    Replug,
    /// Take it out of the trash.
    Undelete,
    /// Give it another size.
    Resize,
}

/// What has happened to a computer. A fact may not be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The agent has answered.
    Booted,
    /// PID 1 is gone.
    Died,
    /// It could not be brought up.
    BootFailed,
    /// The host was started anew, so nothing runs.
    HostRestarted,
}

/// A request that the present state does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a computer that is {state} does not take `{request}`")]
pub struct Refused {
    /// The state it is in.
    pub state: State,
    /// What was asked.
    pub request: Request,
}

impl State {
    /// Every state, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Creating,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Starting,
        Self::Failed,
        Self::Removing,
        Self::Paused,
        Self::Unplugged,
        Self::Trashed,
    ];

    /// The state after `request` was taken.
    ///
    /// Errors: [`Refused`] where this state does not take it.
    pub fn ask(self, request: Request) -> Result<Self, Refused> {
        use {Request as R, State as S};
        match (self, request) {
            (S::Stopped | S::Failed, R::Start) => Ok(S::Starting),
            (S::Running | S::Starting | S::Paused, R::Stop) => Ok(S::Stopping),
            (S::Running, R::Use) => Ok(S::Running),
            // It is booted anew on the disk that it gets.
            (S::Running | S::Paused, R::Restore) => Ok(S::Starting),
            (S::Stopped | S::Failed, R::Restore) => Ok(S::Stopped),
            (S::Running, R::Pause) => Ok(S::Paused),
            (S::Paused, R::Resume) => Ok(S::Running),
            // Whatever it is doing; asked for again, it is what it is.
            (S::Running | S::Paused | S::Stopping | S::Stopped | S::Starting | S::Failed | S::Unplugged, R::Unplug) => {
                Ok(S::Unplugged)
            }
            // Where nothing of it runs any more; else to where it was.
            (S::Unplugged, R::Replug) => Ok(S::Stopped),
            (S::Trashed, R::Undelete) => Ok(S::Stopped),
            (S::Running | S::Paused | S::Stopped | S::Failed, R::Resize) => Ok(self),
            (S::Removing, _) => Err(Refused { state: self, request }),
            (state, R::Fork) if state != S::Creating => Ok(state),
            (_, R::Remove) => Ok(S::Removing),
            (state, request) => Err(Refused { state, request }),
        }
    }

    /// The state after `fact`. Late news changes nothing.
    pub fn learn(self, fact: Fact) -> Self {
        use {Fact as F, State as S};
        match (self, fact) {
            (S::Creating | S::Starting, F::Booted) => S::Running,
            (S::Stopping, F::Died) => S::Stopped,
            (S::Creating | S::Starting | S::Running | S::Paused, F::Died) => S::Failed,
            (S::Creating | S::Starting, F::BootFailed) => S::Failed,
            (S::Creating | S::Running | S::Starting | S::Stopping | S::Paused, F::HostRestarted) => S::Stopped,
            // What is cut off stays so, though nothing of it runs.
            (state, _) => state,
        }
    }

    /// As it travels and as it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Removing => "removing",
            Self::Paused => "paused",
            Self::Unplugged => "unplugged",
            Self::Trashed => "trashed",
        }
    }

    /// The state of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl Request {
    /// Every request.
    pub const ALL: [Self; 12] = [
        Self::Start,
        Self::Stop,
        Self::Remove,
        Self::Use,
        Self::Fork,
        Self::Restore,
        Self::Pause,
        Self::Resume,
        Self::Unplug,
        Self::Replug,
        Self::Undelete,
        Self::Resize,
    ];
}

impl Fact {
    /// Every fact.
    pub const ALL: [Self; 4] = [Self::Booted, Self::Died, Self::BootFailed, Self::HostRestarted];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Use => "use",
            Self::Fork => "fork",
            Self::Restore => "restore",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Unplug => "unplug",
            Self::Replug => "replug",
            Self::Undelete => "undelete",
            Self::Resize => "resize",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        for state in State::ALL {
            for request in Request::ALL {
                let to = state.ask(request).map_or("refused".to_owned(), |to| to.to_string());
                table += &format!("{state:<9} ask   {request:<14} {to}\n");
            }
            for fact in Fact::ALL {
                table += &format!("{state:<9} learn {:<14} {}\n", format!("{fact:?}"), state.learn(fact));
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn states_read_back() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
    }
}
