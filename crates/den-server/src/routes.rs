//! The endpoints: each turns a request into one call of `den-control` and its answer into a
//! response.

use den_control::{Control, Who};
use tokio_util::sync::CancellationToken;

use crate::Token;

pub(crate) mod backup;
pub(crate) mod computers;
pub(crate) mod events;
pub(crate) mod files;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod life;
mod lines;
pub(crate) mod metrics;
pub(crate) mod net;
mod pages;
pub(crate) mod pools;
pub(crate) mod ports;
pub(crate) mod service;
pub(crate) mod services;
pub(crate) mod sockets;
pub(crate) mod steps;
pub(crate) mod tar;
mod transfer;
pub(crate) mod trash;
pub(crate) mod volumes;

/// Who sees the metrics, and how much of them there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetricsSettings {
    /// They need no token.
    pub open: bool,
    /// Some of them are told of each computer.
    pub per_computer: bool,
}

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) control: Control,
    /// Cancelled when the daemon is to end.
    pub(crate) stop: CancellationToken,
    pub(crate) token: Token,
    pub(crate) metrics: MetricsSettings,
}

/// Who asks: there is one token so far, so it is the interface that is named.
fn who() -> Who {
    Who("api".to_owned())
}

/// Bytes, in the contract.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes bodies")]
struct Octets(Vec<u8>);
