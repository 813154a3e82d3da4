//! What states of computers hold, how two of them differ, and what a merge of them is.
//!
//! ```text
//! snapshot (upper) + image layers ──► View: a read-only overlay that only this process sees
//! two states ──► changed paths ──► diff ──► files, and by meaning: packages, users, …
//! base, ours, theirs ──► merge plan: operations, or conflicts
//! ```
//!
//! Invariants:
//! - What is read was written by a computer, and is hostile: nothing is resolved but beneath the
//!   root of a view, links stay in it, devices and pipes are never opened, and each read has a limit.
//! - Nothing here writes to a state.
//!
//! Deliberately absent: who may look (control), subvolumes (`den-disk`), running computers.

mod blame;
mod changed;
mod diff;
mod error;
mod look;
pub mod meaning;
pub mod merge;
mod progress;
mod same;
mod text;
mod view;
mod volumes;

pub use blame::{BlamedLine, blame_lines};
pub use changed::changed_paths;
pub use diff::{DiffOptions, Difference, RawChange, diff};
pub use error::HistoryError;
pub use look::{GrepOptions, grep, list, read, stat, tar};
pub use progress::{Phase, Progress};
pub use text::{is_text, unified};
pub use view::{Meta, Stamp, State, View, show};
