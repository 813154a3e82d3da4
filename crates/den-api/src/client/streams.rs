//! Answers that are read piece by piece.

use std::marker::PhantomData;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::{Answer, Client, ClientError};
use crate::output::{OUTPUT_BYTES_MAX, OUTPUT_HEAD_BYTES, OutputFrame, OutputKind};

/// The longest line of an NDJSON answer, in bytes.
const LINE_BYTES_MAX: usize = 4 << 20;

/// The longest event, in bytes: a merge of 100,000 paths.
const EVENT_BYTES_MAX: usize = 256 << 20;

/// Raw bytes: a file, a tar stream.
pub struct ByteStream {
    client: Client,
    body: Incoming,
}

impl ByteStream {
    pub(super) fn new(answer: Answer) -> Self {
        Self { client: answer.client, body: answer.response.into_body() }
    }

    /// The next bytes; `None` at the proper end. A stream that the daemon broke off is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.broken(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    _ => {}
                },
            }
        }
    }
}

/// What the headers of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHead {
    /// Bytes of the whole file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modified, microseconds since the epoch.
    pub mtime: i64,
}

impl FileHead {
    pub(super) fn read(answer: &Answer) -> Result<Self, ClientError> {
        let text = |name: &str| {
            answer
                .response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .ok_or_else(|| answer.client.malformed(format_args!("a file without the header {name}")))
        };
        let bad = |_| answer.client.malformed("a file whose headers are no numbers");
        Ok(Self {
            size: text("x-den-size")?.parse().map_err(bad)?,
            mode: u32::from_str_radix(text("x-den-mode")?, 8).map_err(bad)?,
            uid: text("x-den-uid")?.parse().map_err(bad)?,
            gid: text("x-den-gid")?.parse().map_err(bad)?,
            mtime: text("x-den-mtime")?.parse().map_err(bad)?,
        })
    }
}

/// One JSON value per line.
pub struct Lines<T> {
    stream: ByteStream,
    buffer: BytesMut,
    marker: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(answer: Answer) -> Self {
        Self { stream: ByteStream::new(answer), buffer: BytesMut::new(), marker: PhantomData }
    }

    /// The next value; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(|error| self.stream.client.malformed(error));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.stream.client.malformed("a line without end"));
            }
            match self.stream.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => self.buffer.extend_from_slice(b"\n"),
            }
        }
    }
}

/// Server-sent events of known names.
pub struct Events {
    stream: ByteStream,
    buffer: BytesMut,
    /// How much of the buffer has no end of an event in it.
    looked: usize,
}

impl Events {
    pub(super) fn new(answer: Answer) -> Self {
        Self { stream: ByteStream::new(answer), buffer: BytesMut::new(), looked: 0 }
    }

    /// The next event: its name and its data. An event `error` is what was refused.
    pub async fn next(&mut self) -> Result<Option<(String, Vec<u8>)>, ClientError> {
        loop {
            if let Some(end) = self.buffer[self.looked..].windows(2).position(|pair| pair == b"\n\n") {
                let block = self.buffer.split_to(self.looked + end + 2);
                self.looked = 0;
                let Some((name, data)) = event_of(&block) else { continue };
                return match name.as_str() {
                    "error" => Err(match serde_json::from_slice::<crate::ErrorBody>(&data) {
                        // The head of the stream said nothing yet.
                        Ok(body) => ClientError::Refused { status: 200, detail: body.error },
                        Err(error) => self.stream.client.malformed(error),
                    }),
                    _ => Ok(Some((name, data))),
                };
            }
            self.looked = self.buffer.len().saturating_sub(1);
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(self.stream.client.malformed("an event without end"));
            }
            match self.stream.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.stream.client.broken("the events end inside one")),
            }
        }
    }

    /// The value of the event `end`; the others are told.
    pub(super) async fn end<T: DeserializeOwned>(
        mut self,
        mut tell: impl FnMut(&str, &[u8]),
    ) -> Result<T, ClientError> {
        while let Some((name, data)) = self.next().await? {
            match name.as_str() {
                "end" => return serde_json::from_slice(&data).map_err(|error| self.stream.client.malformed(error)),
                other => tell(other, &data),
            }
        }
        Err(self.stream.client.broken("the events end before what was asked for"))
    }

    pub(super) fn malformed(&self, reason: impl std::fmt::Display) -> ClientError {
        self.stream.client.malformed(reason)
    }
}

