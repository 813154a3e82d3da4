//! Snapshots, and templates as far as Den has them.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use den_api::ImageView;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    body, find,
    query::{first, pairs},
    say_anew,
};
use crate::{
    E2b, ENVD_VERSION,
    error::ApiError,
    templates::{Snapshot, id_of},
    time,
};

/// The most snapshots of one page.
const PAGE_MAX: usize = 100;

#[derive(Deserialize)]
struct Take {
    name: Option<String>,
}

fn snapshot_view(id: &str, snapshot: &Snapshot) -> Value {
    let names: Vec<&String> = snapshot.name.iter().collect();
    json!({ "snapshotID": id, "names": names })
}

/// `POST /sandboxes/{id}/snapshots`.
pub(super) async fn snapshot(
    State(e2b): State<E2b>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let Take { name } = body(&bytes)?;
    let sandbox = find(&e2b, &id)?;
    let (id, snapshot, anew) = e2b.snapshot(&sandbox, name).await?;
    let mut answer = (StatusCode::CREATED, Json(snapshot_view(&id, &snapshot))).into_response();
    say_anew(&mut answer, anew);
    Ok(answer)
}

/// `GET /snapshots`.
pub(super) async fn snapshots(State(e2b): State<E2b>, uri: Uri) -> Result<Response, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let limit = match first(&query, "limit") {
        None => PAGE_MAX,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=PAGE_MAX).contains(limit))
            .ok_or_else(|| ApiError::bad(format!("limit: `{text}` is not from 1 to {PAGE_MAX}")))?,
    };
    let (sandbox, name) = (first(&query, "sandboxID"), first(&query, "name"));
    let mut all = e2b.snapshots().await?;
    all.retain(|(id, snapshot)| {
        sandbox.is_none_or(|sandbox| snapshot.sandbox == sandbox)
            && name.is_none_or(|name| id == name || snapshot.name.as_deref() == Some(name))
    });
    if let Some(token) = first(&query, "nextToken").filter(|token| !token.is_empty()) {
        let at = all.iter().position(|(id, _)| id == token);
        let at = at.ok_or_else(|| ApiError::bad("nextToken: not ours, or that snapshot is gone"))?;
        all.drain(..=at);
    }
    let more = all.len() > limit;
    all.truncate(limit);
    let items: Vec<Value> = all.iter().map(|(id, snapshot)| snapshot_view(id, snapshot)).collect();
    let mut response = Json(items).into_response();
    if more
        && let Some((last, _)) = all.last()
        && let Ok(value) = last.parse()
    {
        response.headers_mut().insert("x-next-token", value);
    }
    Ok(response)
}

pub(super) fn build_id(image: &ImageView) -> String {
    let bytes = blake3::hash(image.digest.as_bytes());
    uuid::Builder::from_random_bytes(bytes.as_bytes()[..16].try_into().unwrap_or_default()).into_uuid().to_string()
}

fn template_view(image: &ImageView) -> Value {
    let at = time::text(image.created_at);
    json!({
        "templateID": id_of(&image.name),
        "buildID": build_id(image),
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": image.size >> 20,
        "public": true,
        "aliases": [image.name],
        "names": [image.name],
        "createdAt": at,
        "updatedAt": at,
        "createdBy": null,
        "lastSpawnedAt": null,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready",
    })
}

/// `GET /templates`, `GET /v2/templates`.
pub(super) async fn templates(State(e2b): State<E2b>) -> Result<Json<Vec<Value>>, ApiError> {
    let mut all = e2b.built_views();
    all.extend(e2b.images().await?.iter().map(template_view));
    Ok(Json(all))
}

pub(super) async fn image(e2b: &E2b, name: &str) -> Result<ImageView, ApiError> {
    let template = e2b.template(name).await?;
    let images = e2b.images().await?;
    let found = images.into_iter().find(|image| image.name == template.image);
    found.ok_or_else(|| ApiError::new(404, format!("template '{name}' not found")))
}

/// `GET /templates/{id}`.
pub(super) async fn template(State(e2b): State<E2b>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    if let Some((mut view, builds)) = e2b.built_view(&name) {
        view["builds"] = builds.into();
        return Ok(Json(view));
    }
    let image = image(&e2b, &name).await?;
    let mut view = template_view(&image);
    let at = time::text(image.created_at);
    view["builds"] = json!([{
        "buildID": build_id(&image),
        "status": "ready",
        "createdAt": at,
        "updatedAt": at,
        "finishedAt": at,
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": image.size >> 20,
        "envdVersion": ENVD_VERSION,
    }]);
    Ok(Json(view))
}

/// `GET /templates/{id}/tags`.
pub(super) async fn tags(State(e2b): State<E2b>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    if let Some(tags) = e2b.built_tags(&name) {
        return Ok(Json(tags));
    }
    let image = image(&e2b, &name).await?;
    let at = time::text(image.created_at);
    Ok(Json(json!([{ "tag": "default", "buildID": build_id(&image), "createdAt": at }])))
}

/// `GET /templates/aliases/{alias}`.
pub(super) async fn alias(State(e2b): State<E2b>, Path(alias): Path<String>) -> Result<Json<Value>, ApiError> {
    if let Some((id, public)) = e2b.built_exists(&alias) {
        return Ok(Json(json!({ "templateID": id, "public": public })));
    }
    let template = e2b.template(&alias).await?;
    // A template is there once its image is.
    if template.holder.is_none() {
        image(&e2b, &alias).await?;
    }
    Ok(Json(json!({ "templateID": template.id, "public": true })))
}

/// `DELETE /templates/{id}`.
pub(super) async fn delete_template(State(e2b): State<E2b>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    e2b.delete_template(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /teams`: the one that there is.
pub(super) async fn teams(State(e2b): State<E2b>) -> Json<Value> {
    Json(json!([{ "teamID": Uuid::nil().to_string(), "name": "den", "apiKey": e2b.0.key, "isDefault": true }]))
}
