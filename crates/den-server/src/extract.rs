//! What a handler takes from a request: a JSON body, a query, paths inside a computer.
//!
//! Each refusal names what was given and says what to send. A body is read as JSON whatever its
//! `Content-Type` says: `curl -d` sends another, and the token, not the type, guards against pages
//! in a browser.

use std::fmt::Display;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::request::Parts,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The longest JSON body, in bytes. It holds a standard input given whole; streams have no limit.
pub const JSON_BYTES_MAX: usize = 1 << 20;

/// A JSON body. An empty one is `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // `DefaultBodyLimit` of the router holds it to JSON_BYTES_MAX.
        let bytes = Bytes::from_request(request, state).await?;
        parse_json(&bytes).map(Self)
    }
}

/// Reads a JSON text; an empty one is `{}`.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // serde would take a list for the fields in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::bad_request("the request is a list where an object is wanted")
            .hint("GET /v1/openapi.json has the fields of every request"));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let what = if error.is_data() { "the request is not understood" } else { "the request is no JSON" };
        ApiError::bad_request(format!("{what}: {error}")).hint("GET /v1/openapi.json has the fields of every request")
    })
}

/// The query of a URL.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::bad_request(format!(
                "the query `?{}` is not understood: {}",
                parts.uri.query().unwrap_or_default(),
                rejection.body_text().trim_start_matches("Failed to deserialize query string: "),
            ))
            .hint("GET /v1/openapi.json has the parameters of every path")),
        }
    }
}

/// Path parameters of a URL.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let axum::extract::Path(path) = axum::extract::Path::from_request_parts(parts, state).await?;
        Ok(Self(path))
    }
}

/// The bytes of a path inside a computer, given as text or, where it is no UTF-8, as base64.
pub fn computer_path(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, ApiError> {
    let path = match (text, base64) {
        (Some(_), Some(_)) => return Err(ApiError::bad_request("both `path` and `path_base64` are given")),
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => STANDARD.decode(&text).map_err(|error| bad("path_base64", &text, error))?,
        (None, None) => {
            return Err(ApiError::bad_request("`path` is missing").hint("add `?path=/absolute/path` to the URL"));
        }
    };
    if path.is_empty() {
        return Err(ApiError::bad_request("`path` is empty").hint("add `?path=/absolute/path` to the URL"));
    }
    if path.contains(&0) {
        return Err(ApiError::bad_request("`path` has a NUL byte in it"));
    }
    Ok(path)
}

/// Permission bits given in octal.
pub fn mode(text: &str) -> Result<u32, ApiError> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| bad("mode", text, "wanted permission bits in octal, such as `0644`"))
}

/// A parameter that is not what it should be.
pub fn bad(name: &str, value: &str, why: impl Display) -> ApiError {
    ApiError::bad_request(format!("`{name}` is `{value}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("644").unwrap(), 0o644);
        assert_eq!(mode("0755").unwrap(), 0o755);
        assert_eq!(mode("0o4755").unwrap(), 0o4755);
        for wrong in ["", "8", "rwx", "10000", "-1", "0x1ff"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_path_is_given_once_and_whole() {
        assert_eq!(computer_path(Some("/a".into()), None).unwrap(), b"/a");
        assert_eq!(computer_path(None, Some("L/8=".into())).unwrap(), b"/\xff");
        assert!(computer_path(None, None).is_err());
        assert!(computer_path(Some(String::new()), None).is_err());
        assert!(computer_path(Some("/a\0".into()), None).is_err());
        assert!(computer_path(Some("/a".into()), Some("L2E=".into())).is_err());
        assert!(computer_path(None, Some("%".into())).is_err());
    }
}
