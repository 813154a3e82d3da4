//! Between `serve` and the gate: one JSON object a line on RUN/gate.sock, one answer to each
//! request, in order. The gate knows nothing that was not said here, and goes on with what it was
//! told last while `serve` is away.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::policy::{Policy, PrivateTarget};

/// Of this protocol.
pub const VERSION: u16 = 1;
/// The longest line, in bytes: a policy of 256 long rules fits.
pub const LINE_BYTES_MAX: usize = 256 << 10;
/// Links in one answer.
pub const STATUSES_MAX: usize = 500;

/// What `serve` asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Who is there? Answered with `Hello`.
    Hello {
        /// Of `serve`: [`VERSION`].
        version: u16,
    },
    /// What holds for all computers. Replaces what was said before.
    House(House),
    /// Takes a link up. One that is attached already is attached anew, with its flows kept where
    /// the policy still allows them.
    Attach(Box<Attach>),
    /// Lets a link go: its flows end. One that is not attached is no error.
    Detach {
        /// The computer's id.
        id: String,
    },
    /// Another policy for a computer; live flows that it does not allow end within a second.
    Policy {
        /// The computer's id.
        id: String,
        /// The new one, whole.
        policy: Policy,
    },
    /// What a computer's link carries. Answered with `Status`.
    Status {
        /// The computer's id.
        id: String,
    },
    /// What all links carry, a page at a time. Answered with `Statuses`.
    Statuses {
        /// The last id of the page before.
        after: Option<String>,
    },
    /// Ends all flows and exits.
    Exit,
}

/// What holds for all computers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct House {
    /// Targets under the floor that the operator has opened.
    pub private: Vec<PrivateTarget>,
    /// Whom to ask for names; none: the host's own resolvers.
    pub resolvers: Vec<IpAddr>,
    /// Keys the virtual addresses of names: 32 bytes as 64 hexadecimal digits.
    pub key: String,
}

/// A link to take up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// The computer's id.
    pub id: String,
    /// Its name: other computers' `vm:` rules mean it by this.
    pub name: String,
    /// The link's number: its interface in the gate's namespace has index 1000 + this.
    pub link: u64,
    /// The folder on the host for its records and names. The gate makes it (0700).
    pub folder: PathBuf,
    /// The socket of its agent, for flows to it.
    pub agent: PathBuf,
    /// What it may reach.
    pub policy: Policy,
}

/// What the gate answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Who is there.
    Hello {
        /// The gate's [`VERSION`].
        version: u16,
        /// Its process.
        pid: u32,
        /// Digest of its program: another one is replaced.
        program: String,
    },
    /// It is done.
    Done,
    /// What a link carries.
    Status(Status),
    /// What all links carry.
    Statuses(Statuses),
    /// It was not done, and nothing has changed.
    Failed {
        /// Stable.
        code: String,
        /// For the log.
        message: String,
    },
}

/// What all links carry.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Statuses {
    /// Since the gate began, with the links that are gone.
    pub all: Status,
    /// Links by the ids of their computers, rising.
    pub links: Vec<(String, Status)>,
    /// Whether there are more.
    pub more: bool,
}

/// What a link carries, since the gate took it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
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

impl Status {
    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        self.flows = self.flows.saturating_add(other.flows);
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.limited += other.limited;
        self.up_bytes += other.up_bytes;
        self.down_bytes += other.down_bytes;
        self.day_bytes += other.day_bytes;
    }
}
