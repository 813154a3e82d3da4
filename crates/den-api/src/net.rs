//! What a computer may reach, what it did reach, and changes of both.

use std::net::{IpAddr, SocketAddr};

use den_model::Micros;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `net` of a create. What is left out is as the house has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetRequest {
    /// `open`, `guarded` or `sealed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "guarded")]
    pub posture: Option<String>,
    /// What it may reach in `guarded`: `example.com`, `*.example.com:8443`, `tcp://db.example.com:5432`,
    /// `192.0.2.0/24`, `vm:db:5432`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// What it may not reach, in any posture. Beats `allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// How much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NetLimitsChange>,
    /// Takes rules that are wider than anyone should want: `*`, `*.com`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `PATCH /v1/computers/{c}/net`: all of it or nothing. What is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetChange {
    /// `open`, `guarded` or `sealed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "guarded")]
    pub posture: Option<String>,
    /// Rules to add to `allow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_add: Vec<String>,
    /// Rules to add to `deny`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny_add: Vec<String>,
    /// Rules to take out of both lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Limits to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NetLimitsChange>,
    /// Takes rules that are wider than anyone should want: `*`, `*.com`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Limits to set; 0 is without a limit, and what is left out stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetLimitsChange {
    /// Flows that are open at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<u32>,
    /// New flows a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_per_s: Option<u32>,
    /// Bits a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_s: Option<u64>,
    /// Bytes a day (UTC), both ways together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    /// DNS queries a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_per_s: Option<u32>,
}

/// `GET /v1/computers/{c}/net`: what a computer may reach, as it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetView {
    /// `open`, `guarded` or `sealed`.
    #[schema(example = "open")]
    pub posture: String,
    /// Why it is sealed though nobody asked for that: the policy in the store cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_because: Option<String>,
    /// What it may reach in `guarded`.
    pub allow: Vec<String>,
    /// What it may not reach, in any posture.
    pub deny: Vec<String>,
    /// How much.
    pub limits: NetLimitsView,
    /// What the operator has opened under the floor, for all computers.
    pub private: Vec<String>,
    /// The address inside; all computers have the same.
    pub address: String,
    /// `up`, or `down`: then nothing leaves any computer.
    #[schema(example = "up")]
    pub gate: String,
    /// Why it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_reason: Option<String>,
    /// What the link has carried since the gate took it up; while the computer runs and the gate is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NetStatusView>,
    /// The latest changes, the newest first; at most 10.
    pub changes: Vec<NetChangeView>,
}

/// How much of the network a computer may use; 0 is without a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetLimitsView {
    /// Flows that are open at once.
    pub flows: u32,
    /// New flows a second.
    pub new_per_s: u32,
    /// Bits a second, each way.
    pub bits_per_s: u64,
    /// Bytes a day (UTC), both ways together.
    pub bytes_per_day: u64,
    /// DNS queries a second.
    pub dns_per_s: u32,
}

/// What a link carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetStatusView {
    /// Flows that are open.
    pub flows: u32,
    /// Flows that were allowed.
    pub allowed: u64,
    /// Flows and queries that were refused.
    pub denied: u64,
    /// Times a limit was reached.
    pub limited: u64,
    /// Bytes from the computer.
    pub up_bytes: u64,
    /// Bytes to the computer.
    pub down_bytes: u64,
    /// Bytes both ways since midnight UTC; counts against the day's limit.
    pub day_bytes: u64,
}

/// One change of what a computer may reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetChangeView {
    /// Microseconds since the epoch.
    pub at: Micros,
    /// Who asked for it.
    pub who: String,
    /// The posture from then on.
    pub posture: String,
    /// How many rules there were from then on, `allow` and `deny` together.
    pub rules: usize,
}

/// `POST /v1/computers/{c}/net/check`: would a flow be let through? Nothing is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetCheck {
    /// `HOST[:PORT]` or `ADDRESS[:PORT]`; port 443 without.
    #[schema(example = "example.com:443")]
    pub target: String,
}

/// What would be decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetDecision {
    /// What was asked about, with its port.
    pub target: String,
    /// `allow`, `deny` or `ask`.
    pub verdict: String,
    /// Why, as a stable code.
    pub why: String,
    /// The rule that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What must hold besides, seen only when there is traffic: that TLS names this host, that the
    /// address behind the name is none of the floor's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provided: Vec<String>,
}

/// One fact about a computer's network, as the gate wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetRecord {
    /// Microseconds since 1970, UTC.
    pub at: u64,
    /// `open` (a flow was decided), `close`, `http` (one request), `dns`, `limit`, `gate`.
    pub kind: String,
    /// Who vouches for it: always `host`.
    #[serde(default = "host")]
    pub trust: String,
    /// Number of the flow: ties `open`, `http` and `close` together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<u64>,
    /// `tls`, `http`, `tcp` or `dns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Where the computer wanted to go: `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub target: Option<SocketAddr>,
    /// The name that this stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the gate has connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dialled: Option<SocketAddr>,
    /// `allow`, `deny` or `ask`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Why, as a stable code, or how a flow ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The rule that decided, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// One more detail: a DNS record type, `GET /path` of a request, the name of a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Answers of a DNS query.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
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

/// `GET /v1/computers/{c}/net/log`: some records, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetLogPage {
    /// The records.
    pub records: Vec<NetRecord>,
    /// Pass it as `cursor` for what comes after.
    pub next: String,
    /// Whether what the cursor pointed to is gone, so that records are missing before these.
    pub lost: bool,
}

fn host() -> String {
    "host".to_owned()
}

impl NetLimitsChange {
    /// Whether it sets nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
