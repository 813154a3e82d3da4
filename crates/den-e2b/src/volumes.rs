//! Volumes: what E2B calls those that computers share, and what lies in them.
//!
//! ```text
//! /volumes…              behind the key; says the token of a volume
//! /volumecontent/{id}/…  behind that token: path, dir, file
//! ```
//!
//! A token is derived from the key of the house and the volume's id: it is never kept, and ends with either.

use std::time::Duration;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Extension, FromRequestParts, Path, Request, State},
    http::{HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::Response,
    routing::get,
};
use den_api::{CreateVolume, VolumeView};
use den_control::{TreeEntry, TreeKind, TreeOwner, VolumeReader};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    E2b,
    api::{
        Told, body,
        query::{first, pairs},
    },
    error::ApiError,
    secret, time, who,
};

/// What tells tokens of volumes from other things that are derived from the key.
const TOKENS: &str = "den e2b: tokens of volumes";

/// How long an upload may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The routes behind the key.
pub(crate) fn guarded() -> Router<E2b> {
    Router::new().route("/volumes", get(list).post(create)).route("/volumes/{id}", get(show).delete(destroy))
}

/// The routes behind a volume's token.
pub(crate) fn content() -> Router<E2b> {
    Router::new()
        .route("/volumecontent/{id}/path", get(stat).patch(change).delete(remove))
        .route("/volumecontent/{id}/dir", get(entries).post(make_dir))
        .route("/volumecontent/{id}/file", get(read).put(write))
        .method_not_allowed_fallback(no_such_method)
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(405, format!("{} does not take {method}", uri.path()))
}

impl E2b {
    /// What a client of this volume shows.
    fn volume_token(&self, id: &str) -> String {
        let key = blake3::derive_key(TOKENS, self.0.key.as_bytes());
        format!("ev_{}", blake3::keyed_hash(&key, id.as_bytes()).to_hex())
    }

    /// A volume with its token.
    fn volume_view(&self, volume: &VolumeView, told: &Told) -> Value {
        let VolumeView { id, name, .. } = volume;
        json!({ "volumeID": id, "name": name, "token": self.volume_token(id), "domain": told.domain() })
    }
}

/// What a refusal of Den's means here.
fn refused(error: den_control::Error) -> ApiError {
    match error.code {
        "volume_full" | "host_full" | "disk_full" => {
            ApiError::new(507, format!("not enough disk space: {}", error.message))
        }
        _ => error.into(),
    }
}

async fn list(State(e2b): State<E2b>) -> Json<Vec<Value>> {
    let volumes = e2b.control().volumes().items;
    Json(volumes.iter().map(|volume| json!({ "volumeID": volume.id, "name": volume.name })).collect())
}

#[derive(Deserialize)]
struct New {
    name: String,
}

async fn create(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    bytes: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let New { name } = body(&bytes)?;
    let made = e2b.control().make_volume(CreateVolume { name, size: None }, &who()).await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(e2b.volume_view(&made, &told))))
}

async fn show(
    State(e2b): State<E2b>,
    Extension(told): Extension<Told>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let volume = e2b.control().volume(&id)?;
    Ok(Json(e2b.volume_view(&volume, &told)))
}

