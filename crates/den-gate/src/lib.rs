//! The gate: the only way out of a computer, and the one place that decides what may leave.
//!
//! ```text
//! computer ──eth0══l<seq>──► listener of this link ──► peek ──► decide ──► record ──► dial ──► upstream
//!                            (gate's namespace:                              (host's namespace)
//!                             no route to anywhere)
//! ```
//!
//! Invariants:
//! - Nothing is routed. Every flow ends here and is dialled anew; a dead gate is a closed gate.
//! - A computer is known by the link it came in by, never by an address, a name or a header.
//! - One function decides ([`decide::decide`]), one records ([`record::Record`]); a flow that
//!   cannot be recorded is not dialled.
//! - What was decided is what is dialled: a name is resolved here, and each address is held against
//!   the floor before it is used.
//!
//! Not here: rows, HTTP API, who may change a policy (`den-control`).

pub mod decide;
pub mod dns;
pub mod floor;
pub mod host;
pub mod http;
pub mod lint;
pub mod peek;
pub mod plane;
pub mod policy;
pub mod record;
pub mod rule;
pub mod wire;
