//! The routes of templates that are built.

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, patch, post, put},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Assigned, Build, Facts, Record, Status,
    log::{Entry, Level, PAGE_MAX},
    plan, tags,
};
use crate::{
    E2b, ENVD_VERSION,
    api::{
        body,
        query::{first, pairs},
    },
    error::ApiError,
    making::to_the_end,
    time::{self, now},
};

/// What a build may ask for.
const CPUS_MAX: u32 = 1024;
const MEMORY_MIB_MIN: u64 = 64;
const MEMORY_MIB_MAX: u64 = 4 << 20;

/// The most entries of one answer of logs.
const LOGS_MAX: usize = 100;

/// The routes behind the key.
pub(crate) fn guarded() -> Router<E2b> {
    Router::new()
        .route("/v3/templates", post(request))
        .route("/v2/templates/{id}", patch(change))
        .route("/v2/templates/{id}/builds/{build}", post(start))
        .route("/templates/tags", post(assign).delete(remove))
        .route("/templates/{id}/files/{hash}", get(file))
        .route("/templates/{id}/builds/{build}/status", get(status))
        .route("/templates/{id}/builds/{build}/logs", get(logs))
}

/// The route that a signature is the key of.
pub(crate) fn signed() -> Router<E2b> {
    Router::new().route("/templates/{id}/uploads/{hash}", put(upload))
}

#[derive(Deserialize)]
struct Request {
    name: Option<String>,
    alias: Option<String>,
    tags: Option<Vec<String>>,
    #[serde(rename = "cpuCount")]
    cpus: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory: Option<u64>,
}

/// `POST /v3/templates`.
async fn request(State(e2b): State<E2b>, bytes: Bytes) -> Result<Response, ApiError> {
    Ok((StatusCode::ACCEPTED, Json(requested(&e2b, &bytes).await?)).into_response())
}

/// `POST /v2/templates`: the same, answered by a whole template.
pub(crate) async fn request_old(State(e2b): State<E2b>, bytes: Bytes) -> Result<Response, ApiError> {
    let mut view = requested(&e2b, &bytes).await?;
    let whole = view["templateID"].as_str().and_then(|id| e2b.built_view(id));
    if let (Some((Value::Object(mut whole), _)), Some(own)) = (whole, view.as_object_mut()) {
        whole.append(own);
        return Ok((StatusCode::ACCEPTED, Json(whole)).into_response());
    }
    Err(ApiError::new(404, "the template was deleted"))
}

async fn requested(e2b: &E2b, bytes: &Bytes) -> Result<Value, ApiError> {
    let Request { name, alias, tags: further, cpus, memory } = body(bytes)?;
    let name = name.or(alias).ok_or_else(|| ApiError::bad("name: missing"))?;
    let (name, tag) = tags::parse(&name)?;
    if e2b.images().await?.iter().any(|image| image.name == name) {
        return Err(ApiError::new(403, format!("'{name}' is an image of this house; take another name")));
    }
    if e2b.snapshots().await?.iter().any(|(_, snapshot)| snapshot.name.as_deref() == Some(&name)) {
        return Err(ApiError::new(403, format!("'{name}' is a snapshot; take another name")));
    }
    if cpus.is_some_and(|cpus| !(1..=CPUS_MAX).contains(&cpus)) {
        return Err(ApiError::bad(format!("cpuCount: from 1 to {CPUS_MAX}")));
    }
    if memory.is_some_and(|mib| !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&mib)) {
        return Err(ApiError::bad(format!("memoryMB: from {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}")));
    }
    let mut tags = tags::all(tag.into_iter().chain(further.unwrap_or_default()))?;
    if tags.is_empty() {
        tags.push(tags::DEFAULT.to_owned());
    }
    let facts = Facts {
        template: String::new(),
        tags: tags.clone(),
        cpus,
        memory_mib: memory,
        status: Status::Waiting,
        begun: false,
        reason: None,
        created_at: now(),
        finished_at: None,
        made: None,
    };
    let e2b = e2b.clone();
    let (record, build) = to_the_end(async move { e2b.shelf().register(e2b.control(), &name, facts).await }).await?;
    Ok(json!({
        "templateID": record.id,
        "buildID": build,
        "public": record.public,
        "names": [record.name],
        "aliases": [record.name],
        "tags": tags,
    }))
}

fn known(e2b: &E2b, id: &str) -> Result<Record, ApiError> {
    e2b.record(id).map(|(record, _)| record).ok_or_else(|| ApiError::new(404, "there is no such template"))
}

/// Where a client has sent its request to.
fn origin(headers: &HeaderMap, uri: &Uri) -> Result<String, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text("host"));
    let host = host.ok_or_else(|| ApiError::bad("missing header: Host"))?;
    let scheme = match text("x-forwarded-proto").or(uri.scheme_str()) {
        Some("https") => "https",
        _ => "http",
    };
    Ok(format!("{scheme}://{host}"))
}

