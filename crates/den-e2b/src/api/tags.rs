//! Tags of templates, counted, looked for and listed with what they lead to.
//!
//! A tag leads to one build: what it led to before is let go, and so each has one assignment here.

use axum::{
    Json,
    extract::{Path, State},
    http::Uri,
};
use serde_json::{Value, json};

use super::{
    more::{build_id, image},
    query::{first, pairs},
};
use crate::{E2b, build::Assigned, error::ApiError, time};

/// The most of one page; what is listed where it is not said, of tags and of assignments of one.
const PAGE_MAX: usize = 100;
const TAGS_PAGE: usize = 25;
const ASSIGNMENTS_OF_TAG: usize = 6;
const ASSIGNMENTS_PAGE: usize = 50;

/// The tags of a template that lead to what is ready.
///
/// Errors: 404.
async fn assigned(e2b: &E2b, name: &str) -> Result<Vec<Assigned>, ApiError> {
    if let Some(all) = e2b.built_assigned(name) {
        return Ok(all);
    }
    let image = image(e2b, name).await?;
    let at = image.created_at;
    let only =
        Assigned { tag: "default".to_owned(), build: build_id(&image), at, created_at: at, finished_at: Some(at) };
    Ok(vec![only])
}

fn view(assigned: &Assigned) -> Value {
    let Assigned { tag, build, at, created_at, finished_at } = assigned;
    let bytes = blake3::hash(format!("{tag} {build} {at}").as_bytes());
    let id = uuid::Builder::from_random_bytes(bytes.as_bytes()[..16].try_into().unwrap_or_default()).into_uuid();
    json!({
        "assignmentId": id.to_string(),
        "buildId": build,
        "assignedAt": time::text(*at),
        "buildCreatedAt": time::text(*created_at),
        "buildFinishedAt": finished_at.map(time::text),
    })
}

fn limit(query: &[(String, String)], name: &str, usual: usize) -> Result<usize, ApiError> {
    let Some(text) = first(query, name) else { return Ok(usual) };
    let limit = text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| ApiError::bad(format!("{name}: `{text}` is not from 1 to {PAGE_MAX}")))
}

/// `GET /templates/{id}/tags/count`.
pub(super) async fn count(State(e2b): State<E2b>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "total": assigned(&e2b, &name).await?.len() })))
}

/// `GET /templates/{id}/tags/exists`.
pub(super) async fn exists(
    State(e2b): State<E2b>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let tag = first(&query, "tag").ok_or_else(|| ApiError::bad("tag: missing"))?;
    crate::build::check_tag(tag)?;
    let exists = assigned(&e2b, &name).await?.iter().any(|there| there.tag == tag);
    Ok(Json(json!({ "exists": exists, "normalizedTag": tag })))
}

/// `GET /templates/{id}/tags/groups`.
pub(super) async fn groups(
    State(e2b): State<E2b>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    limit(&query, "assignmentLimit", ASSIGNMENTS_OF_TAG)?;
    let most = limit(&query, "tagsLimit", TAGS_PAGE)?;
    let mut all = assigned(&e2b, &name).await?;
    match first(&query, "sort").unwrap_or("latest_desc") {
        "name_asc" => all.sort_by(|one, two| one.tag.cmp(&two.tag)),
        "name_desc" => all.sort_by(|one, two| two.tag.cmp(&one.tag)),
        "latest_asc" => all.sort_by(|one, two| (one.at, &one.tag).cmp(&(two.at, &two.tag))),
        "latest_desc" => all.sort_by(|one, two| (two.at, &one.tag).cmp(&(one.at, &two.tag))),
        other => return Err(ApiError::bad(format!("sort: `{}` is none", other.escape_default()))),
    }
    if let Some(search) = first(&query, "search") {
        all.retain(|one| one.tag.contains(&search.to_lowercase()));
    }
    if let Some(cursor) = first(&query, "tagsCursor").filter(|cursor| !cursor.is_empty()) {
        let at = all.iter().position(|one| one.tag == cursor);
        let at = at.ok_or_else(|| ApiError::bad("tagsCursor: not ours, or that tag is gone"))?;
        all.drain(..=at);
    }
    let more = all.len() > most;
    all.truncate(most);
    let next = all.last().filter(|_| more).map(|one| one.tag.clone());
    let tags: Vec<Value> =
        all.iter().map(|one| json!({ "tag": one.tag, "assignments": [view(one)], "hasMore": false })).collect();
    Ok(Json(json!({ "tags": tags, "nextCursor": next })))
}

/// `GET /templates/{id}/tags/{tag}/assignments`.
pub(super) async fn assignments(
    State(e2b): State<E2b>,
    Path((name, tag)): Path<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    limit(&query, "limit", ASSIGNMENTS_PAGE)?;
    if first(&query, "cursor").is_some_and(|cursor| !cursor.is_empty()) {
        return Err(ApiError::bad("cursor: not ours; a tag has one assignment"));
    }
    crate::build::check_tag(&tag)?;
    let all = assigned(&e2b, &name).await?;
    let data: Vec<Value> = all.iter().filter(|one| one.tag == tag).map(view).collect();
    Ok(Json(json!({ "data": data, "nextCursor": null })))
}
