//! A request that is not passed on, and what its sender is told.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// Why a request is not passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Of the answer.
    pub status: StatusCode,
    /// Stable.
    pub code: &'static str,
    /// What was wanted and what stood in the way.
    pub message: Cow<'static, str>,
    /// What to do next.
    pub hint: Cow<'static, str>,
}

/// Why an upstream was not dialled, where that was a decision and no accident: a dialler puts it
/// into its `io::Error`, and the client gets it as a 403.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct DialRefused {
    /// Stable.
    pub code: &'static str,
    /// What was wanted and what stood in the way.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Said<'a>,
}

#[derive(Serialize)]
struct Said<'a> {
    code: &'a str,
    message: &'a str,
    hint: &'a str,
}

impl Refusal {
    pub(super) const fn new(status: StatusCode, code: &'static str, message: &'static str, hint: &'static str) -> Self {
        Self { status, code, message: Cow::Borrowed(message), hint: Cow::Borrowed(hint) }
    }

    /// The answer to send; the connection ends with it.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(body(self.code, &self.message, &self.hint).into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        response
    }
}

/// A whole answer for a plain HTTP client whose flow was denied: 403 with
/// `{"error":{"code","message","hint"}}`. The caller closes the connection after it.
pub fn refusal(code: &str, message: &str, hint: &str) -> Vec<u8> {
    let body = body(code, message, hint);
    let mut answer = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer
}

fn body(code: &str, message: &str, hint: &str) -> Vec<u8> {
    let body = Body { error: Said { code, message, hint } };
    // Three strings have a form in JSON whatever is in them.
    let mut bytes = serde_json::to_vec(&body).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
