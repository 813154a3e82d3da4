//! Plain HTTP under guard: every request of a connection is looked at, and written anew.
//!
//! ```text
//! client ─► strict ─────► hyper ─► authorise ─► hyper ─► upstream     one connection, dialled when
//!           heads, byte   server   every        client                the first request may pass
//!           by byte                request
//! ```
//!
//! Invariants:
//! - What one side reads as one request, the other gets as one request: heads that can be read in
//!   two ways are refused before they are parsed, and what goes out is hyper's own writing.
//! - Each request passes [`authorise`], the second one of a connection as the first.
//! - Bodies stream: nothing of them is kept, and who reads slowly slows who writes.
//! - After 101 nothing is read any more; only a WebSocket gets there.
//!
//! Not here: which host may be talked to at all ([`crate::decide`]), sockets and limits (`plane`).

mod authorise;
mod guard;
mod refusal;
mod relay;
mod strict;
#[cfg(test)]
mod tests;

pub use authorise::{Verdict, authorise};
pub use refusal::{DialRefused, Refusal, refusal};
pub use relay::{Event, PATH_BYTES_MAX, Totals, serve};
