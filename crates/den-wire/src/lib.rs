//! What travels between the host and the agent inside a computer, between `serve` and the
//! launcher, and how a step's output lies in its log. Either side may be older than the other.
//!
//! ```text
//! frame    = length u32 LE (of the payload) · kind u8 · payload
//! kind     = message (CBOR map, see `agent`, `launcher`) · data (bytes) · end (of the data)
//! ```
//!
//! One connection carries one operation: the first frame is the request, what follows belongs to
//! it, and closing the connection abandons it. So the kernel's socket buffers are the flow
//! control, and a slow transfer holds up no other. A carrier with a single channel
//! (virtio-serial) puts a multiplexer under this.
//!
//! How it evolves: fields and variants have numbers that are never used again. A reader skips
//! fields it does not know and takes what is missing for `None`; a variant that it does not know
//! fails to decode, which is answered with [`agent::FailureKind::Unsupported`]. [`VERSION`] counts
//! additions, and each side says its own in `Hello`.
//!
//! Deliberately absent: sockets, files, and any idea of what a request means.

pub mod agent;
pub mod frame;
pub mod launcher;
pub mod log;

pub use frame::{Frame, FrameKind, WireError, read_frame, write_end, write_frame, write_message};

/// Version of this protocol: 1 is the first. Goes up by one with each addition.
///
/// 2: `Ports`; a dialled connection that is closed as a whole is a reset.
/// 3: `Apply`.
/// 4: `CreateSharing`.
pub const VERSION: u16 = 4;

/// The longest payload of one frame, in bytes. A longer one is refused before it is read.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// How much of a file or archive goes into one data frame, in bytes.
pub const DATA_CHUNK_BYTES: usize = 256 << 10;