/// Name and data of an event; nothing in a comment.
fn event_of(block: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut name, mut data) = (None, Vec::new());
    for line in block.split(|&byte| byte == b'\n') {
        if let Some(text) = line.strip_prefix(b"event: ") {
            name = Some(String::from_utf8_lossy(text).into_owned());
        } else if let Some(bytes) = line.strip_prefix(b"data: ") {
            data.extend_from_slice(bytes);
        }
    }
    Some((name?, data))
}

/// A step's output.
///
/// A frame of output may come in several pieces, each with its own offset, so that nothing waits
/// for the rest of it and nothing is copied together.
pub struct OutputStream {
    stream: ByteStream,
    /// What has come and is not taken yet.
    rest: Bytes,
    /// The frame whose payload is being passed on: kind, offset of the next byte, bytes to come.
    open: Option<(OutputKind, u64, usize)>,
}

impl OutputStream {
    pub(super) fn new(answer: Answer) -> Self {
        Self { stream: ByteStream::new(answer), rest: Bytes::new(), open: None }
    }

    /// The next frame or piece of one. `None` when the stream ends: without an `End` before it, it
    /// was not followed to its end.
    pub async fn next(&mut self) -> Result<Option<OutputFrame>, ClientError> {
        loop {
            if let Some((kind, offset, left)) = self.open {
                if self.rest.is_empty() {
                    self.rest = match self.stream.next().await? {
                        Some(bytes) => bytes,
                        None => return Err(self.stream.client.broken("the output ends inside a frame")),
                    };
                }
                let payload = self.rest.split_to(left.min(self.rest.len()));
                let (offset_next, left) = (offset + payload.len() as u64, left - payload.len());
                self.open = (left > 0).then_some((kind, offset_next, left));
                return Ok(Some(OutputFrame { kind, offset, payload }));
            }
            if self.rest.len() < OUTPUT_HEAD_BYTES {
                if !self.fill(OUTPUT_HEAD_BYTES).await? {
                    return Ok(None);
                }
                continue;
            }
            let (kind, length, offset) = head_of(&self.rest).map_err(|reason| self.stream.client.malformed(reason))?;
            if matches!(kind, OutputKind::Stdout | OutputKind::Stderr | OutputKind::Terminal) {
                drop(self.rest.split_to(OUTPUT_HEAD_BYTES));
                self.open = (length > 0).then_some((kind, offset, length));
                continue;
            }
            let whole = OUTPUT_HEAD_BYTES + length;
            if self.rest.len() < whole && !self.fill(whole).await? {
                return Err(self.stream.client.broken("the output ends inside a frame"));
            }
            let payload = self.rest.split_to(whole).slice(OUTPUT_HEAD_BYTES..);
            return Ok(Some(OutputFrame { kind, offset, payload }));
        }
    }

    /// Gathers until `wanted` bytes are there; false at a clean end. Whatever came is kept when this
    /// is dropped half way, so `next` may stand in a `select!`.
    async fn fill(&mut self, wanted: usize) -> Result<bool, ClientError> {
        while self.rest.len() < wanted {
            match self.stream.next().await? {
                Some(bytes) if self.rest.is_empty() => self.rest = bytes,
                Some(bytes) => {
                    let mut whole = BytesMut::with_capacity(self.rest.len() + bytes.len());
                    whole.extend_from_slice(&self.rest);
                    whole.extend_from_slice(&bytes);
                    self.rest = whole.freeze();
                }
                None if self.rest.is_empty() => return Ok(false),
                None => return Err(self.stream.client.broken("the output ends inside a frame")),
            }
        }
        Ok(true)
    }
}

/// Kind, length of the payload and offset, as the head says.
pub(super) fn head_of(bytes: &[u8]) -> Result<(OutputKind, usize, u64), String> {
    let length = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes")) as usize;
    if length > OUTPUT_BYTES_MAX {
        return Err(format!("an output frame of {length} bytes is longer than {OUTPUT_BYTES_MAX}"));
    }
    let kind = match bytes[0] {
        1 => OutputKind::Stdout,
        2 => OutputKind::Stderr,
        3 => OutputKind::Terminal,
        4 => OutputKind::Cut,
        5 => OutputKind::End,
        6 => OutputKind::Started,
        7 => OutputKind::Error,
        other => return Err(format!("an output frame of unknown kind {other}")),
    };
    Ok((kind, length, u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"))))
}
