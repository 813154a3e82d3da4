//! A step's output on its way out, in the form that the client's `Accept` names.
//!
//! ```text
//! OutputReader ──► OutputItem ──► Form::Binary  frames of den_api::output
//!  (the log)                      Form::Events  server-sent events, with keep-alive comments
//!                                 Form::Raw     the bytes and nothing else
//! ```
//!
//! - A client pulls: nothing is read from the log before the socket took what came before. One that
//!   reads slowly holds up itself alone; one that goes away takes only its reader along.
//! - Payloads are not copied in the binary and raw forms: a large one follows its head as a chunk
//!   of its own, a small one shares a chunk with its head so that one `write` carries both.
//! - What breaks after the stream began is a frame or event `error`; the raw form has no place for
//!   one and breaks the connection, so that nobody takes half for the whole.

use std::{io, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use den_api::{
    ErrorBody, StepView,
    output::{OUTPUT_BYTES_MAX, OUTPUT_HEAD_BYTES, OUTPUT_MEDIA_TYPE, OutputKind, output_head},
};
use den_control::{OutputItem, OutputReader, OutputStream};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;

use crate::error::ApiError;

/// Silence after which an event stream carries a comment, so that proxies keep it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The most bytes in one event: base64 in JSON is read whole by every client.
const EVENT_BYTES_MAX: usize = 48 << 10;

/// Payloads up to this many bytes are copied behind their head: cheaper than a chunk of their own.
const JOINED_BYTES_MAX: usize = 16 << 10;

/// How output is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON value.
    Json,
    /// `text/event-stream`.
    Events,
    /// `application/vnd.den.output`.
    Binary,
    /// `application/octet-stream`.
    Raw,
}

impl Form {
    /// The first form that `Accept` names; JSON where it names none.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        accept
            .split(',')
            .find_map(|part| match part.split(';').next().unwrap_or_default().trim() {
                "application/json" => Some(Self::Json),
                "text/event-stream" => Some(Self::Events),
                OUTPUT_MEDIA_TYPE => Some(Self::Binary),
                "application/octet-stream" => Some(Self::Raw),
                _ => None,
            })
            .unwrap_or(Self::Json)
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Events => "text/event-stream",
            Self::Binary => OUTPUT_MEDIA_TYPE,
            Self::Raw => "application/octet-stream",
        }
    }

    /// The start, for the forms that say it.
    pub(crate) fn started(self, step: &StepView, offset: u64) -> Option<Bytes> {
        match self {
            Self::Binary => Some(frame_of(OutputKind::Started, offset, step)),
            Self::Events => Some(event("started", offset, step)),
            Self::Json | Self::Raw => None,
        }
    }

    /// What travels for `item`, in order, appended to `out`.
    pub(crate) fn encode(self, item: OutputItem, out: &mut Vec<Bytes>) {
        match (self, item) {
            (Self::Json | Self::Raw, OutputItem::Data { bytes, .. }) => out.push(bytes),
            (Self::Json | Self::Raw, OutputItem::Cut { .. } | OutputItem::End(_)) => {}
            (Self::Binary, item) => frames(item, JOINED_BYTES_MAX, out),
            (Self::Events, OutputItem::Data { stream, mut offset, mut bytes }) => {
                let name = match stream {
                    OutputStream::Stdout => "stdout",
                    OutputStream::Stderr => "stderr",
                    OutputStream::Terminal => "terminal",
                };
                while !bytes.is_empty() {
                    let payload = bytes.split_to(bytes.len().min(EVENT_BYTES_MAX));
                    let data = DataEvent { offset, data: STANDARD.encode(&payload) };
                    offset += payload.len() as u64;
                    out.push(event(name, offset, &data));
                }
            }
            (Self::Events, OutputItem::Cut { offset, bytes }) => {
                out.push(event("cut", offset.saturating_add(bytes), &CutEvent { offset, bytes }));
            }
            (Self::Events, OutputItem::End(step)) => out.push(event("end", step.output_bytes, &*step)),
        }
    }

    /// What travels when the stream ends early; an error for the form that has no place for it.
    pub(crate) fn broken(self, error: ApiError, request_id: &str) -> io::Result<Bytes> {
        let body = ErrorBody { error: error.into_detail(request_id) };
        match self {
            Self::Binary => Ok(frame_of(OutputKind::Error, 0, &body)),
            Self::Events => Ok(nameless_event("error", &body)),
            Self::Json | Self::Raw => Err(io::Error::other(body.error.message)),
        }
    }
}

