//! Names: what a computer is told, and what the gate finds out for itself.
//!
//! ```text
//! query ─► answer ─┬─ guarded ─► names     a virtual address; nothing leaves the host
//!                  ├─ denied ──► REFUSED   nothing leaves the host
//!                  └─ open ────► resolver  real records
//! flow to a name ───────────────► resolver  when policy has let it through
//! ```
//!
//! Invariant: of a name that policy does not allow, not one byte reaches a DNS server.
//!
//! Not here: sockets, and how often a computer may ask (`plane`).

mod answer;
mod message;
mod names;
mod resolver;
#[cfg(test)]
mod tests;

pub use answer::{Transport, answer};
pub use message::{EDE_BLOCKED, EDE_NETWORK, EDE_OTHER, refused};
pub use names::{NAMES_MAX, Names, is_virtual};
pub use resolver::{Found, ResolveError, Resolver};
