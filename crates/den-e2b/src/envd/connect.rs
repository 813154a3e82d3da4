//! The Connect protocol: single calls, and streams of enveloped messages, by either codec.
//!
//! ```text
//! envelope: flags (1 byte: 2 = the end) │ length (4 bytes, big-endian) │ message; of the end, JSON always
//! ```
//!
//! Source: connectrpc.com/docs/protocol. An error before the first message of a stream is its end message too.

use std::time::Duration;

use axum::{
    Json,
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE},
};
use bytes::{Buf as _, BytesMut};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    codec::{self, Codec, Form},
    not_allowed, user_of,
};
use crate::book::Sandbox;

/// The longest message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How long one may be on its way.
const MESSAGE_MAX: Duration = Duration::from_secs(300);

/// The flag of the message that ends a stream.
const END: u8 = 2;

/// How often a stream that is silent says that it is there, where the client does not say.
const KEEPALIVE: Duration = Duration::from_secs(90);

/// The types of content that are taken.
const KINDS: &str = "application/json, application/proto, application/connect+json, application/connect+proto";

/// Connect's codes that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    fn text(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid_argument",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::ResourceExhausted => "resource_exhausted",
            Self::FailedPrecondition => "failed_precondition",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Unknown | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub code: Code,
    pub message: String,
}

impl RpcError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    fn json(&self) -> Value {
        json!({ "code": self.code.text(), "message": self.message })
    }
}

impl From<den_control::Error> for RpcError {
    fn from(error: den_control::Error) -> Self {
        super::rpc_error(&error)
    }
}

/// How a call is answered: what its client reads.
#[derive(Debug, Clone)]
pub(crate) struct Voice {
    codec: Codec,
    /// Whether messages are enveloped.
    streams: bool,
}

/// What a call says beside its message.
pub(crate) struct Call {
    pub voice: Voice,
    pub headers: HeaderMap,
    body: Body,
}

impl Call {
    /// Looks at the head of a request for a method of envd.
    pub(crate) fn read(service: &str, method: &str, request: Request) -> Result<Self, Box<Response>> {
        if request.method() != Method::POST {
            return Err(not_allowed("POST").into());
        }
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        let (form, streams) = match kind.as_str() {
            "application/json" => (Form::Json, false),
            "application/proto" => (Form::Proto, false),
            "application/connect+json" => (Form::Json, true),
            "application/connect+proto" => (Form::Proto, true),
            _ => return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, [("accept-post", KINDS)]).into_response().into()),
        };
        let refused = |error: &RpcError| {
            Box::new(if streams { stream_of(form.stream_kind(), Body::from(end(Some(error)))) } else { refused(error) })
        };
        for name in ["content-encoding", "connect-content-encoding"] {
            let coding = parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("identity");
            if !coding.eq_ignore_ascii_case("identity") {
                return Err(refused(&RpcError::new(Code::Unimplemented, format!("messages encoded as `{coding}`"))));
            }
        }
        let found = codec::method(service, method);
        match found.filter(|found| streams == (found.is_client_streaming() || found.is_server_streaming())) {
            Some(found) => {
                let voice = Voice { codec: Codec::new(form, found), streams };
                Ok(Self { voice, headers: parts.headers, body })
            }
            None => {
                let words = format!("{service} has no such call of {method}");
                Err(refused(&RpcError::new(Code::Unimplemented, words)))
            }
        }
    }

    /// The user that it runs as: the sandbox's own if it names none.
    pub(crate) fn user(&self, sandbox: &Sandbox) -> String {
        named_user(&self.headers).unwrap_or_else(|| user_of(sandbox))
    }

    /// How long it may take.
    pub(crate) fn timeout_ms(&self) -> Option<u64> {
        let text = self.headers.get("connect-timeout-ms")?.to_str().ok()?;
        text.parse().ok().filter(|millis| *millis > 0)
    }

    /// How often a silent stream says that it is there.
    pub(crate) fn keepalive(&self) -> Duration {
        let text = self.headers.get("keepalive-ping-interval").and_then(|value| value.to_str().ok());
        let seconds = text.and_then(|text| text.parse().ok()).filter(|seconds| (1..=3600).contains(seconds));
        seconds.map_or(KEEPALIVE, Duration::from_secs)
    }

    /// The one message of a call, or of a stream whose client says one thing.
    pub(crate) async fn message<T: DeserializeOwned>(self) -> Result<T, RpcError> {
        let Self { voice: Voice { codec, streams }, body, .. } = self;
        let bytes = tokio::time::timeout(MESSAGE_MAX, to_bytes(body, MESSAGE_BYTES_MAX + 5))
            .await
            .map_err(|_| RpcError::new(Code::DeadlineExceeded, "the message came too slowly"))?
            .map_err(|error| RpcError::bad(format!("the message did not arrive: {error}")))?;
        let bytes = match streams {
            true => {
                let mut buffer = BytesMut::from(&bytes[..]);
                take(&mut buffer)?.ok_or_else(|| RpcError::bad("the stream ends before its message"))?
            }
            false => bytes,
        };
        parse(&codec, &bytes)
    }

    /// The messages of a stream whose client says many things.
    pub(crate) fn messages<T: DeserializeOwned>(self) -> impl Stream<Item = Result<T, RpcError>> + Send {
        let state = (Box::pin(self.body.into_data_stream()), BytesMut::new(), self.voice.codec, false);
        futures_util::stream::unfold(state, |(mut data, mut buffer, codec, over)| async move {
            if over {
                return None;
            }
            loop {
                match take(&mut buffer) {
                    Ok(Some(bytes)) => return Some((parse(&codec, &bytes), (data, buffer, codec, false))),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error), (data, buffer, codec, true))),
                }
                let error = match data.next().await {
                    Some(Ok(bytes)) => {
                        buffer.extend_from_slice(&bytes);
                        continue;
                    }
                    Some(Err(error)) => RpcError::new(Code::Unavailable, format!("the stream broke: {error}")),
                    None if buffer.is_empty() => return None,
                    None => RpcError::bad("the stream ends in a message"),
                };
                return Some((Err(error), (data, buffer, codec, true)));
            }
        })
    }
}

