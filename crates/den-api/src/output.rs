//! A step's output on its way to a client.
//!
//! Two forms of the same stream. With `Accept: application/vnd.den.output` it is binary frames:
//!
//! ```text
//! frame = kind u8 · 0 u8 · 0 u16 · length u32 LE · offset u64 LE · payload
//! kind  = 1 stdout · 2 stderr · 3 terminal · 4 cut (payload: bytes that are gone, u64 LE)
//!         5 end (payload: JSON of the step's view) · 6 started (payload: JSON of the step's view)
//!         7 error (payload: JSON of the error body; nothing follows)
//! ```
//!
//! `offset` counts bytes of output before the frame, so that `from=` goes on exactly there. With
//! `text/event-stream` the events are `stdout`, `stderr`, `terminal` (data: `{"offset":…,"data":
//! base64}`), `cut` (`{"offset":…,"bytes":…}`), `started` and `end` (the step's view), `error`; the
//! event id is the offset after it. WebSocket binary messages hold one frame each.

use bytes::{BufMut, Bytes, BytesMut};

/// The media type of the binary form.
pub const OUTPUT_MEDIA_TYPE: &str = "application/vnd.den.output";

/// Length of a frame's head, in bytes.
pub const OUTPUT_HEAD_BYTES: usize = 16;

/// The longest payload, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OutputKind {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// The terminal.
    Terminal = 3,
    /// Bytes that are gone.
    Cut = 4,
    /// The step has ended.
    End = 5,
    /// The step has started.
    Started = 6,
    /// The stream ends early.
    Error = 7,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame {
    /// What it is.
    pub kind: OutputKind,
    /// Bytes of output before it.
    pub offset: u64,
    /// See the module's table.
    pub payload: Bytes,
}

/// The head of a frame, to be followed by `length` bytes.
pub fn output_head(kind: OutputKind, length: usize, offset: u64) -> [u8; OUTPUT_HEAD_BYTES] {
    let mut head = [0; OUTPUT_HEAD_BYTES];
    head[0] = kind as u8;
    head[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    head[8..].copy_from_slice(&offset.to_le_bytes());
    head
}

impl OutputFrame {
    /// As it travels.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(OUTPUT_HEAD_BYTES + self.payload.len());
        bytes.put_slice(&output_head(self.kind, self.payload.len(), self.offset));
        bytes.put_slice(&self.payload);
        bytes.freeze()
    }

    /// Takes the first whole frame off `buffer`; `None` while it is not all there.
    ///
    /// Errors: a text that says what is no frame.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, String> {
        if buffer.len() < OUTPUT_HEAD_BYTES {
            return Ok(None);
        }
        let length = u32::from_le_bytes(buffer[4..8].try_into().expect("4 bytes")) as usize;
        if length > OUTPUT_BYTES_MAX {
            return Err(format!("an output frame of {length} bytes is longer than {OUTPUT_BYTES_MAX}"));
        }
        let kind = match buffer[0] {
            1 => OutputKind::Stdout,
            2 => OutputKind::Stderr,
            3 => OutputKind::Terminal,
            4 => OutputKind::Cut,
            5 => OutputKind::End,
            6 => OutputKind::Started,
            7 => OutputKind::Error,
            other => return Err(format!("an output frame of unknown kind {other}")),
        };
        if buffer.len() < OUTPUT_HEAD_BYTES + length {
            return Ok(None);
        }
        let offset = u64::from_le_bytes(buffer[8..16].try_into().expect("8 bytes"));
        let mut frame = buffer.split_to(OUTPUT_HEAD_BYTES + length);
        let payload = frame.split_off(OUTPUT_HEAD_BYTES).freeze();
        Ok(Some(Self { kind, offset, payload }))
    }
}
