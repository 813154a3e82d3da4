//! The control plane: sandboxes, snapshots, templates.
//!
//! Every answer of 400 and above has the body of [`crate::error::ApiError`]; all but `/health` wants the key.

mod list;
mod measured;
mod more;
pub(crate) mod query;
mod tags;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::{Bytes, to_bytes},
    extract::{DefaultBodyLimit, Extension, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use den_api::VolumeMountRequest;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    E2b, ENVD_VERSION,
    book::{Facts, Mount, Paused, Phase, Sandbox},
    build,
    error::ApiError,
    life::{Forks, New, TIMEOUT_MAX_S},
    making::to_the_end,
    net, secret,
    templates::DEFAULT,
    time::{self, SECOND, now},
    volumes, way,
};

/// The longest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The longest refusal of a layer below the routes, in bytes.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// What upstream calls its clusters; SDKs carry it along.
const CLIENT_ID: &str = "6532622b";

/// How long a sandbox lives whose create does not say: by the old route, and by the new one.
const TIMEOUT_OLD_S: i64 = 15;
const TIMEOUT_NEW_S: i64 = 300;

/// The longest that a refresh asks for, and the least that it gives, in seconds.
const REFRESH_MAX_S: i64 = 3600;
const REFRESH_MIN_S: i64 = 15;

/// The header that says why what ran does not go on in a fork.
const ANEW: HeaderName = HeaderName::from_static("x-den-processes-begin-anew");

/// The most forks of one request.
const FORKS_MAX: i64 = 100;

/// The longest `Idempotency-Key`.
const KEY_BYTES_MAX: usize = 255;

/// What a sandbox's `domain` is told to be: a request's extension. None: SDKs go by the one that they know.
#[derive(Clone)]
pub(crate) struct Told(Option<String>);

impl Told {
    /// The house's own domain, but to who came by a name of someone else's: that one leads here too.
    pub(crate) fn of(e2b: &E2b, request: &Request) -> Self {
        let domain = e2b.0.domain.as_ref().filter(|domain| !way::is_elsewhere(request, domain));
        Self(domain.map(ToString::to_string))
    }