async fn destroy(State(e2b): State<E2b>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    e2b.control().remove_volume(&id, &who()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A request for what lies in a volume, let in by its token.
struct Asked {
    volume: String,
    path: String,
    query: Vec<(String, String)>,
}

impl FromRequestParts<E2b> for Asked {
    type Rejection = ApiError;

    /// Errors: 401 without the volume's token; 404 where there is no such volume; 400 without a path.
    async fn from_request_parts(parts: &mut Parts, e2b: &E2b) -> Result<Self, ApiError> {
        let Path(id) = Path::<String>::from_request_parts(parts, e2b)
            .await
            .map_err(|error| ApiError::bad(format!("the volume's id: {error}")))?;
        let given = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|text| text.split_once(' ')).filter(|(how, _)| how.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = given else {
            return Err(ApiError::new(401, "a volume's token is missing: send the header Authorization: Bearer"));
        };
        // Of what may be no volume too, so that nobody learns by asking which there are.
        let volume = e2b.control().volume(&id);
        let own = volume.as_ref().map_or(&id, |volume| &volume.id);
        if !secret::same(&e2b.volume_token(own), token.trim()) {
            return Err(ApiError::new(401, "it is not the token of this volume"));
        }
        let query = pairs(parts.uri.query().unwrap_or(""));
        let mut paths = query.iter().filter(|(name, _)| name == "path").map(|(_, path)| path.clone());
        let path = match (paths.next(), paths.next()) {
            (Some(path), None) => path,
            (None, _) => return Err(ApiError::bad("path: missing")),
            (Some(_), Some(_)) => return Err(ApiError::bad("path: more than one")),
        };
        Ok(Self { volume: volume?.id, path, query })
    }
}

impl Asked {
    fn number(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let text = first(&self.query, name);
        text.map(str::parse).transpose().map_err(|_| ApiError::bad(format!("{name}: it is no number")))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match first(&self.query, name) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(ApiError::bad(format!("{name}: it is neither true nor false"))),
        }
    }

    fn owner(&self) -> Result<TreeOwner, ApiError> {
        Ok(TreeOwner { uid: self.number("uid")?, gid: self.number("gid")?, mode: self.number("mode")? })
    }
}

/// What lies in a volume as it is shown.
fn entry(entry: &TreeEntry) -> Value {
    let path = String::from_utf8_lossy(&entry.path);
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
    let kind = match entry.kind {
        TreeKind::File => "file",
        TreeKind::Folder => "directory",
        TreeKind::Link => "symlink",
        TreeKind::Other => "unknown",
    };
    let mut view = json!({
        "name": name,
        "type": kind,
        "path": path,
        "size": entry.size,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "atime": time::text(entry.atime),
        "mtime": time::text(entry.mtime),
        "ctime": time::text(entry.ctime),
    });
    if let Some(target) = &entry.target {
        view["target"] = String::from_utf8_lossy(target).into();
    }
    view
}

async fn stat(State(e2b): State<E2b>, asked: Asked) -> Result<Json<Value>, ApiError> {
    let Asked { volume, path, .. } = asked;
    Ok(Json(entry(&e2b.control().volume_stat(&volume, &path).await.map_err(refused)?)))
}

#[derive(Deserialize)]
struct Change {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: Option<u32>,
}

async fn change(State(e2b): State<E2b>, asked: Asked, bytes: Bytes) -> Result<Json<Value>, ApiError> {
    let Asked { volume, path, .. } = asked;
    let Change { uid, gid, mode } = body(&bytes)?;
    let changed = e2b.control().volume_change(&volume, &path, TreeOwner { uid, gid, mode }).await;
    Ok(Json(entry(&changed.map_err(refused)?)))
}

async fn remove(State(e2b): State<E2b>, asked: Asked) -> Result<StatusCode, ApiError> {
    let Asked { volume, path, .. } = asked;
    e2b.control().volume_remove(&volume, &path).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn entries(State(e2b): State<E2b>, asked: Asked) -> Result<Json<Vec<Value>>, ApiError> {
    let depth = match asked.number("depth")? {
        Some(0) => return Err(ApiError::bad("depth: at least 1")),
        depth => depth.unwrap_or(1),
    };
    let found = e2b.control().volume_list(&asked.volume, &asked.path, depth as usize).await.map_err(refused)?;
    Ok(Json(found.iter().map(entry).collect()))
}

async fn make_dir(State(e2b): State<E2b>, asked: Asked) -> Result<(StatusCode, Json<Value>), ApiError> {
    let (owner, parents) = (asked.owner()?, asked.flag("force")?.unwrap_or(false));
    let made = e2b.control().volume_make_folder(&asked.volume, &asked.path, owner, parents).await;
    Ok((StatusCode::CREATED, Json(entry(&made.map_err(refused)?))))
}

async fn read(State(e2b): State<E2b>, asked: Asked) -> Result<Response, ApiError> {
    let Asked { volume, path, .. } = asked;
    let (found, reader) = e2b.control().volume_read(&volume, &path).await.map_err(refused)?;
    let mut response = Response::new(Body::from_stream(chunks(reader)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(found.size));
    Ok(response)
}

fn chunks(reader: VolumeReader) -> impl futures_util::Stream<Item = Result<Bytes, axum::BoxError>> {
    stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(bytes) => bytes.map(|bytes| (Ok(bytes), reader)),
            Err(error) => Some((Err(error.into()), reader)),
        }
    })
}

async fn write(State(e2b): State<E2b>, asked: Asked, request: Request) -> Result<(StatusCode, Json<Value>), ApiError> {
    // Without a word what is there is replaced, as SDKs promise.
    let (owner, replace) = (asked.owner()?, asked.flag("force")?.unwrap_or(true));
    let writer = e2b.control().volume_write(&asked.volume, &asked.path, owner, replace).await;
    let mut writer = writer.map_err(refused)?;
    let mut data = request.into_body().into_data_stream();
    loop {
        match tokio::time::timeout(SILENCE_MAX, data.next()).await {
            Ok(Some(Ok(bytes))) => writer.send(bytes).await.map_err(refused)?,
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(ApiError::bad(format!("the body did not arrive: {error}"))),
            Err(_) => return Err(ApiError::new(408, "the body came too slowly")),
        }
    }
    let written = writer.finish().await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(entry(&written))))
}
