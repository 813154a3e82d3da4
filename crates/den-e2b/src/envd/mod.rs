//! The data plane: envd's protocol, and other ports.
//!
//! ```text
//! sandbox found? runs? (woken, if it is to be) ─► port 49983? ─► token ─► Connect RPC, /files, /envs, /metrics
//!                                              └► other ports ─► traffic token ─► proxy
//! ```

mod codec;
mod compose;
pub(crate) mod connect;
mod cut;
mod entry;
pub(crate) mod files;
pub(crate) mod filesystem;
pub(crate) mod paths;
pub(crate) mod process;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use self::connect::{Call, Code, RpcError};
use crate::{
    E2b, ENVD_PORT,
    book::{Phase, Sandbox},
    life::AUTO_RESUME_S,
    proxy, secret,
    time::{SECOND, now},
};

pub(crate) use cut::cut;

/// How long a sandbox that changes is waited for.
const CHANGE_WAIT: Duration = Duration::from_secs(10);

/// Answers a request for a port of a sandbox.
pub(crate) async fn enter(e2b: &E2b, id: &str, port: u16, request: Request) -> Response {
    if port == ENVD_PORT && request.method() == Method::OPTIONS {
        return cors(StatusCode::NO_CONTENT.into_response());
    }
    let sandbox = match running(e2b, id).await {
        Ok(sandbox) => sandbox,
        Err(refusal) => return refusal,
    };
    if port == ENVD_PORT {
        return cors(envd(e2b, &sandbox, request).await);
    }
    let wanted = sandbox.facts().traffic_token.clone();
    if let Some(wanted) = wanted {
        let given = request.headers().get("e2b-traffic-access-token").and_then(|value| value.to_str().ok());
        let what = match given {
            Some(given) if secret::same(&wanted, given) => None,
            Some(_) => Some("invalid"),
            None => Some("missing"),
        };
        if let Some(what) = what {
            let message = format!(
                "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is {what}"
            );
            return edge(403, id, &message, None);
        }
    }
    proxy::proxy(e2b, &sandbox, port, request).await
}

/// What the edge says of a sandbox that cannot be reached.
pub(crate) fn edge(status: u16, id: &str, message: &str, port: Option<u16>) -> Response {
    let mut body = json!({ "sandboxId": id, "message": message, "code": status });
    if let Some(port) = port {
        body["port"] = port.into();
    }
    (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), Json(body)).into_response()
}

/// What is said of a sandbox that does not run.
pub(crate) fn not_found(id: &str) -> Response {
    edge(502, id, "The sandbox was not found", None)
}

/// The sandbox, running. One that changes is waited for; one that sleeps is woken if traffic is to wake it.
async fn running(e2b: &E2b, id: &str) -> Result<Arc<Sandbox>, Response> {
    let sandbox = e2b.book().find(id).ok_or_else(|| not_found(id))?;
    if sandbox.phase() == Phase::Running {
        return Ok(sandbox);
    }
    let mut phase = sandbox.phase.subscribe();
    let settled = async { phase.wait_for(|phase| *phase != Phase::Changing).await.map_or(Phase::Gone, |phase| *phase) };
    let phase = match tokio::time::timeout(CHANGE_WAIT, settled).await {
        Ok(phase) => phase,
        Err(_) => return Err(edge(409, id, "The sandbox is still transitioning. Try again in a moment.", None)),
    };
    match phase {
        Phase::Running => Ok(sandbox),
        Phase::Paused if sandbox.facts().auto_resume => match e2b.resume(&sandbox, AUTO_RESUME_S).await {
            Ok(_) => Ok(sandbox),
            Err(error) if matches!(error.status, 404 | 409) => Err(not_found(id)),
            Err(error) => Err(edge(error.status, id, &error.message, None)),
        },
        _ => Err(not_found(id)),
    }
}

/// envd's own port.
async fn envd(e2b: &E2b, sandbox: &Arc<Sandbox>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match path.as_str() {
        "/health" if reads => return StatusCode::NO_CONTENT.into_response(),
        "/health" | "/envs" | "/metrics" if !reads => return not_allowed("GET, HEAD"),
        _ => {}
    }
    if path == "/files" {
        return files::files(e2b, sandbox, request).await;
    }
    if !authorised(sandbox, &request) {
        return files::refusal(
            401,
            "unauthorized access, please provide a valid access token or method signing if supported",
        );
    }
    match path.as_str() {
        "/envs" => {
            let mut env = sandbox.facts().env.clone();
            env.insert("E2B_SANDBOX".to_owned(), "true".to_owned());
            env.insert("E2B_SANDBOX_ID".to_owned(), sandbox.id.clone());
            env.insert("E2B_TEMPLATE_ID".to_owned(), sandbox.facts().template.clone());
            Json(env).into_response()
        }
        "/metrics" => metrics(e2b, sandbox).await,
        "/files/compose" => compose::compose(e2b, sandbox, request).await,
        _ => rpc(e2b, sandbox, &path, request).await,
    }
}