    pub(crate) fn domain(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// All routes behind the key.
pub(crate) fn router(e2b: E2b) -> Router {
    let guarded = Router::new()
        .route("/sandboxes", post(create_old).get(list::running))
        .route("/v2/sandboxes", post(create_new).get(list::list))
        .route("/sandboxes/metrics", get(measured::of_many))
        .route("/sandboxes/{id}", get(show).delete(kill))
        .route("/sandboxes/{id}/timeout", post(timeout))
        .route("/sandboxes/{id}/refreshes", post(refresh))
        .route("/sandboxes/{id}/pause", post(pause))
        .route("/sandboxes/{id}/resume", post(resume))
        .route("/sandboxes/{id}/connect", post(connect))
        .route("/v2/sandboxes/{id}/connect", post(connect))
        .route("/sandboxes/{id}/fork", post(fork))
        .route("/sandboxes/{id}/snapshots", post(more::snapshot))
        .route("/sandboxes/{id}/network", put(network))
        .route("/sandboxes/{id}/metrics", get(measured::of_one))
        .route("/sandboxes/{id}/logs", get(measured::logs))
        .route("/v2/sandboxes/{id}/logs", get(measured::logs_v2))
        .route("/snapshots", get(more::snapshots))
        .route("/templates", get(more::templates))
        .route("/v2/templates", get(more::templates).post(build::routes::request_old))
        .route("/templates/aliases/{alias}", get(more::alias))
        .route("/templates/{id}", get(more::template).delete(more::delete_template))
        .route("/templates/{id}/tags", get(more::tags))
        .route("/templates/{id}/tags/count", get(tags::count))
        .route("/templates/{id}/tags/exists", get(tags::exists))
        .route("/templates/{id}/tags/groups", get(tags::groups))
        .route("/templates/{id}/tags/{tag}/assignments", get(tags::assignments))
        .merge(build::routes::guarded())
        .merge(volumes::guarded())
        .route("/teams", get(more::teams))
        .fallback(not_here)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(e2b.clone(), authorised));
    Router::new()
        .route("/health", get(health))
        .merge(build::routes::signed())
        .merge(volumes::content())
        .merge(guarded)
        .layer(middleware::map_response(as_json))
        .with_state(e2b)
}

/// A refusal of a layer below the routes, such as of a body that is too long, in the form of all others.
async fn as_json(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let allow = response.headers().get(header::ALLOW).cloned();
    let text = to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let text = match String::from_utf8_lossy(&text).into_owned() {
        text if text.is_empty() => status.canonical_reason().unwrap_or("refused").to_owned(),
        text => text,
    };
    let mut response = ApiError::new(status.as_u16(), text).into_response();
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

async fn health() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn authorised(State(e2b): State<E2b>, request: Request, next: Next) -> Response {
    let given = request.headers().get("x-api-key").and_then(|value| value.to_str().ok());
    match given {
        Some(key) if secret::same(&e2b.0.key, key) => next.run(request).await,
        Some(_) => {
            ApiError::new(401, "Invalid API key, please visit `den e2b key` for the one of this house").into_response()
        }
        None => ApiError::new(401, "API key is missing: send the header X-API-Key").into_response(),
    }
}

async fn not_here(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let known = ["/templates", "/v2/templates", "/v3/templates", "/api-keys", "/nodes"]
        .iter()
        .any(|start| path.starts_with(start));
    match (known, path.starts_with("/secrets")) {
        (true, _) => ApiError::not_here(&format!("{method} {path}")),
        (_, true) => ApiError::new(403, "secrets are a feature of E2B's cloud; Den does not have them"),
        _ => ApiError::new(404, format!("there is nothing at {path}")),
    }
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(405, format!("{} does not take {method}", uri.path()))
}

/// Reads a body, which is an object; an empty one is an empty object.
pub(crate) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    object(bytes).map_err(|why| ApiError::bad(format!("the body: {why}")))
}

/// Reads an object: what has fields could be read of a list as well, by their order.
pub(crate) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.trim_ascii_start() {
        // Nothing at all; blanks are no JSON.
        _ if bytes.is_empty() => serde_json::from_slice(b"{}"),
        [b'{', ..] => serde_json::from_slice(bytes),
        _ => return Err("it is no object".to_owned()),
    }
    .map_err(|error| error.to_string())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Create {
    #[serde(rename = "templateID")]
    template: Option<String>,
    timeout: Option<i64>,
    secure: Option<bool>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access")]
    internet: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    network: Option<Value>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Mount>>,
}

#[derive(Deserialize)]
struct AutoResume {
    enabled: bool,
}

async fn create_old(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let create: Create = body(&bytes)?;
    let secure = create.secure.unwrap_or(false);
    made(&e2b, create, &told, TIMEOUT_OLD_S, secure, None).await
}

async fn create_new(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let create: Create = body(&bytes)?;
    let key = match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => None,
        Some(Ok(key)) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Some(key.to_owned()),
        Some(_) => return Err(ApiError::bad(format!("Idempotency-Key: 1 to {KEY_BYTES_MAX} characters of ASCII"))),
    };
    made(&e2b, create, &told, TIMEOUT_NEW_S, true, key).await
}

async fn made(
    e2b: &E2b,
    create: Create,
    told: &Told,
    timeout_s: i64,
    secure: bool,
    key: Option<String>,
) -> Result<Response, ApiError> {
    let Create { auto_pause, auto_pause_memory, auto_resume, internet, metadata, env_vars, .. } = create;
    let timeout_s = above_zero(create.timeout.unwrap_or(timeout_s))?;
    let (auto_pause, memory) = (auto_pause.unwrap_or(false), auto_pause_memory.unwrap_or(true));
    let auto_resume = auto_resume.is_some_and(|it| it.enabled);
    if !memory && !auto_pause {
        return Err(ApiError::bad("autoPauseMemory: false needs autoPause: true"));
    }
    if !memory && auto_resume {
        return Err(ApiError::bad("autoPauseMemory: false does not go with autoResume"));
    }
    let given = |value: &Option<Value>| {
        value.as_ref().is_some_and(|value| !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty()))
    };
    for (name, is_given) in [("mcp", given(&create.mcp)), ("iam", given(&create.iam))] {
        if is_given {
            return Err(ApiError::bad(format!("{name}: Den does not have this yet")));
        }
    }
    let network = create.network.filter(|network| !network.is_null());
    let public = network.as_ref().map(|network| net::flag(network, "allowPublicTraffic")).transpose()?;
    let public = public.flatten().unwrap_or(true);
    if !public && !secure {
        return Err(ApiError::bad("network.allowPublicTraffic: false needs secure: true"));
    }
    let net = net::policy(internet, network.as_ref())?;
    let env = env_vars.unwrap_or_default();
    if let Some(bad) = env.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        return Err(ApiError::bad(format!("envVars: `{}` is no name of a variable", bad.escape_default())));
    }
    let volumes = create.volume_mounts.unwrap_or_default().into_iter();
    let volumes = volumes.map(|Mount { name, path }| VolumeMountRequest { volume: name, path }).collect();
    let template = e2b.template(create.template.as_deref().unwrap_or(DEFAULT)).await?;
    let new = New {
        template,
        timeout_s,
        metadata: metadata.unwrap_or_default(),
        env,
        secure,
        auto_pause,
        auto_pause_memory: memory,
        auto_resume,
        internet,
        network,
        net,
        public,
        volumes,
        key,
    };
    let sandbox = e2b.create(new).await?;
    Ok((StatusCode::CREATED, Json(short(&sandbox, told))).into_response())
}

