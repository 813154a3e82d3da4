//! The way in over HTTP: the native API v1, each endpoint a thin translation onto `den-control`.
//!
//! ```text
//! serve ─► guard (request id, Host, token, panics) ─► routes ─► den_control::Control
//!                                                       │
//!                       output: frames · events · raw ◄─┤ steps, sockets
//!                       transfer: bodies in and out   ◄─┘ files, tar, images
//! ```
//!
//! Invariants:
//! - Every answer of 400 and above has the body of [`den_api::ErrorBody`], whoever refused.
//! - A client pulls: a slow one holds up itself alone, one that goes away stops nothing but its
//!   own reading.
//! - A stream that fails in the middle never ends as if it were whole.
//! - `openapi.json` in the repository is what [`openapi`] gives; a test compares.
//!
//! Deliberately absent: decisions. What a request means is `den-control`'s.

mod error;
mod extract;
mod gather;
mod guard;
mod output;
mod range;
mod routes;
mod serve;
mod token;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
};
use den_control::Control;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
    SecurityRequirement,
    path::Operation,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    tag::TagBuilder,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

pub use error::ApiError;
pub use extract::JSON_BYTES_MAX;
pub use guard::{Ends, REQUEST_ID_HEADER};
pub use routes::MetricsSettings;
pub use serve::{CONNECTIONS_MAX, HANDSHAKE_TIME_MAX, HEAD_TIME_MAX, LAST_WORDS_TIME_MAX, serve, serve_tls};
pub use token::Token;

use crate::routes::{
    App, backup, computers, events, files, history, images, life, metrics, net, pools, ports, service, services,
    sockets, steps, tar, trash, volumes,
};

/// All routes behind their guard. `stop` is cancelled once a `POST /v1/shutdown` has been carried
/// out; whoever serves the router ends then.
pub fn router(control: Control, token: Token, stop: CancellationToken, metrics: MetricsSettings) -> Router {
    let (routes, _) = described().split_for_parts();
    let app = App { control: control.clone(), stop, token: token.clone(), metrics };
    guarded(routes, token).layer(middleware::from_fn_with_state(control, count)).with_state(app)
}

/// Counts answers by their status.
async fn count(State(control): State<Control>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    control.answered(response.status().as_u16());
    response
}

/// `routes` with what stands before and behind all of them.
fn guarded<S: Clone + Send + Sync + 'static>(routes: Router<S>, token: Token) -> Router<S> {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(middleware::from_fn_with_state(token, guard::guard))
}

/// The contract, generated from the routes.
pub fn openapi() -> OpenApi {
    let (_, mut api) = described().split_for_parts();
    // axum writes the rest of a path `{*name}`; OpenAPI has no word for it.
    let paths = std::mem::take(&mut api.paths.paths);
    api.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in api.paths.paths.values_mut() {
        for operation in
            [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
        {
            name(operation);
            add_refusal(operation);
        }
    }
    let components = api.components.get_or_insert_with(Components::new);
    components.schemas.insert(den_api::ErrorBody::name().into_owned(), den_api::ErrorBody::schema());
    components.schemas.insert(den_api::ErrorDetail::name().into_owned(), den_api::ErrorDetail::schema());
    components.schemas.insert(den_api::WsInput::name().into_owned(), den_api::WsInput::schema());
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The token in `client.json` in the daemon's data folder"))
        .build();
    components.security_schemes.insert("token".to_owned(), RefOr::T(SecurityScheme::Http(bearer)));
    api
}

/// The contract as it is served and as it lies in the repository.
pub fn openapi_json() -> String {
    let mut text = openapi().to_pretty_json().expect("the contract is plain data");
    text.push('\n');
    text
}

/// `steps_list` for the handler `list` of the tag `steps`: handlers have short names, operations
/// need their own.
fn name(operation: &mut Operation) {
    let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
    if let Some(handler) = operation.operation_id.take() {
        operation.operation_id = Some(format!("{tag}_{handler}"));
    }
}

fn add_refusal(operation: &mut Operation) {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(den_api::ErrorBody::name()))).build();
    let refusal = ResponseBuilder::new().description("A refusal").content("application/json", body).build();
    operation.responses.responses.entry("default".to_owned()).or_insert(RefOr::T(refusal));
}