/// The user of a Basic `Authorization`.
pub(crate) fn named_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let user = text.split_once(':').map_or(text.as_str(), |(user, _)| user);
    Some(user).filter(|user| !user.is_empty()).map(str::to_owned)
}

/// Takes an envelope's message out of what came, if it is all there.
fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, RpcError> {
    if buffer.len() < 5 {
        return Ok(None);
    }
    let (flags, length) = (buffer[0], u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize);
    if flags & 1 != 0 {
        return Err(RpcError::new(Code::Unimplemented, "a compressed message"));
    }
    if length > MESSAGE_BYTES_MAX {
        return Err(RpcError::new(
            Code::ResourceExhausted,
            format!("a message of more than {MESSAGE_BYTES_MAX} bytes"),
        ));
    }
    if buffer.len() < 5 + length {
        buffer.reserve(5 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

fn parse<T: DeserializeOwned>(codec: &Codec, bytes: &[u8]) -> Result<T, RpcError> {
    codec.read(bytes).map_err(|why| RpcError::bad(format!("the message: {why}")))
}

impl Voice {
    /// The answer to a single call, or the end of a stream that was never begun.
    pub(crate) fn answered(&self, result: Result<Value, RpcError>) -> Response {
        let mut bytes = BytesMut::new();
        let written = result.and_then(|message| self.write(message, &mut bytes));
        match written {
            Err(error) if self.streams => self.ended(Some(&error)),
            Err(error) => refused(&error),
            Ok(()) => ([(header::CONTENT_TYPE, self.codec.form.kind())], bytes.freeze()).into_response(),
        }
    }

    fn write(&self, message: Value, out: &mut BytesMut) -> Result<(), RpcError> {
        self.codec.write(message, out).map_err(|error| {
            tracing::error!(error, "a message that cannot be written");
            RpcError::new(Code::Internal, "the answer cannot be written; the log of the daemon says why")
        })
    }

    /// A message of a stream. One that cannot be written breaks it off.
    pub(crate) fn envelope(&self, message: Value) -> Result<Bytes, axum::BoxError> {
        // Five bytes of head, filled in when the length is known.
        let mut out = BytesMut::zeroed(5);
        self.write(message, &mut out).map_err(|error| error.message)?;
        Ok(headed(0, out))
    }

    /// A stream that says nothing but how it ended.
    pub(crate) fn ended(&self, error: Option<&RpcError>) -> Response {
        self.streamed(Body::from(end(error)))
    }

    /// A stream.
    pub(crate) fn streamed(&self, body: Body) -> Response {
        stream_of(self.codec.form.stream_kind(), body)
    }
}

/// The end of a stream.
pub(crate) fn end(error: Option<&RpcError>) -> Bytes {
    let message = error.map_or_else(|| json!({}), |error| json!({ "error": error.json() }));
    let mut out = BytesMut::zeroed(5);
    out.extend_from_slice(message.to_string().as_bytes());
    headed(END, out)
}

/// Fills in the head of a message.
fn headed(flags: u8, mut message: BytesMut) -> Bytes {
    let length = (message.len() - 5) as u32;
    message[0] = flags;
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message.freeze()
}

fn refused(error: &RpcError) -> Response {
    (error.code.status(), Json(error.json())).into_response()
}

fn stream_of(kind: HeaderValue, body: Body) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))], body)
        .into_response()
}

/// Bytes of protobuf's JSON: any of the base64 alphabets.
pub(crate) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let decoded = STANDARD.decode(&text).or_else(|_| STANDARD_NO_PAD.decode(&text)).or_else(|_| URL_SAFE.decode(&text));
    decoded.map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_are_taken_one_by_one() {
        let mut buffer = BytesMut::new();
        let method = codec::method("process.Process", "Start").unwrap();
        let voice = Voice { codec: Codec::new(Form::Json, method), streams: true };
        buffer.extend_from_slice(&voice.envelope(json!({"a": 1})).unwrap());
        buffer.extend_from_slice(&end(None)[..4]);
        assert_eq!(take(&mut buffer).unwrap().as_deref(), Some(&br#"{"a":1}"#[..]));
        assert_eq!(take(&mut buffer).unwrap(), None);
        assert_eq!(&end(None)[..], b"\x02\0\0\0\x02{}");
        let mut huge = BytesMut::from(&b"\0\xff\xff\xff\xff"[..]);
        assert_eq!(take(&mut huge).unwrap_err().code, Code::ResourceExhausted);
    }

    #[test]
    fn the_user_is_the_name_before_the_colon() {
        let mut headers = HeaderMap::new();
        assert_eq!(named_user(&headers), None);
        for (value, user) in [("Basic cm9vdDo=", Some("root")), ("basic dXNlcg==", Some("user")), ("Bearer x", None)] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(named_user(&headers).as_deref(), user, "{value}");
        }
    }
}
