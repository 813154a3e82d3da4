//! The Connect protocol with the JSON codec: single calls, and streams of enveloped messages.
//!
//! ```text
//! envelope: flags (1 byte: 2 = the end) │ length (4 bytes, big-endian) │ JSON
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
use bytes::{Buf as _, BufMut as _, BytesMut};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{not_allowed, user_of};
use crate::{api::object, book::Sandbox};

/// The longest message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How long one may be on its way.
const MESSAGE_MAX: Duration = Duration::from_secs(300);

/// The flag of the message that ends a stream.
const END: u8 = 2;

/// How often a stream that is silent says that it is there, where the client does not say.
const KEEPALIVE: Duration = Duration::from_secs(90);

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

/// What a call says beside its message.
pub(crate) struct Call {
    /// Whether messages are enveloped.
    pub streams: bool,
    pub headers: HeaderMap,
    body: Body,
}

impl Call {
    /// Looks at the head of a request.
    pub(crate) fn read(request: Request) -> Result<Self, Box<Response>> {
        if request.method() != Method::POST {
            return Err(not_allowed("POST").into());
        }
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        let streams = match kind.as_str() {
            "application/json" => false,
            "application/connect+json" => true,
            _ => {
                let accepted = [("accept-post", "application/json, application/connect+json")];
                return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, accepted).into_response().into());
            }
        };
        for name in ["content-encoding", "connect-content-encoding"] {
            let coding = parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("identity");
            if !coding.eq_ignore_ascii_case("identity") {
                let error = RpcError::new(Code::Unimplemented, format!("messages encoded as `{coding}`"));
                return Err(Box::new(if streams { ended(Some(&error)) } else { refused(&error) }));
            }
        }
        Ok(Self { streams, headers: parts.headers, body })
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
        let Self { streams, body, .. } = self;
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
        parse(&bytes)
    }

    /// The messages of a stream whose client says many things.
    pub(crate) fn messages<T: DeserializeOwned>(self) -> impl Stream<Item = Result<T, RpcError>> + Send {
        let data = Box::pin(self.body.into_data_stream());
        futures_util::stream::unfold((data, BytesMut::new(), false), |(mut data, mut buffer, over)| async move {
            if over {
                return None;
            }
            loop {
                match take(&mut buffer) {
                    Ok(Some(bytes)) => return Some((parse(&bytes), (data, buffer, false))),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error), (data, buffer, true))),
                }
                match data.next().await {
                    Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
                    Some(Err(error)) => {
                        let error = RpcError::new(Code::Unavailable, format!("the stream broke: {error}"));
                        return Some((Err(error), (data, buffer, true)));
                    }
                    None if buffer.is_empty() => return None,
                    None => {
                        return Some((Err(RpcError::bad("the stream ends in a message")), (data, buffer, true)));
                    }
                }
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

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RpcError> {
    object(bytes).map_err(|why| RpcError::bad(format!("the message: {why}")))
}

/// A message of a stream.
pub(crate) fn envelope(message: &Value) -> Bytes {
    flagged(0, message)
}

/// The end of a stream.
pub(crate) fn end(error: Option<&RpcError>) -> Bytes {
    flagged(END, &error.map_or_else(|| json!({}), |error| json!({ "error": error.json() })))
}

fn flagged(flags: u8, message: &Value) -> Bytes {
    let mut out = BytesMut::with_capacity(128).writer();
    // Five bytes of head, filled in when the length is known.
    out.get_mut().put_bytes(0, 5);
    if let Err(error) = serde_json::to_writer(&mut out, message) {
        tracing::error!(%error, "a message that is no JSON");
    }
    let mut out = out.into_inner();
    let length = (out.len() - 5) as u32;
    out[0] = flags;
    out[1..5].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

/// The answer to a single call.
pub(crate) fn answered(result: Result<Value, RpcError>) -> Response {
    match result {
        Ok(message) => Json(message).into_response(),
        Err(error) => refused(&error),
    }
}

fn refused(error: &RpcError) -> Response {
    (error.code.status(), Json(error.json())).into_response()
}

/// A stream that says nothing but how it ended.
pub(crate) fn ended(error: Option<&RpcError>) -> Response {
    streamed(Body::from(end(error)))
}

/// A stream.
pub(crate) fn streamed(body: Body) -> Response {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/connect+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
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
        buffer.extend_from_slice(&envelope(&json!({"a": 1})));
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