fn described() -> OpenApiRouter<App> {
    let info = InfoBuilder::new()
        .title("Den")
        .version("1")
        .description(Some("A computer for every agent. `{c}` is a computer's name, id or unique beginning of an id."))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").build()))
        .build();
    let tag = |name: &str, text: &str| TagBuilder::new().name(name).description(Some(text)).build();
    let api = OpenApiBuilder::new()
        .info(info)
        .tags(Some([
            tag("computers", "Made, looked at, started, stopped, removed"),
            tag("steps", "Commands and their output"),
            tag("files", "Files and trees inside a computer"),
            tag("history", "States: kept, forked, gone back to, looked into, compared, merged"),
            tag("ports", "What listens inside a computer, and connections to it"),
            tag("services", "Commands that a computer keeps running"),
            tag("net", "What a computer may reach, and what it did reach"),
            tag("trash", "What was removed, and taking back what was done"),
            tag("pools", "What computers share: CPUs, memory, disk, how many they may be"),
            tag("volumes", "Folders that several computers mount"),
            tag("images", "What computers start from"),
            tag("service", "The daemon itself"),
        ]))
        .security(Some([SecurityRequirement::new("token", [""; 0])]))
        .build();
    OpenApiRouter::with_openapi(api)
        .routes(routes!(service::healthz))
        .routes(routes!(metrics::readyz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(metrics::usage))
        .routes(routes!(events::events))
        .routes(routes!(service::version))
        .routes(routes!(service::openapi))
        .routes(routes!(service::shutdown))
        .routes(routes!(backup::back_up))
        .routes(routes!(computers::create, computers::list))
        .routes(routes!(computers::get, computers::remove, life::change))
        .routes(routes!(computers::start))
        .routes(routes!(computers::stop))
        .routes(routes!(life::pause))
        .routes(routes!(life::resume))
        .routes(routes!(life::unplug))
        .routes(routes!(life::unplug_all))
        .routes(routes!(life::replug))
        .routes(routes!(steps::exec, steps::list))
        .routes(routes!(steps::get))
        .routes(routes!(steps::output))
        .routes(routes!(steps::signal))
        .routes(routes!(sockets::exec_socket))
        .routes(routes!(sockets::attach))
        .routes(routes!(files::read, files::write, files::change))
        .routes(routes!(files::stat))
        .routes(routes!(files::list))
        .routes(routes!(files::watch))
        .routes(routes!(tar::pack, tar::unpack))
        .routes(routes!(history::snap, history::snapshots))
        .routes(routes!(history::drop_snapshot))
        .routes(routes!(history::fork))
        .routes(routes!(history::restore))
        .routes(routes!(history::state_file))
        .routes(routes!(history::state_list))
        .routes(routes!(history::state_stat))
        .routes(routes!(history::state_grep))
        .routes(routes!(history::state_tar))
        .routes(routes!(history::diff))
        .routes(routes!(history::merge))
        .routes(routes!(history::explore))
        .routes(routes!(history::changes))
        .routes(routes!(history::blame))
        .routes(routes!(ports::list))
        .routes(routes!(ports::connect))
        .routes(routes!(services::add, services::list))
        .routes(routes!(services::get, services::remove))
        .routes(routes!(services::start))
        .routes(routes!(services::stop))
        .routes(routes!(services::restart))
        .routes(routes!(net::get, net::change))
        .routes(routes!(net::check))
        .routes(routes!(net::log))
        .routes(routes!(trash::list, trash::empty))
        .routes(routes!(trash::empty_one))
        .routes(routes!(trash::undo, trash::undo_list))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(pools::get, pools::change, pools::remove))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::get, volumes::remove))
        .routes(routes!(images::list))
        .routes(routes!(images::pull))
        .routes(routes!(images::build))
        .routes(routes!(images::import))
        .routes(routes!(images::get, images::remove))
}

async fn no_such_path(uri: axum::http::Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at `{}`", uri.path()))
        .hint("GET /v1/openapi.json lists every path")
}

async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let message = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        .hint("the header `Allow` names the methods that it takes; GET /v1/openapi.json says what they do")
}

#[cfg(test)]
mod tests;
