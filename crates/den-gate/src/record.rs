//! What the gate writes down: one JSON object a line, in the computer's folder on the host.
//!
//! `net/flows-<n>.jsonl`; a new file begins at [`FILE_BYTES_MAX`], and the newest [`FILES_KEPT`]
//! stay. A reader's place is `<n>:<byte>`.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Length at which a new file is begun, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Files that are kept.
pub const FILES_KEPT: u64 = 2;

/// One fact about a computer's network. All of them are the host's own observation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// Microseconds since 1970, UTC.
    pub at: u64,
    /// What kind of fact.
    pub kind: Kind,
    /// Number of the flow, counted by the gate: ties `open`, `http` and `close` together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<u64>,
    /// What was spoken, as far as it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Where the computer wanted to go, as it said it: `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<SocketAddr>,
    /// The name that this stands for, by the gate's own answer or by what was spoken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// Where the gate has connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialled: Option<SocketAddr>,
    /// What was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Outcome>,
    /// Why, as a stable code: see [`crate::decide::Why`], or how a flow ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Cow<'a, str>>,
    /// The rule that decided, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Cow<'a, str>>,
    /// One more detail: a DNS record type, `GET /path` of a request, the name of a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    /// Answers of a DNS query.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<IpAddr>,
    /// Bytes from the computer, at a flow's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_bytes: Option<u64>,
    /// Bytes to the computer, at a flow's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_bytes: Option<u64>,
    /// How long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// How many of the same kind this stands for, where more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Record<'_> {
    /// An empty one of this kind, now.
    pub fn new(kind: Kind) -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            at: since.as_micros() as u64,
            kind,
            flow: None,
            protocol: None,
            target: None,
            name: None,
            dialled: None,
            verdict: None,
            why: None,
            rule: None,
            detail: None,
            answers: Vec::new(),
            up_bytes: None,
            down_bytes: None,
            ms: None,
            count: None,
        }
    }
}

/// What kind of fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A flow was asked for, and decided.
    Open,
    /// A flow that was allowed has ended.
    Close,
    /// One request inside an inspected flow.
    Http,
    /// A name was asked for.
    Dns,
    /// A limit was reached.
    Limit,
    /// Packets were dropped: `forged`, with another address or MAC than the computer's, or
    /// `no_flow`, neither TCP nor DNS.
    Drop,
    /// The gate took the link up.
    Gate,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// A person is asked. No rule leads here yet.
    Ask,
}

/// What was spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TLS; spliced.
    Tls,
    /// HTTP/1 in the clear.
    Http,
    /// Bytes that were not looked at, or are neither.
    Tcp,
    /// DNS over UDP or TCP.
    Dns,
}