/// Whether a request has the sandbox's token, if it has one.
fn authorised(sandbox: &Sandbox, request: &Request) -> bool {
    let given = request.headers().get("x-access-token").and_then(|value| value.to_str().ok());
    match &sandbox.facts().token {
        None => true,
        Some(token) => given.is_some_and(|given| secret::same(token, given)),
    }
}

async fn rpc(e2b: &E2b, sandbox: &Arc<Sandbox>, path: &str, request: Request) -> Response {
    let Some((service, method)) = path.trim_start_matches('/').split_once('/') else { return no_such(path) };
    if !matches!(service, "process.Process" | "filesystem.Filesystem") {
        return no_such(path);
    }
    let call = match Call::read(service, method, request) {
        Ok(call) => call,
        Err(refusal) => return *refusal,
    };
    match service {
        "process.Process" => process::serve(e2b, sandbox, method, call).await,
        _ => filesystem::serve(e2b, sandbox, method, call).await,
    }
}

/// What is said of a method that a path does not take.
fn not_allowed(allowed: &'static str) -> Response {
    let mut response = files::refusal(405, &format!("this path takes {allowed}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn no_such(path: &str) -> Response {
    files::refusal(404, &format!("envd has nothing at {path}"))
}

async fn metrics(e2b: &E2b, sandbox: &Sandbox) -> Response {
    let (cpus, memory, disk) = {
        let facts = sandbox.facts();
        (facts.cpus, facts.memory_mib << 20, facts.disk_mib << 20)
    };
    match e2b.control().get(&sandbox.id, false).await {
        Ok(view) => {
            let usage = view.usage;
            let used = usage.map_or(0, |usage| usage.memory_bytes);
            Json(json!({
                "ts": now() / SECOND,
                "cpu_count": cpus,
                "cpu_used_pct": 0.0,
                "mem_total": memory,
                "mem_used": used,
                "mem_cache": 0,
                "mem_total_mib": memory >> 20,
                "mem_used_mib": used >> 20,
                "disk_used": usage.and_then(|usage| usage.disk_bytes).unwrap_or(0),
                "disk_total": disk,
            }))
            .into_response()
        }
        Err(error) => files::failed(&error, "metrics"),
    }
}

/// Lets pages of any origin in, as upstream does: the tokens guard what there is.
fn cors(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let any = HeaderValue::from_static("*");
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, any.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, any.clone());
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, any);
    response
}

/// The user of calls that name none.
const USER_DEFAULT: &str = "user";

/// The user of calls to a sandbox that name none.
pub(crate) fn user_of(sandbox: &Sandbox) -> String {
    sandbox.facts().context.as_ref().map_or_else(|| USER_DEFAULT.to_owned(), |context| context.user.clone())
}

/// What a refusal of Den's means in Connect's words.
pub(crate) fn rpc_error(error: &den_control::Error) -> RpcError {
    let code = match error.code {
        "file_not_found" => Code::NotFound,
        "file_exists" | "not_empty" => Code::AlreadyExists,
        "not_a_directory" | "is_a_directory" | "not_a_file" | "bad_request" | "no_such_cwd" => Code::InvalidArgument,
        "permission_denied" => Code::PermissionDenied,
        "no_such_user" => Code::Unauthenticated,
        "disk_full" | "host_full" | "too_many" | "too_large" | "no_processes" => Code::ResourceExhausted,
        "step_ended" => Code::NotFound,
        "unsupported" => Code::Unimplemented,
        "computer_not_found" | "computer_trashed" | "computer_stopped" | "wrong_state" | "unplugged" => {
            return RpcError::new(Code::Unavailable, "The sandbox was not found");
        }
        "agent_lost" | "shutting_down" => Code::Unavailable,
        _ => {
            tracing::warn!(error = error.chain(), "a call of E2B's failed");
            Code::Internal
        }
    };
    RpcError::new(code, error.message.clone())
}
