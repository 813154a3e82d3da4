//! E2B's control plane, for commands that build its templates.

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::Value;

use super::{Body, Client, ClientError};
use crate::ErrorDetail;

/// What E2B's routes answer in place of Den's errors.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Client {
    /// Asks E2B's control plane, by its key, for a path or to take what is posted; `null` where nothing is answered.
    ///
    /// Errors: as all calls; what is refused has the code `e2b_refused`.
    pub async fn e2b(&self, key: &str, path: &str, posted: Option<&Value>) -> Result<Value, ClientError> {
        let method = if posted.is_some() { Method::POST } else { Method::GET };
        let answer = self.e2b_bytes(key, method, path, posted.map(|body| Bytes::from(body.to_string()))).await?;
        match answer.trim_ascii() {
            b"" => Ok(Value::Null),
            text => serde_json::from_slice(text).map_err(|error| self.malformed(error)),
        }
    }

    /// Puts what a build copies where an answer said that it is to be put.
    ///
    /// Errors: as [`Self::e2b`].
    pub async fn e2b_upload(&self, path: &str, archive: Bytes) -> Result<(), ClientError> {
        self.e2b_bytes("", Method::PUT, path, Some(archive)).await.map(drop)
    }

    async fn e2b_bytes(
        &self,
        key: &str,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, ClientError> {
        let mut key = HeaderValue::from_str(key).map_err(|error| self.malformed(error))?;
        key.set_sensitive(true);
        let request = self
            .request(method, path)
            .header("x-api-key", key)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map_or(Body::Empty, Body::Whole))
            .map_err(|error| self.malformed(error))?;
        let answer = self.send_any(request).await?;
        let status = answer.response.status();
        let bytes = answer.bytes().await?;
        if status.as_u16() < 400 {
            return Ok(bytes);
        }
        match serde_json::from_slice::<Refusal>(&bytes) {
            Ok(Refusal { message }) => {
                let (code, retryable) = ("e2b_refused".to_owned(), matches!(status.as_u16(), 409 | 429 | 503));
                let detail = ErrorDetail { code, message, hint: None, retryable, request_id: None };
                Err(ClientError::Refused { status: status.as_u16(), detail })
            }
            Err(_) => Err(super::refusal(self, status, &bytes)),
        }
    }
}
