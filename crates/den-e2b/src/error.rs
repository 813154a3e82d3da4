//! Refusals of the control plane: `{"code": <the status>, "message": …}`, as its SDKs read them.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

/// A refusal.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub status: u16,
    pub message: String,
    /// What SDKs may tell cases apart by.
    pub error_code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    pub(crate) fn no_sandbox(id: &str) -> Self {
        Self::new(404, format!("Sandbox {id} not found"))
    }

    /// What E2B has and Den does not have yet.
    pub(crate) fn not_here(what: &str) -> Self {
        Self::new(501, format!("{what}: Den does not have this yet; docs/E2B.md lists what there is"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, message, error_code } = self;
        let mut body = json!({ "code": status, "message": message });
        if let Some(code) = error_code {
            body["error_code"] = code.into();
        }
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (code, Json(body)).into_response();
        if matches!(status, 429 | 503) {
            let headers = response.headers_mut();
            headers.insert("should-retry", axum::http::HeaderValue::from_static("true"));
            headers.insert("retry-after", axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<den_control::Error> for ApiError {
    fn from(error: den_control::Error) -> Self {
        match error.code {
            "computer_not_found" | "computer_trashed" | "image_not_found" | "state_not_found" | "volume_not_found" => {
                Self::new(404, error.message)
            }
            "wrong_state" | "computer_stopped" | "unplugged" | "pause_failed" => Self::new(409, error.message),
            "host_full" | "no_processes" => {
                Self { error_code: Some("sandbox_capacity_unavailable"), ..Self::new(503, error.message) }
            }
            "too_many" => Self::new(429, error.message),
            "internal" => {
                tracing::error!(error = error.chain(), "a request of E2B's failed inside Den");
                Self::new(500, "something went wrong inside Den; the log of `den serve` says what")
            }
            _ => Self::new(error.status, error.message),
        }
    }
}
