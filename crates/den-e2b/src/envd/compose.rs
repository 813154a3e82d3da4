//! `/files/compose`: files put together into one, inside.
//!
//! ```text
//! sources, one after the other ─► beside the destination ─► in its place, whole ─► sources removed
//! ```
//!
//! Begun is carried to its end though the client goes away. What breaks off leaves destination and sources as they were.

use std::sync::Arc;

use axum::{
    Json,
    body::to_bytes,
    extract::Request,
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use den_api::FileOperation;
use den_control::{Error, WriteFile};
use serde::Deserialize;

use super::{
    connect::named_user,
    entry,
    files::{failed, refusal, uploading},
    paths, user_of,
};
use crate::{E2b, api::object, book::Sandbox, who};

/// The longest body of a request, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Sources of one file.
const SOURCES_MAX: usize = 1000;

#[derive(Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

/// Answers `/files/compose`.
pub(super) async fn compose(e2b: &E2b, sandbox: &Arc<Sandbox>, request: Request) -> Response {
    if request.method() != Method::POST {
        return super::not_allowed("POST");
    }
    let named = named_user(request.headers());
    let Ok(body) = to_bytes(request.into_body(), BODY_BYTES_MAX).await else {
        return refusal(400, "the body did not arrive, or is longer than 1 MiB");
    };
    let Compose { source_paths, destination, username } = match object(&body) {
        Ok(compose) => compose,
        Err(why) => return refusal(400, &format!("invalid request body: {why}")),
    };
    if source_paths.is_empty() || source_paths.len() > SOURCES_MAX || source_paths.iter().any(String::is_empty) {
        return refusal(400, &format!("source_paths must be 1 to {SOURCES_MAX} paths"));
    }
    if destination.is_empty() {
        return refusal(400, "destination is required");
    }
    let user = username.filter(|user| !user.is_empty()).or(named).unwrap_or_else(|| user_of(sandbox));
    let sources: Vec<String> = source_paths.iter().map(|path| paths::of(sandbox, path, &user)).collect();
    let destination = paths::of(sandbox, &destination, &user);
    if sources.contains(&destination) {
        return refusal(400, &format!("path '{destination}' is a source and the destination"));
    }
    let (e2b, sandbox) = (e2b.clone(), Arc::clone(sandbox));
    let work = async move {
        let done = put_together(&e2b, &sandbox, &sources, &destination, &user).await;
        done.map(|()| Json(entry::uploaded(&destination, &[])).into_response())
    };
    match tokio::spawn(work).await {
        Ok(Ok(response)) => response,
        Ok(Err(refused)) => *refused,
        Err(error) => {
            tracing::error!(%error, "files were not put together");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn put_together(
    e2b: &E2b,
    sandbox: &Sandbox,
    sources: &[String],
    destination: &str,
    user: &str,
) -> Result<(), Box<Response>> {
    let (control, id) = (e2b.control(), sandbox.id.as_str());
    for source in sources {
        let stat = control.stat(id, source.as_bytes(), true).await;
        let stat = stat.map_err(|error| Box::new(failed(&error, source)))?;
        if stat.kind != "file" {
            return Err(Box::new(refusal(400, &format!("path '{source}' is not a regular file"))));
        }
    }
    let of_destination = |error: Error| Box::new(uploading(&error, destination, user));
    let above = paths::parent(destination).to_owned();
    let owner = Some(user.to_owned());
    let folder = FileOperation::Mkdir { path: above, mode: None, parents: true, owner: owner.clone() };
    control.change_file(id, folder, &who()).await.map_err(of_destination)?;
    let file = WriteFile { path: destination.as_bytes().to_vec(), owner, ..WriteFile::default() };
    let mut writer = control.write_file(id, file, &who()).await.map_err(of_destination)?;
    for source in sources {
        let of_source = |error: Error| Box::new(failed(&error, source));
        let (_, mut reader) = control.read_file(id, source.as_bytes(), 0, None).await.map_err(of_source)?;
        while let Some(bytes) = reader.next().await.map_err(of_source)? {
            writer.send(&bytes).await.map_err(of_destination)?;
        }
    }
    writer.finish().await.map_err(of_destination)?;
    for source in sources {
        let remove = FileOperation::Remove { path: source.clone(), recursive: false };
        match control.change_file(id, remove, &who()).await {
            // One that was named twice.
            Err(error) if error.code == "file_not_found" => {}
            removed => removed.map_err(|error| Box::new(failed(&error, source)))?,
        }
    }
    Ok(())
}
