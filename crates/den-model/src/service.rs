//! A service: a command that a computer keeps running while it runs.
//!
//! ```text
//!            ┌────────────────── backing_off ◄──┐ it ended, and is to be started again
//!            ▼                                  │
//! stopped ─► starting ─► running (no check) ────┤
//!    ▲           └─► ready (its check held) ────┤
//!    └── asked to, or its computer ended        └─► stopped (it was done) · failed (it was not)
//! ```

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{ComputerName, Micros, NameError, StepNumber};

/// How long a service may take to be ready where it does not say.
pub const READY_WITHIN_DEFAULT: Duration = Duration::from_secs(60);

/// How much of the output of one start is kept where a service does not say, in bytes.
pub const SERVICE_KEEP_BYTES: u64 = 64 << 20;

/// Before the first start again.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// The longest wait before one.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// A service that ran for so long begins with the shortest wait again.
const BACK_OFF_RESET: Duration = Duration::from_secs(60);

/// A service's name in its computer: as a computer's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(ComputerName);

impl ServiceName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Who asks for the steps of this service: `service:NAME`.
    pub fn who(&self) -> String {
        format!("service:{self}")
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse().map(Self)
    }
}

/// Why a text says nothing of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// No such word.
    #[error("`{0}` is none of `always`, `on-failure` and `no`")]
    Restart(String),
    /// Neither a port nor a command.
    #[error("`{0}` is neither `port:` with a port from 1 to 65535 nor `exec:` with a command")]
    Ready(String),
}

/// When a service that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// Whatever it ended with.
    #[default]
    Always,
    /// Where it ended with anything but 0.
    OnFailure,
    /// Never.
    No,
}

impl Restart {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::No => "no",
        }
    }

    /// Whether what ended, well or not, is started again.
    pub const fn again(self, well: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !well,
            Self::No => false,
        }
    }
}

impl FromStr for Restart {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let known = [Self::Always, Self::OnFailure, Self::No];
        known.into_iter().find(|restart| restart.as_str() == text).ok_or_else(|| ServiceError::Restart(text.to_owned()))
    }
}

/// What a service is ready by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// A TCP port inside takes a connection: `port:8000`.
    Port(u16),
    /// A command of `sh` ends with 0: `exec:curl -fs localhost`.
    Exec(String),
}

impl FromStr for Ready {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let bad = || ServiceError::Ready(text.to_owned());
        match text.split_once(':') {
            Some(("port", port)) => port.parse().ok().filter(|&port| port > 0).map(Self::Port).ok_or_else(bad),
            Some(("exec", command)) if !command.trim().is_empty() && !command.contains('\0') => {
                Ok(Self::Exec(command.to_owned()))
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port:{port}"),
            Self::Exec(command) => write!(f, "exec:{command}"),
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}
as_text!(ServiceName);
as_text!(Restart);
as_text!(Ready);

/// What a service is, all of it decided when it is added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The command and its arguments.
    pub run: Vec<String>,
    /// When it is started again.
    pub restart: Restart,
    /// What it is ready by; without, it runs and that is all.
    pub ready: Option<Ready>,
    /// How long it may take to be ready.
    pub ready_within_ms: u64,
    /// As whom: the image's user or root without.
    pub user: Option<String>,
    /// Where: the image's working directory or the user's home without.
    pub cwd: Option<String>,
    /// Environment over the computer's.
    pub env: BTreeMap<String, String>,
    /// How much of the output of one start is kept, in bytes.
    pub keep_bytes: u64,
}

/// A service as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// What it is.
    pub spec: ServiceSpec,
    /// Whether it runs while its computer runs.
    pub wanted: bool,
    /// When it was added.
    pub created_at: Micros,
    /// The step of its newest start; 0 before the first.
    pub step: StepNumber,
    /// Whether that start belongs to this run of its computer and to what was asked last.
    pub begun: bool,
    /// Whether its check has held since that start.
    pub ready: bool,
    /// Starts that nobody asked for, since the first of this run.
    pub restarts: u64,
}

impl Service {
    /// One that is to run and never has.
    pub fn new(name: ServiceName, spec: ServiceSpec, created_at: Micros) -> Self {
        Self { name, spec, wanted: true, created_at, step: 0, begun: false, ready: false, restarts: 0 }
    }
}

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Its command is being started, or its check has not held yet.
    Starting,
    /// Its check has held.
    Ready,
    /// It runs, and has no check.
    Running,
    /// It ended, and is started again after a wait.
    BackingOff,
    /// It does not run and need not: it was asked to stop, was done, or its computer does not run.
    Stopped,
    /// It ended, should not have, and is not started again.
    Failed,
}

impl ServiceState {
    /// As it travels and as it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::BackingOff => "backing_off",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The waits before a service is started again: each twice the one before.
#[derive(Debug, Clone, Copy, Default)]
pub struct BackOff {
    ends: u32,
}

impl BackOff {
    /// The wait after it ended, having run for so long.
    pub fn next(&mut self, ran: Duration) -> Duration {
        if ran >= BACK_OFF_RESET {
            self.ends = 0;
        }
        let wait = BACK_OFF_FIRST.saturating_mul(1 << self.ends.min(16)).min(BACK_OFF_MAX);
        self.ends = self.ends.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_begin_anew_after_a_minute_of_running() {
        let mut waits = BackOff::default();
        let seen: Vec<u128> = (0..10).map(|_| waits.next(Duration::from_secs(59)).as_millis()).collect();
        assert_eq!(seen, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(waits.next(Duration::from_secs(60)).as_millis(), 200);
        let mut worn = BackOff { ends: u32::MAX };
        assert_eq!(worn.next(Duration::ZERO), BACK_OFF_MAX);
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["port:1", "port:65535", "exec:curl -fs http://localhost:80/", "exec:true"] {
            assert_eq!(text.parse::<Ready>().map(|ready| ready.to_string()).as_deref(), Ok(text));
        }
        for bad in ["", "port:", "port:0", "port:65536", "port:x", "exec:", "exec: ", "exec:a\0b", "8000", "http:x"] {
            assert_eq!(bad.parse::<Ready>(), Err(ServiceError::Ready(bad.to_owned())));
        }
        for text in ["always", "on-failure", "no"] {
            assert_eq!(text.parse::<Restart>().map(Restart::as_str), Ok(text));
        }
        assert!("never".parse::<Restart>().is_err());
    }

    #[test]
    fn what_ends_is_started_again_or_not() {
        let table = [Restart::Always, Restart::OnFailure, Restart::No].map(|r| (r.again(true), r.again(false)));
        assert_eq!(table, [(true, true), (false, true), (false, false)]);
    }
}