/// The frames of `item`. Payloads up to `joined_bytes_max` share a piece with their head; with
/// `usize::MAX` each piece is a whole frame, as a WebSocket message has to be.
pub(crate) fn frames(item: OutputItem, joined_bytes_max: usize, out: &mut Vec<Bytes>) {
    match item {
        OutputItem::Data { stream, mut offset, mut bytes } => {
            let kind = match stream {
                OutputStream::Stdout => OutputKind::Stdout,
                OutputStream::Stderr => OutputKind::Stderr,
                OutputStream::Terminal => OutputKind::Terminal,
            };
            while !bytes.is_empty() {
                let payload = bytes.split_to(bytes.len().min(OUTPUT_BYTES_MAX));
                let head = output_head(kind, payload.len(), offset);
                offset += payload.len() as u64;
                if payload.len() <= joined_bytes_max {
                    out.push(joined(&head, &payload));
                } else {
                    out.push(Bytes::copy_from_slice(&head));
                    out.push(payload);
                }
            }
        }
        OutputItem::Cut { offset, bytes } => {
            out.push(joined(&output_head(OutputKind::Cut, 8, offset), &bytes.to_le_bytes()));
        }
        OutputItem::End(step) => out.push(frame_of(OutputKind::End, step.output_bytes, &*step)),
    }
}

#[derive(Serialize)]
struct DataEvent {
    offset: u64,
    data: String,
}

#[derive(Serialize)]
struct CutEvent {
    offset: u64,
    bytes: u64,
}

fn joined(head: &[u8; OUTPUT_HEAD_BYTES], payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(OUTPUT_HEAD_BYTES + payload.len());
    bytes.put_slice(head);
    bytes.put_slice(payload);
    bytes.freeze()
}

fn frame_of(kind: OutputKind, offset: u64, value: &impl Serialize) -> Bytes {
    let payload = json(value);
    joined(&output_head(kind, payload.len(), offset), &payload)
}

/// An event whose id is the offset after it, as `Last-Event-ID` gives it back.
fn event(name: &str, after: u64, data: &impl Serialize) -> Bytes {
    [format!("id: {after}\nevent: {name}\ndata: ").as_bytes(), &json(data), b"\n\n"].concat().into()
}

/// An event that leaves the client's last id as it was.
pub(crate) fn nameless_event(name: &str, data: &impl Serialize) -> Bytes {
    [format!("event: {name}\ndata: ").as_bytes(), &json(data), b"\n\n"].concat().into()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("views have text keys and no failing fields")
}

/// The items of a reader as a stream.
pub(crate) fn items(reader: OutputReader) -> impl Stream<Item = Result<OutputItem, ApiError>> + Send {
    stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await.transpose()?;
        Some((item.map_err(ApiError::from), reader))
    })
}

/// The answer that streams `items`, after the event of the start where one is given.
pub(crate) fn respond(
    form: Form,
    started: Option<Bytes>,
    items: impl Stream<Item = Result<OutputItem, ApiError>> + Send + 'static,
    request_id: String,
) -> Response {
    let mut over = false;
    let pieces = items.map(move |item| {
        if over {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(2);
        match item {
            Ok(item) => {
                form.encode(item, &mut out);
                out.into_iter().map(Ok).collect()
            }
            Err(error) => {
                over = true;
                vec![form.broken(error, &request_id)]
            }
        }
    });
    let body = stream::iter(started.map(Ok)).chain(pieces.flat_map(stream::iter));
    let body = if form == Form::Events { Body::from_stream(kept_alive(body)) } else { Body::from_stream(body) };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `events` with a comment whenever nothing came for a while. The stream within is polled further,
/// never dropped, so nothing is lost by the time running out.
pub(crate) fn kept_alive<S>(events: S) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    stream::unfold(Box::pin(events), |mut events| async move {
        match timeout(KEEP_ALIVE, events.next()).await {
            Ok(None) => None,
            Ok(Some(event)) => Some((event, events)),
            Err(_) => Some((Ok(Bytes::from_static(b": still here\n\n")), events)),
        }
    })
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
