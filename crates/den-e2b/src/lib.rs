//! E2B's interface, translated: its SDKs work by changing a URL.
//!
//! ```text
//! request ─► way ─┬─ control plane  /sandboxes /v2/… /templates …   ─► api ───┐
//!                 ├─ data plane     E2b-Sandbox-Id + -Port, or        ─► envd ──┼─► den_control::Control
//!                 │                 `<port>-<id>.…`                   ─► proxy ─┘
//!                 └─ all else ─► Den's own router
//! ```
//!
//! A sandbox is a computer that has the sandbox's id for a name; its commands are steps of `e2b`. What only E2B
//! knows of it (metadata, tokens, when it ends) is a fact beside the computer's row.
//!
//! Invariants:
//! - Nothing is decided here that `den-control` decides: limits, policy and history hold as for all others.
//! - A create is answered when computer and fact are both on the disk. A crash between the two leaves neither after
//!   the next start: a note that is older than the computer says whose it is. Nothing else is removed then.
//! - What others put into the trash is not ended here, whatever its time: its fact waits for an undo.
//! - What has begun is carried to its end though the client goes away.
//! - What is streamed from a sandbox that is killed or paused breaks off; it never ends as if it were whole.
//! - Whatever a client sends, the answer is a documented code: `openapi.json` beside this has them.
//!
//! Deliberately absent: `envd` inside. Its protocol is spoken here and carried out by the computer's agent.

mod api;
mod book;
mod build;
#[cfg(test)]
mod contract;
mod domain;
mod envd;
mod error;
mod life;
mod making;
mod net;
mod proxy;
mod reaper;
mod secret;
mod templates;
mod time;
mod unread;
mod volumes;
mod way;

use std::{path::Path, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::Uri,
    response::{IntoResponse as _, Response},
};
use den_control::{Control, Error, Who};
use tower_service::Service as _;

pub use domain::{Authority, AuthorityError, Domain, NoDomain, Responder};
pub use secret::key_of;

use crate::book::Book;

/// What envd calls itself to SDKs, which ask for features by it.
pub(crate) const ENVD_VERSION: &str = "0.6.13";

/// The port that envd's protocol is spoken on.
pub(crate) const ENVD_PORT: u16 = 49983;

/// The interface. Clones are the same one.
#[derive(Clone)]
pub struct E2b(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) control: Control,
    pub(crate) key: String,
    pub(crate) book: Book,
    pub(crate) shelf: build::Shelf,
    pub(crate) domain: Option<Domain>,
}

impl E2b {
    /// Takes up the sandboxes that an earlier daemon left, and begins to end those whose time is up. The key lies in
    /// the folder `data`, and is drawn if there is none. `domain` is the one whose names lead here, if there is one.
    ///
    /// Errors: what the store and the folder meet.
    pub async fn open(control: Control, data: &Path, domain: Option<Domain>) -> Result<Self, Error> {
        let key = key_of(data).map_err(|error| {
            Error::internal(format!("the key in {}", data.join(secret::KEY_FILE).display())).because(error)
        })?;
        let shelf = build::Shelf::open(&control, data, &key).await?;
        let e2b = Self(Arc::new(Inner { control, key, book: Book::default(), shelf, domain }));
        e2b.unmake_half_made().await?;
        e2b.take_up().await?;
        e2b.clear_builds().await;
        tokio::spawn(reaper::run(Arc::downgrade(&e2b.0)));
        Ok(e2b)
    }

    /// A router that answers what is E2B's, and passes all else on to `den`.
    pub fn router(self, den: Router) -> Router {
        let control = api::router(self.clone());
        let answer = move |request: Request| {
            let (e2b, control, den) = (self.clone(), control.clone(), den.clone());
            async move { e2b.answer(request, control, den).await }
        };
        // Both routers below have limits of their own; files and what is passed on have none.
        Router::new().fallback(answer).layer(DefaultBodyLimit::disable())
    }

    /// The same for the domain's own listener: of Den's own routes it has none.
    pub fn router_of_domain(self) -> Router {
        let none = |uri: Uri| async move { error::ApiError::new(404, format!("there is nothing at {}", uri.path())) };
        self.router(Router::new().fallback(none))
    }

    async fn answer(&self, request: Request, control: Router, den: Router) -> Response {
        let (request, unread) = unread::lend(request);
        let answer = self.sent(request, control, den).await;
        match unread {
            Some(unread) => unread.before(answer).await,
            None => answer,
        }
    }

    async fn sent(&self, mut request: Request, mut control: Router, mut den: Router) -> Response {
        let told = api::Told::of(self, &request);
        request.extensions_mut().insert(told);
        match way::of(&request) {
            way::Way::Den => never_fails(den.call(request).await),
            way::Way::Control => never_fails(control.call(request).await),
            way::Way::Data { sandbox, port } => envd::enter(self, &sandbox, port, request).await,
            way::Way::Signed => envd::files::signed(self, request).await,
            way::Way::Refused(message) => error::ApiError::new(400, message).into_response(),
        }
    }

    pub(crate) fn control(&self) -> &Control {
        &self.0.control
    }

    pub(crate) fn book(&self) -> &Book {
        &self.0.book
    }

    pub(crate) fn shelf(&self) -> &build::Shelf {
        &self.0.shelf
    }
}

/// Who is written down for what comes this way.
pub(crate) fn who() -> Who {
    Who("e2b".to_owned())
}

fn never_fails<T>(result: Result<T, std::convert::Infallible>) -> T {
    match result {
        Ok(it) => it,
        Err(never) => match never {},
    }
}
