//! Streams that break off when their sandbox does not run any more.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use futures_util::{Stream, StreamExt, stream};

use crate::book::Sandbox;

/// A body of what `inner` gives, until the sandbox is killed or paused: then the connection breaks, so that a client
/// sees no end that was none.
pub(crate) fn cut<S, E>(sandbox: Arc<Sandbox>, inner: S) -> Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<axum::BoxError> + Send + 'static,
{
    let over = async move { sandbox.not_running().await };
    let state = (Box::pin(inner), Box::pin(over), false);
    Body::from_stream(stream::unfold(state, |(mut inner, mut over, broken)| async move {
        if broken {
            return None;
        }
        let next: Result<Bytes, axum::BoxError> = tokio::select! {
            biased;
            () = &mut over => Err("the sandbox does not run any more".into()),
            next = inner.next() => next?.map_err(Into::into),
        };
        let broken = next.is_err();
        Some((next, (inner, over, broken)))
    }))
}
