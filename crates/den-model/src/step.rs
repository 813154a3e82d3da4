//! A step: one thing done to a computer through Den.

use serde::{Deserialize, Serialize};

use crate::{ChangeCount, Micros};

/// Counts the steps of one computer from 1.
pub type StepNumber = u64;

/// What kind of thing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A command.
    Exec,
    /// The image's own command, started at boot.
    Entrypoint,
    /// A change of files through the file interface.
    Files,
    /// The disk was taken back to an earlier state; the command says to which.
    Restore,
    /// Changes of a fork came in; the command says of which.
    Merge,
    /// One start of a service; [`Step::who`] says of which.
    Service,
}

impl StepKind {
    /// All there are.
    pub const ALL: [Self; 6] = [Self::Exec, Self::Entrypoint, Self::Files, Self::Restore, Self::Merge, Self::Service];

    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Entrypoint => "entrypoint",
            Self::Files => "files",
            Self::Restore => "restore",
            Self::Merge => "merge",
            Self::Service => "service",
        }
    }

    /// Whether it has a log, for output.
    pub const fn has_log(self) -> bool {
        matches!(self, Self::Exec | Self::Entrypoint | Self::Service)
    }

    /// Whether a computer is in use while it runs. What runs for as long as its computer does says nothing.
    pub const fn keeps_awake(self) -> bool {
        !matches!(self, Self::Entrypoint | Self::Service)
    }

    /// The kind of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Whether a step goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// It goes on.
    Running,
    /// It has ended; [`Step::end`] says how.
    Ended,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum StepEnd {
    /// The command returned this code.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// It ran past its time; its whole process group was ended.
    TimedOut,
    /// It could not be started: no such command, not executable, ….
    NotStarted {
        /// What a shell would return: 127 not found, 126 not executable.
        code: i32,
        /// What a shell would say.
        message: String,
    },
    /// Its computer ended or stopped beneath it.
    Lost,
}

impl StepEnd {
    /// The exit code a shell would show: 128 and the signal for signals, 124 for timed out.
    pub fn exit_code(&self) -> i32 {
        match *self {
            Self::Exited { code } | Self::NotStarted { code, .. } => code,
            Self::Signaled { signal } => 128 + signal,
            Self::TimedOut => 124,
            Self::Lost => 137,
        }
    }
}

/// A step as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number in its computer.
    pub number: StepNumber,
    /// What kind of thing.
    pub kind: StepKind,
    /// The command and its arguments, or the file operation and its paths. Bytes that are no
    /// UTF-8 are shown as U+FFFD; the exact ones went to the agent.
    pub argv: Vec<String>,
    /// As whom inside.
    pub user: Option<String>,
    /// Where inside.
    pub cwd: Option<String>,
    /// Whether it has a terminal.
    pub pty: bool,
    /// Who asked: the name of the token or interface.
    pub who: String,
    /// When it was asked for.
    pub started_at: Micros,
    /// When it ended.
    pub ended_at: Option<Micros>,
    /// How it ended; none while it runs.
    pub end: Option<StepEnd>,
    /// Bytes of output so far (both streams), counted even where they were cut.
    pub output_bytes: u64,
    /// The kept state after it; none while it runs, or where none was kept.
    pub snapshot: Option<u64>,
    /// How many paths it changed, where that is known.
    pub changes: Option<ChangeCount>,
}

impl Step {
    /// One that has just begun: of the host's own doing, as nobody inside and with no terminal.
    pub fn begun(number: StepNumber, kind: StepKind, argv: Vec<String>, who: String, started_at: Micros) -> Self {
        Self {
            number,
            kind,
            argv,
            user: None,
            cwd: None,
            pty: false,
            who,
            started_at,
            ended_at: None,
            end: None,
            output_bytes: 0,
            snapshot: None,
            changes: None,
        }
    }

    /// Whether it goes on.
    pub fn status(&self) -> StepStatus {
        if self.end.is_some() { StepStatus::Ended } else { StepStatus::Running }
    }
}
