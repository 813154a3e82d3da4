//! What listens inside a computer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The `Upgrade` of `GET …/ports/{port}/connect`: after `101` come the connection's own bytes.
pub const PORT_UPGRADE: &str = "den-tcp";

/// A socket that waits for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The address it is bound to; `0.0.0.0` and `::` are all there are.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Whose it is: a number inside.
    pub uid: u32,
    /// The process that holds it, the first of several; none where it could not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// That process's short name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Its command line, up to 512 bytes of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
}

/// The answer of `GET …/ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortList {
    /// By port.
    pub items: Vec<PortView>,
}