fn above_zero(timeout_s: i64) -> Result<i64, ApiError> {
    match timeout_s {
        ..=0 => Err(ApiError::bad("timeout: it has to be above 0")),
        TIMEOUT_MAX_S.. if timeout_s > TIMEOUT_MAX_S => {
            Err(ApiError::bad(format!("timeout: at most {} hours", TIMEOUT_MAX_S / 3600)))
        }
        seconds => Ok(seconds),
    }
}

fn find(e2b: &E2b, id: &str) -> Result<Arc<Sandbox>, ApiError> {
    e2b.book().find(id).ok_or_else(|| ApiError::no_sandbox(id))
}

/// A sandbox as its creation answers it.
fn short(sandbox: &Sandbox, told: &Told) -> Value {
    let facts = sandbox.facts();
    let mut view = json!({
        "templateID": facts.template,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "trafficAccessToken": facts.traffic_token,
        "domain": told.0,
    });
    if let Some(alias) = &facts.alias {
        view["alias"] = alias.as_str().into();
    }
    if let Some(token) = &facts.token {
        view["envdAccessToken"] = token.as_str().into();
    }
    view
}

/// A sandbox as lists have it.
fn listed(sandbox: &Sandbox) -> Value {
    let facts = sandbox.facts();
    let paused = facts.paused.is_some();
    let mut view = json!({
        "templateID": facts.template,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "startedAt": time::text(facts.started_at),
        "endAt": time::text(facts.ends_at),
        "cpuCount": facts.cpus,
        "memoryMB": facts.memory_mib,
        "diskSizeMB": facts.disk_mib,
        "metadata": facts.metadata,
        "state": if paused { "paused" } else { "running" },
        "envdVersion": ENVD_VERSION,
    });
    if let Some(alias) = &facts.alias {
        view["alias"] = alias.as_str().into();
    }
    if !facts.volumes.is_empty() {
        view["volumeMounts"] = json!(facts.volumes);
    }
    view
}

async fn show(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let sandbox = find(&e2b, &id)?;
    let mut view = listed(&sandbox);
    let facts = sandbox.facts();
    if let Some(token) = &facts.token {
        view["envdAccessToken"] = token.as_str().into();
    }
    view["domain"] = told.0.into();
    view["allowInternetAccess"] = facts.internet.into();
    if let Some(network) = &facts.network {
        view["network"] = network.clone();
    }
    view["lifecycle"] = json!({
        "onTimeout": if facts.auto_pause { "pause" } else { "kill" },
        "autoResume": facts.auto_resume,
    });
    Ok(Json(view))
}

