//! Refusals on their way out: one body for all of them, whoever refused.
//!
//! ```text
//! den_control::Error ─┐
//! body, query, path  ─┼─► ApiError ──► Response{status, Refusal} ──► guard: body with request id, log
//! guard, fallbacks   ─┘
//! ```
//!
//! Codes and hints of what control refuses are control's (its `errors.rs`); here are only those of
//! HTTP itself. An internal error shows its request id; what happened goes to the log, once.

use axum::{
    Json,
    extract::rejection::{BytesRejection, PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use den_api::{ErrorBody, ErrorDetail};

/// A refusal.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    detail: Box<ErrorDetail>,
    /// What happened, for the log only.
    cause: Option<String>,
}

impl ApiError {
    /// A refusal with a status, a stable code and a sentence.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail {
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            retryable: false,
            request_id: None,
        };
        Self { status, detail: Box::new(detail), cause: None }
    }

    /// The request is no sensible one.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// Our fault. `cause` goes to the log; the client sees the request id.
    pub fn internal(cause: impl Into<String>) -> Self {
        let message = "something went wrong inside Den; the log of `den serve` says what, under this request id";
        let mut error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message);
        error.cause = Some(cause.into());
        error
    }

    /// The same, with what to try next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.detail.hint = Some(hint.into());
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What a client sees, and the line for the log where there is one.
    pub fn into_detail(self, request_id: &str) -> ErrorDetail {
        if let Some(cause) = &self.cause {
            tracing::error!(request = request_id, code = self.detail.code, cause, "a request failed inside Den");
        }
        ErrorDetail { request_id: Some(request_id.to_owned()), ..*self.detail }
    }

    /// The whole answer.
    pub(crate) fn render(self, request_id: &str) -> Response {
        let status = self.status;
        (status, Json(ErrorBody { error: self.into_detail(request_id) })).into_response()
    }
}

/// Rides on a response without a body until the guard, which knows the request id, writes it.
#[derive(Clone)]
pub(crate) struct Refusal(pub(crate) ApiError);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Refusal(self));
        response
    }
}

impl From<den_control::Error> for ApiError {
    fn from(error: den_control::Error) -> Self {
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if error.code == "internal" {
            return Self::internal(error.chain());
        }
        // What the host lacks or has lost is for the client to see and for the operator to read; what Den does not
        // do is for the client alone.
        let ours = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
        let cause = ours.then(|| error.chain());
        let detail = ErrorDetail {
            code: error.code.to_owned(),
            message: error.message,
            hint: error.hint,
            retryable: error.retryable,
            request_id: None,
        };
        Self { status, detail: Box::new(detail), cause }
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        let error = Self::bad_request(format!("the request's body did not arrive: {}", rejection.body_text()));
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let limit = crate::extract::JSON_BYTES_MAX;
            return Self::bad_request(format!("the request's body is longer than {limit} bytes"))
                .hint("send large standard input over the WebSocket `exec`, and large files with PUT `files`");
        }
        error
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(format!("the path of the URL is not understood: {}", rejection.body_text()))
            .hint("GET /v1/openapi.json lists every path with its parameters")
    }
}