/// `GET /templates/{id}/files/{hash}`.
async fn file(
    State(e2b): State<E2b>,
    Path((id, hash)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let record = known(&e2b, &id)?;
    let files = &e2b.shelf().files;
    let present = files.find(&record.id, &hash).await?.is_some();
    let url = format!("{}{}", origin(&headers, &uri)?, files.url(&record.id, &hash));
    Ok((StatusCode::CREATED, Json(json!({ "present": present, "url": url }))).into_response())
}

/// `PUT` to the URL that [`file`] has given.
async fn upload(
    State(e2b): State<E2b>,
    Path((id, hash)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    data: Body,
) -> Result<StatusCode, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    if !e2b.shelf().files.is_signed(&id, &hash, first(&query, "until"), first(&query, "signature")) {
        return Err(ApiError::new(403, "the signature of this URL is not good, or not any more"));
    }
    known(&e2b, &id)?;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    e2b.shelf().files.put(&id, &hash, length, data).await?;
    Ok(StatusCode::OK)
}

/// `POST /v2/templates/{id}/builds/{build}`.
async fn start(
    State(e2b): State<E2b>,
    Path((id, build)): Path<(String, String)>,
    bytes: Bytes,
) -> Result<StatusCode, ApiError> {
    let record = known(&e2b, &id)?;
    let build = e2b.shelf().build(&record.id, &build)?;
    let plan = plan::read(body(&bytes)?)?;
    to_the_end(async move {
        e2b.shelf().begin(e2b.control(), &build).await?;
        e2b.carry_out(build, plan);
        Ok(())
    })
    .await?;
    Ok(StatusCode::ACCEPTED)
}

/// A number of a query.
fn number(query: &[(String, String)], name: &str, usual: usize) -> Result<usize, ApiError> {
    match first(query, name) {
        None => Ok(usual),
        Some(text) => {
            text.parse().map_err(|_| ApiError::bad(format!("{name}: '{}' is no number", text.escape_debug())))
        }
    }
}

fn level(query: &[(String, String)]) -> Result<Level, ApiError> {
    let text = first(query, "level").filter(|text| !text.is_empty()).unwrap_or("debug");
    Level::parse(text).ok_or_else(|| ApiError::bad("level: one of debug, info, warn and error"))
}

/// `GET /templates/{id}/builds/{build}/status`.
async fn status(
    State(e2b): State<E2b>,
    Path((id, build)): Path<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let record = known(&e2b, &id)?;
    let build = e2b.shelf().build(&record.id, &build)?;
    let query = pairs(uri.query().unwrap_or(""));
    let offset = number(&query, "logsOffset", 0)?;
    let limit = number(&query, "limit", PAGE_MAX)?.clamp(1, PAGE_MAX);
    let least = level(&query)?;
    // What it says is read after how it stands: what is at its end has said all.
    let facts = build.facts();
    let said = build.said(&e2b.shelf().logs).await;
    let entries = said.iter().filter(|entry| entry.level >= least).skip(offset).take(limit);
    let mut view = json!({
        "templateID": record.id,
        "buildID": build.id,
        "status": facts.status.as_str(),
        "logs": [],
        "logEntries": entries.map(Entry::view).collect::<Vec<_>>(),
    });
    if let Some(reason) = facts.reason {
        let last = build.last_of(&e2b.shelf().logs, &reason.step).await;
        view["reason"] = json!({ "message": reason.message, "step": reason.step, "logEntries": last });
    }
    Ok(Json(view))
}

/// `GET /templates/{id}/builds/{build}/logs`.
async fn logs(
    State(e2b): State<E2b>,
    Path((id, build)): Path<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let record = known(&e2b, &id)?;
    let build = e2b.shelf().build(&record.id, &build)?;
    let query = pairs(uri.query().unwrap_or(""));
    let limit = number(&query, "limit", LOGS_MAX)?.clamp(1, LOGS_MAX);
    let least = level(&query)?;
    let cursor = match first(&query, "cursor") {
        None => None,
        Some(text) => Some(text.parse::<i64>().map_err(|_| ApiError::bad("cursor: milliseconds since the epoch"))?),
    };
    let said = build.said(&e2b.shelf().logs).await;
    let fits = said.iter().filter(|entry| entry.level >= least);
    let entries: Vec<_> = match first(&query, "direction") {
        None | Some("" | "forward") => {
            fits.filter(|entry| cursor.is_none_or(|at| entry.at / 1000 >= at)).take(limit).map(Entry::view).collect()
        }
        Some("backward") => fits
            .rev()
            .filter(|entry| cursor.is_none_or(|at| entry.at / 1000 <= at))
            .take(limit)
            .map(Entry::view)
            .collect(),
        Some(_) => return Err(ApiError::bad("direction: forward or backward")),
    };
    Ok(Json(json!({ "logs": entries })))
}

#[derive(Deserialize)]
struct Assign {
    target: String,
    tags: Vec<String>,
}

/// `POST /templates/tags`.
async fn assign(State(e2b): State<E2b>, bytes: Bytes) -> Result<Response, ApiError> {
    let Assign { target, tags } = body(&bytes)?;
    let named = tags.clone();
    let build = to_the_end(async move { e2b.tag(&target, named).await }).await?;
    Ok((StatusCode::CREATED, Json(json!({ "tags": tags, "buildID": build }))).into_response())
}

#[derive(Deserialize)]
struct Remove {
    name: String,
    tags: Vec<String>,
}

/// `DELETE /templates/tags`.
async fn remove(State(e2b): State<E2b>, bytes: Bytes) -> Result<StatusCode, ApiError> {
    let Remove { name, tags } = body(&bytes)?;
    to_the_end(async move { e2b.untag(&name, tags).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Change {
    public: Option<bool>,
}

/// `PATCH /v2/templates/{id}`.
async fn change(State(e2b): State<E2b>, Path(id): Path<String>, bytes: Bytes) -> Result<Json<Value>, ApiError> {
    let Change { public } = body(&bytes)?;
    let id = match e2b.record(&id) {
        Some((record, _)) => record.id,
        None => {
            let template = e2b.template(&id).await?;
            return Err(ApiError::new(403, format!("template '{}' is not one that was built", template.id)));
        }
    };
    let name = to_the_end(async move {
        let _turn = e2b.shelf().turn().await?;
        let mut record = known(&e2b, &id)?;
        let name = record.name.clone();
        record.public = public.unwrap_or(record.public);
        e2b.shelf().keep_record(e2b.control(), record).await?;
        Ok(name)
    })
    .await?;
    Ok(Json(json!({ "names": [name] })))
}

fn build_view(build: &Build) -> Value {
    let facts = build.facts();
    let mut view = json!({
        "buildID": build.id,
        "status": facts.status.as_str(),
        "createdAt": time::text(facts.created_at),
        "updatedAt": time::text(facts.finished_at.unwrap_or(facts.created_at)),
        "cpuCount": facts.made.as_ref().map(|made| made.cpus).or(facts.cpus).unwrap_or(0),
        "memoryMB": facts.made.as_ref().map(|made| made.memory_mib).or(facts.memory_mib).unwrap_or(0),
        "diskSizeMB": facts.made.as_ref().map_or(0, |made| made.disk_mib),
        "envdVersion": ENVD_VERSION,
    });
    if let Some(at) = facts.finished_at {
        view["finishedAt"] = time::text(at).into();
    }
    view
}

impl E2b {
    /// Every template that was built, as lists have it.
    pub(crate) fn built_views(&self) -> Vec<Value> {
        let ids: Vec<String> = self.shelf().known().records.keys().cloned().collect();
        ids.iter().filter_map(|id| self.built_view(id)).map(|(view, _)| view).collect()
    }

    /// A template that was built, with its builds.
    pub(crate) fn built_view(&self, text: &str) -> Option<(Value, Vec<Value>)> {
        let (record, _) = self.record(text)?;
        let builds = self.shelf().known().of(&record.id);
        let newest = builds.first()?;
        let current = record.tags.get(tags::DEFAULT).map(|tagged| tagged.build.clone());
        let current = current.and_then(|id| builds.iter().find(|build| build.id == id)).unwrap_or(newest);
        let mut view = build_view(current);
        if let Some(map) = view.as_object_mut() {
            let status = map.remove("status").unwrap_or_default();
            map.remove("finishedAt");
            map.insert("buildStatus".to_owned(), status);
        }
        for (name, value) in [
            ("templateID", json!(record.id)),
            ("public", json!(record.public)),
            ("aliases", json!([record.name])),
            ("names", json!([record.name])),
            ("createdAt", json!(time::text(record.created_at))),
            ("updatedAt", json!(time::text(record.updated_at))),
            ("createdBy", Value::Null),
            ("lastSpawnedAt", Value::Null),
            ("spawnCount", json!(0)),
            ("buildCount", json!(builds.len())),
        ] {
            view[name] = value;
        }
        Some((view, builds.iter().map(|build| build_view(build)).collect()))
    }

    /// The tags of a template that was built.
    pub(crate) fn built_tags(&self, text: &str) -> Option<Value> {
        let (record, _) = self.record(text)?;
        let view = |(tag, tagged): (&String, &super::Tagged)| json!({ "tag": tag, "buildID": tagged.build, "createdAt": time::text(tagged.at) });
        Some(record.tags.iter().map(view).collect())
    }

    /// The tags of a template that was built, with the builds that they lead to.
    pub(crate) fn built_assigned(&self, text: &str) -> Option<Vec<Assigned>> {
        let (record, _) = self.record(text)?;
        let known = self.shelf().known();
        let all = record.tags.iter().filter_map(|(tag, tagged)| {
            let facts = known.builds.get(&tagged.build)?.facts();
            let (tag, build) = (tag.clone(), tagged.build.clone());
            Some(Assigned { tag, build, at: tagged.at, created_at: facts.created_at, finished_at: facts.finished_at })
        });
        Some(all.collect())
    }

    /// Deletes a template that was built; whether there was one.
    ///
    /// Errors: 409 while a build of it goes on.
    pub(crate) async fn delete_built(&self, text: &str) -> Result<bool, ApiError> {
        let Some((record, _)) = self.record(text) else { return Ok(false) };
        let e2b = self.clone();
        to_the_end(async move { e2b.delete_record(&record).await }).await?;
        Ok(true)
    }
}
