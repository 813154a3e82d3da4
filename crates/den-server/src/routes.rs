//! The endpoints: each turns a request into one call of `den-control` and its answer into a
//! response.

use den_control::{Control, Who};
use tokio_util::sync::CancellationToken;

pub(crate) mod computers;
pub(crate) mod files;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod net;
pub(crate) mod ports;
pub(crate) mod service;
pub(crate) mod sockets;
pub(crate) mod steps;
pub(crate) mod tar;
mod transfer;

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) control: Control,
    /// Cancelled when the daemon is to end.
    pub(crate) stop: CancellationToken,
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