async fn kill(State(e2b): State<E2b>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    e2b.kill(&find(&e2b, &id)?, |_| true).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Timeout {
    timeout: i64,
}

async fn timeout(State(e2b): State<E2b>, Path(id): Path<String>, bytes: Bytes) -> Result<StatusCode, ApiError> {
    let Timeout { timeout } = body(&bytes)?;
    let sandbox = find(&e2b, &id)?;
    if timeout < 0 {
        return Err(ApiError::bad("timeout: below 0"));
    }
    let timeout = if timeout == 0 { 0 } else { above_zero(timeout)? };
    e2b.change(&sandbox, move |facts| facts.ends_at = now() + timeout * SECOND).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Refresh {
    duration: Option<i64>,
}

async fn refresh(State(e2b): State<E2b>, Path(id): Path<String>, bytes: Bytes) -> Result<StatusCode, ApiError> {
    let Refresh { duration } = body(&bytes)?;
    let duration = duration.unwrap_or(REFRESH_MIN_S);
    if !(0..=REFRESH_MAX_S).contains(&duration) {
        return Err(ApiError::bad(format!("duration: from 0 to {REFRESH_MAX_S}")));
    }
    let sandbox = find(&e2b, &id)?;
    extend(&e2b, &sandbox, duration.max(REFRESH_MIN_S)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves the end of a sandbox away, never nearer.
async fn extend(e2b: &E2b, sandbox: &Arc<Sandbox>, timeout_s: i64) -> Result<(), ApiError> {
    let ends_at = now() + timeout_s * SECOND;
    if sandbox.facts().ends_at >= ends_at {
        return Ok(());
    }
    e2b.change(sandbox, move |facts| facts.ends_at = facts.ends_at.max(ends_at)).await
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pause {
    memory: Option<bool>,
}

async fn pause(State(e2b): State<E2b>, Path(id): Path<String>, bytes: Bytes) -> Result<StatusCode, ApiError> {
    let Pause { memory } = body(&bytes)?;
    let what = if memory.unwrap_or(true) { Paused::Memory } else { Paused::Disk };
    e2b.pause(&find(&e2b, &id)?, what, |_| true).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resume {
    timeout: Option<i64>,
    auto_pause: Option<bool>,
}

async fn resume(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let Resume { timeout, auto_pause } = body(&bytes)?;
    let timeout = above_zero(timeout.unwrap_or(TIMEOUT_OLD_S))?;
    let sandbox = find(&e2b, &id)?;
    if !e2b.resume(&sandbox, timeout).await? {
        return Err(ApiError::new(409, format!("Sandbox {id} is already running")));
    }
    if let Some(auto_pause) = auto_pause {
        e2b.change(&sandbox, move |facts| facts.auto_pause = auto_pause).await?;
    }
    Ok((StatusCode::CREATED, Json(short(&sandbox, &told))).into_response())
}

async fn connect(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let Resume { timeout, .. } = body(&bytes)?;
    let timeout = above_zero(timeout.unwrap_or(TIMEOUT_NEW_S))?;
    let sandbox = find(&e2b, &id)?;
    let status = match e2b.resume(&sandbox, timeout).await? {
        true => StatusCode::CREATED,
        false => {
            extend(&e2b, &sandbox, timeout).await?;
            StatusCode::OK
        }
    };
    Ok((status, Json(short(&sandbox, &told))).into_response())
}

#[derive(Deserialize)]
struct Fork {
    timeout: Option<i64>,
    count: Option<i64>,
}

async fn fork(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let Fork { timeout, count } = body(&bytes)?;
    let timeout = above_zero(timeout.unwrap_or(TIMEOUT_NEW_S))?;
    let count = count.unwrap_or(1);
    if !(1..=FORKS_MAX).contains(&count) {
        return Err(ApiError::bad(format!("count: from 1 to {FORKS_MAX}")));
    }
    let sandbox = find(&e2b, &id)?;
    let Forks { all, anew } = e2b.fork(&sandbox, timeout, usize::try_from(count).unwrap_or(1)).await?;
    let result = |made: &Result<Arc<Sandbox>, ApiError>| match made {
        Ok(made) => json!({ "sandbox": short(made, &told) }),
        Err(error) => json!({ "error": { "code": error.status, "message": error.message } }),
    };
    let results: Vec<Value> = all.iter().map(result).collect();
    let mut response = (StatusCode::CREATED, Json(results)).into_response();
    if let Some(why) = anew
        && let Ok(why) = HeaderValue::from_str(&why)
    {
        response.headers_mut().insert(ANEW, why);
    }
    Ok(response)
}

async fn network(State(e2b): State<E2b>, Path(id): Path<String>, bytes: Bytes) -> Result<StatusCode, ApiError> {
    let wanted: Value = body(&bytes)?;
    let internet = net::flag(&wanted, "allow_internet_access")?;
    let sandbox = find(&e2b, &id)?;
    // What is left out is cleared: then it is open again.
    let net = net::policy(internet, Some(&wanted))?
        .unwrap_or_else(|| den_api::NetRequest { posture: Some("open".to_owned()), ..Default::default() });
    to_the_end(async move {
        let turn = e2b.turn(&sandbox).await?;
        if sandbox.phase() != Phase::Running {
            return Err(ApiError::new(409, format!("Sandbox {id} is not running")));
        }
        e2b.set_net(&sandbox.id, &net).await?;
        let set = |facts: &mut Facts| {
            facts.internet = internet;
            facts.network = Some(net::changed(facts.network.as_ref(), wanted));
        };
        e2b.keep(&sandbox, &turn, set).await?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_or_nothing() {
        for (text, expected) in [("", Some(None)), (" {\"timeout\": 1}\n", Some(Some(1))), ("{}", Some(None))] {
            assert_eq!(object::<Resume>(text.as_bytes()).ok().map(|body| body.timeout), expected, "{text:?}");
        }
        for text in [" ", "\n", "[]", "[1]", "null", "1", "{", "x{}", "{} {}"] {
            assert!(object::<Resume>(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
