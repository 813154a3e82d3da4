//! Bytes in and out of a computer, piece by piece: a request's body into a sink, a source into a
//! response's body. Neither is ever held whole.

use std::{io, time::Duration};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use den_control::FileReader;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::timeout;

use crate::error::ApiError;

/// How much of a refused upload is still read, in bytes, so that the client sees the refusal and
/// not a broken connection.
const DRAIN_BYTES_MAX: usize = 16 << 20;

/// How long a refused upload is still read.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// A response's body of what `reader` gives. A failure in the middle breaks the connection: the
/// client must not take half for the whole.
pub(super) fn body_of(reader: FileReader, request_id: String) -> Body {
    Body::from_stream(stream::try_unfold((reader, request_id), |(mut reader, request_id)| async move {
        match reader.next().await {
            Ok(Some(bytes)) => Ok(Some((bytes, (reader, request_id)))),
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::warn!(request = request_id, code = error.code, error = error.message, "a transfer broke off");
                Err(io::Error::other(error.message))
            }
        }
    }))
}

/// The pieces of a request's body. An error is the client's: it went away in the middle.
pub(super) struct Upload(BodyDataStream);

impl Upload {
    pub(super) fn new(body: Body) -> Self {
        Self(body.into_data_stream())
    }

    /// The next piece; `None` at the proper end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        match self.0.next().await {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => Err(ApiError::bad_request(format!("the upload broke off: {error}"))),
        }
    }

    /// Passes on `refusal` after reading on for a while.
    pub(super) async fn refuse(mut self, refusal: impl Into<ApiError>) -> ApiError {
        let drain = async {
            let mut left = DRAIN_BYTES_MAX;
            while let Ok(Some(bytes)) = self.next().await {
                left = left.saturating_sub(bytes.len());
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIME_MAX, drain).await;
        refusal.into()
    }

    /// As a stream of its own.
    pub(super) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        self.0.map(|piece| piece.map_err(io::Error::other))
    }
}
