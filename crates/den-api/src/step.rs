//! Steps.

use std::collections::BTreeMap;

use den_model::{Micros, Step, StepEnd};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ChangeCount;

/// `POST /v1/computers/{name}/steps`, and the first text message of the WebSocket
/// `GET /v1/computers/{name}/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The command and its arguments; looked up in PATH.
    pub argv: Vec<String>,
    /// Where; the image's working directory or the user's home without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment over the computer's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Name or number, optionally `:group`; the image's user or root without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A standard input given whole, as base64. For one that is streamed use the WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// WebSocket only: whether binary messages are its standard input.
    #[serde(default)]
    pub stream_stdin: bool,
    /// A terminal for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtySize>,
    /// After this many milliseconds its whole process group is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Answer as soon as it runs, with its view; the output is read with `…/output`.
    #[serde(default)]
    pub detach: bool,
    /// Bytes of output that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_bytes: Option<u64>,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PtySize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// `TERM`; `xterm-256color` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
}

/// Text messages of the WebSocket from the client after the first. Binary messages are standard
/// input; an empty one ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum WsInput {
    /// The terminal has another size.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// A signal to the step's process group: a name (`INT`, `SIGINT`) or a number as text.
    Signal {
        /// Which.
        signal: String,
    },
}

/// `POST /v1/computers/{name}/steps/{number}/signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// A name (`INT`, `SIGINT`) or a number as text.
    pub signal: String,
    /// Only the step's first process in place of its whole group.
    #[serde(default)]
    pub process_only: bool,
}

/// A step as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Its number in its computer, from 1.
    pub number: u64,
    /// `exec`, `entrypoint`, `files`, `restore`, `merge` or `service`.
    pub kind: String,
    /// `running` or `ended`.
    pub status: String,
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// As whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Whether it has a terminal.
    pub pty: bool,
    /// Who asked.
    pub who: String,
    /// Microseconds since the epoch.
    pub started_at: Micros,
    /// Microseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Micros>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<EndView>,
    /// Bytes of output so far, cut ones included.
    pub output_bytes: u64,
    /// The number of the kept state after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<u64>,
    /// How many paths it changed, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangeCount>,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndView {
    /// `exited`, `signaled`, `timed_out`, `not_started` or `lost`.
    pub how: String,
    /// The code a shell would show: the command's own, 128 + signal, 124 for timed out.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it was not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl From<&StepEnd> for EndView {
    fn from(end: &StepEnd) -> Self {
        let (how, signal, message) = match end {
            StepEnd::Exited { .. } => ("exited", None, None),
            StepEnd::Signaled { signal } => ("signaled", Some(*signal), None),
            StepEnd::TimedOut => ("timed_out", None, None),
            StepEnd::NotStarted { message, .. } => ("not_started", None, Some(message.clone())),
            StepEnd::Lost => ("lost", None, None),
        };
        Self { how: how.to_owned(), exit_code: end.exit_code(), signal, message }
    }
}

impl From<&Step> for StepView {
    fn from(step: &Step) -> Self {
        Self {
            number: step.number,
            kind: step.kind.as_str().to_owned(),
            status: if step.end.is_some() { "ended" } else { "running" }.to_owned(),
            argv: step.argv.clone(),
            user: step.user.clone(),
            cwd: step.cwd.clone(),
            pty: step.pty,
            who: step.who.clone(),
            started_at: step.started_at,
            ended_at: step.ended_at,
            end: step.end.as_ref().map(EndView::from),
            output_bytes: step.output_bytes,
            snapshot: step.snapshot,
            changes: step.changes.map(ChangeCount::from),
        }
    }
}

/// The answer to an exec that was asked for as JSON: how it ended and its output, at most
/// [`EXEC_OUTPUT_BYTES_MAX`] of each stream. The output of a terminal is in `stdout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// The step.
    pub step: StepView,
    /// Standard output; empty where it is no UTF-8.
    pub stdout: String,
    /// Standard error; empty where it is no UTF-8.
    pub stderr: String,
    /// Standard output where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// Standard error where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
    /// Whether there was more; all that was kept is read with `…/steps/{number}/output`.
    pub truncated: bool,
}

/// How much of each stream an [`ExecResult`] holds, in bytes.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// `GET /v1/computers/{name}/steps/{number}/output` as JSON: a piece of the output, at most
/// [`OUTPUT_VIEW_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputView {
    /// The offset of the first byte that was looked at.
    pub offset: u64,
    /// Pass it as `from` to go on.
    pub next: u64,
    /// The bytes of the chosen stream, or of all in the order in which they came, as base64.
    pub data_base64: String,
    /// The same where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Bytes between `offset` and `next` that are gone.
    pub cut_bytes: u64,
    /// Whether the step has ended and nothing follows.
    pub ended: bool,
    /// The step.
    pub step: StepView,
}

/// How much an [`OutputView`] holds, in bytes.
pub const OUTPUT_VIEW_BYTES_MAX: usize = 1 << 20;
