//! `filesystem.Filesystem`: looking at files and changing them, and watching.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::response::Response;
use bytes::Bytes;
use den_api::{ChangeView, FileOperation};
use den_control::Watcher;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connect::{Call, Code, RpcError, Voice, end},
    cut, entry, paths,
};
use crate::{E2b, book::Sandbox, secret, who};

/// The deepest that is listed.
const DEPTH_MAX: u32 = 64;

/// Events of one watcher that wait to be asked for; beyond them the oldest go.
const EVENTS_MAX: usize = 10_000;

/// Watchers of one sandbox.
const WATCHERS_MAX: usize = 256;

/// Watchers that are asked for events.
#[derive(Default)]
pub(crate) struct Watchers(Mutex<HashMap<String, Polled>>);

struct Polled {
    events: Arc<Mutex<VecDeque<Value>>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Deserialize)]
struct At {
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    path: String,
    #[serde(default)]
    depth: u32,
}

#[derive(Deserialize)]
struct Move {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watch {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
    #[serde(default, alias = "include_entry")]
    include_entry: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WatcherId {
    #[serde(default, alias = "watcher_id")]
    watcher_id: String,
}

/// Answers a call.
pub(crate) async fn serve(e2b: &E2b, sandbox: &Arc<Sandbox>, method: &str, call: Call) -> Response {
    let voice = call.voice.clone();
    let done = match method {
        "WatchDir" => {
            return watch_dir(e2b, sandbox, call).await.unwrap_or_else(|error| voice.ended(Some(&error)));
        }
        "Stat" => stat(e2b, sandbox, call).await,
        "MakeDir" => make_dir(e2b, sandbox, call).await,
        "Move" => rename(e2b, sandbox, call).await,
        "ListDir" => list(e2b, sandbox, call).await,
        "Remove" => remove(e2b, sandbox, call).await,
        "CreateWatcher" => create_watcher(e2b, sandbox, call).await,
        "GetWatcherEvents" => watcher_events(sandbox, call).await,
        _ => remove_watcher(sandbox, call).await,
    };
    voice.answered(done)
}

fn missing(path: &str) -> RpcError {
    RpcError::new(Code::NotFound, format!("path '{path}' does not exist"))
}

async fn stat(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let user = call.user(sandbox);
    let At { path } = call.message().await?;
    let path = paths::of(sandbox, &path, &user);
    match entry::entry(e2b, &sandbox.id, &path).await {
        Ok(entry) => Ok(json!({ "entry": entry })),
        Err(error) if matches!(error.code, "file_not_found" | "not_a_directory") => Err(missing(&path)),
        Err(error) => Err(error.into()),
    }
}

async fn make_dir(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let user = call.user(sandbox);
    let At { path } = call.message().await?;
    let path = paths::of(sandbox, &path, &user);
    match e2b.control().stat(&sandbox.id, path.as_bytes(), true).await {
        Ok(there) if there.kind == "directory" => {
            return Err(RpcError::new(Code::AlreadyExists, format!("directory already exists: {path}")));
        }
        Ok(_) => return Err(RpcError::bad(format!("path already exists but it is not a directory: {path}"))),
        Err(error) if matches!(error.code, "file_not_found" | "not_a_directory") => {}
        Err(error) => return Err(error.into()),
    }
    make_dirs(e2b, sandbox, &path, &user).await?;
    Ok(json!({ "entry": entry::entry(e2b, &sandbox.id, &path).await? }))
}

async fn make_dirs(e2b: &E2b, sandbox: &Sandbox, path: &str, user: &str) -> Result<(), RpcError> {
    let owner = Some(user.to_owned());
    let operation = FileOperation::Mkdir { path: path.to_owned(), mode: None, parents: true, owner };
    e2b.control().change_file(&sandbox.id, operation, &who()).await.map_err(|error| match error.code {
        "no_such_user" => RpcError::new(Code::Unauthenticated, format!("invalid username: '{user}'")),
        _ => error.into(),
    })
}

async fn rename(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let user = call.user(sandbox);
    let Move { source, destination } = call.message().await?;
    let (from, to) = (paths::of(sandbox, &source, &user), paths::of(sandbox, &destination, &user));
    match e2b.control().stat(&sandbox.id, from.as_bytes(), false).await {
        Ok(_) => {}
        Err(error) if error.code == "file_not_found" => {
            return Err(RpcError::new(Code::NotFound, format!("source path '{from}' does not exist")));
        }
        Err(error) => return Err(error.into()),
    }
    let above = paths::parent(&to);
    if let Err(error) = e2b.control().stat(&sandbox.id, above.as_bytes(), true).await
        && error.code == "file_not_found"
    {
        make_dirs(e2b, sandbox, above, &user).await?;
    }
    let operation = FileOperation::Move { from, to: to.clone() };
    e2b.control().change_file(&sandbox.id, operation, &who()).await?;
    Ok(json!({ "entry": entry::entry(e2b, &sandbox.id, &to).await? }))
}

async fn list(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let user = call.user(sandbox);
    let List { path, depth } = call.message().await?;
    let path = paths::of(sandbox, &path, &user);
    let depth = depth.clamp(1, DEPTH_MAX);
    let mut found = match e2b.control().list_files(&sandbox.id, path.as_bytes(), depth).await {
        Ok(found) => found,
        Err(error) if error.code == "file_not_found" => return Err(missing(&path)),
        Err(error) if error.code == "not_a_directory" => {
            return Err(RpcError::bad(format!("path is not a directory: {path}")));
        }
        Err(error) => return Err(error.into()),
    };
    found.sort_by(|one, two| one.path.split('/').cmp(two.path.split('/')));
    let mut entries = Vec::with_capacity(found.len());
    for stat in &found {
        let full = paths::clean(&format!("{path}/{}", stat.path));
        entries.push(entry::of(e2b, &sandbox.id, &full, stat).await);
    }
    entry::with_metadata(e2b, &sandbox.id, &mut entries).await;
    Ok(json!({ "entries": entries }))
}

async fn remove(e2b: &E2b, sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let user = call.user(sandbox);
    let At { path } = call.message().await?;
    let path = paths::of(sandbox, &path, &user);
    let operation = FileOperation::Remove { path, recursive: true };
    match e2b.control().change_file(&sandbox.id, operation, &who()).await {
        Ok(()) => Ok(json!({})),
        // What is not there is as wanted.
        Err(error) if matches!(error.code, "file_not_found" | "not_a_directory") => Ok(json!({})),
        Err(error) => Err(error.into()),
    }
}

/// Begins to watch a directory.
async fn watch(e2b: &E2b, sandbox: &Sandbox, path: &str, recursive: bool) -> Result<Watcher, RpcError> {
    match e2b.control().stat(&sandbox.id, path.as_bytes(), true).await {
        Ok(stat) if stat.kind == "directory" => {}
        Ok(_) => return Err(RpcError::bad(format!("path {path} not a directory"))),
        Err(error) if error.code == "file_not_found" => {
            return Err(RpcError::new(Code::NotFound, format!("path {path} not found")));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(e2b.control().watch_plain(&sandbox.id, path.as_bytes(), recursive).await?)
}

/// What a change is in envd's words. A move is the end of one name and the beginning of another.
fn kinds(change: &ChangeView) -> Vec<(&'static str, &str)> {
    match (change.kind.as_str(), change.from.as_deref()) {
        ("created", _) => vec![("EVENT_TYPE_CREATE", &change.path)],
        ("written", _) => vec![("EVENT_TYPE_WRITE", &change.path)],
        ("removed", _) => vec![("EVENT_TYPE_REMOVE", &change.path)],
        ("attributes", _) => vec![("EVENT_TYPE_CHMOD", &change.path)],
        ("moved", Some(from)) if change.path.is_empty() => vec![("EVENT_TYPE_RENAME", from)],
        ("moved", Some(from)) => vec![("EVENT_TYPE_RENAME", from), ("EVENT_TYPE_CREATE", &change.path)],
        _ => Vec::new(),
    }
}

async fn events(e2b: &E2b, sandbox: &str, root: &str, change: &ChangeView, include_entry: bool) -> Vec<Value> {
    let mut all = Vec::new();
    for (kind, name) in kinds(change) {
        // What happens to the root itself has no name below it.
        if name.is_empty() && kind != "EVENT_TYPE_REMOVE" {
            continue;
        }
        let mut event = json!({ "name": name, "type": kind });
        let stays = matches!(kind, "EVENT_TYPE_CREATE" | "EVENT_TYPE_WRITE" | "EVENT_TYPE_CHMOD");
        if include_entry
            && stays
            && let Ok(found) = entry::entry(e2b, sandbox, &paths::clean(&format!("{root}/{name}"))).await
        {
            event["entry"] = found;
        }
        all.push(event);
    }
    all
}

struct Watching {
    e2b: E2b,
    sandbox: Arc<Sandbox>,
    watcher: Watcher,
    path: String,
    include_entry: bool,
    keepalive: Duration,
    voice: Voice,
    ready: VecDeque<Result<Bytes, axum::BoxError>>,
    over: bool,
}

async fn watch_dir(e2b: &E2b, sandbox: &Arc<Sandbox>, call: Call) -> Result<Response, RpcError> {
    let (user, keepalive, voice) = (call.user(sandbox), call.keepalive(), call.voice.clone());
    let Watch { path, recursive, include_entry } = call.message().await?;
    let path = paths::of(sandbox, &path, &user);
    let watcher = watch(e2b, sandbox, &path, recursive).await?;
    let ready = VecDeque::from([voice.envelope(json!({ "start": {} }))]);
    let (e2b, own, of) = (e2b.clone(), Arc::clone(sandbox), voice.clone());
    let watching =
        Watching { e2b, sandbox: own, watcher, path, include_entry, keepalive, voice: of, ready, over: false };
    let stream = stream::unfold(watching, |mut watching| async move {
        loop {
            if let Some(next) = watching.ready.pop_front() {
                return Some((next, watching));
            }
            if watching.over {
                return None;
            }
            match tokio::time::timeout(watching.keepalive, watching.watcher.next()).await {
                Err(_) => watching.ready.push_back(watching.voice.envelope(json!({ "keepalive": {} }))),
                Ok(Ok(change)) => {
                    let Watching { e2b, sandbox, path, include_entry, voice, ready, .. } = &mut watching;
                    let events = events(e2b, &sandbox.id, path, &change, *include_entry).await;
                    let events = events.into_iter().map(|event| voice.envelope(json!({ "filesystem": event })));
                    ready.extend(events);
                }
                Ok(Err(_)) => {
                    // What was watched is gone.
                    watching.ready.push_back(Ok(end(None)));
                    watching.over = true;
                }
            }
        }
    });
    Ok(voice.streamed(cut(Arc::clone(sandbox), stream)))
}

async fn create_watcher(e2b: &E2b, sandbox: &Arc<Sandbox>, call: Call) -> Result<Value, RpcError> {
    let user = call.user(sandbox);
    let Watch { path, recursive, include_entry } = call.message().await?;
    let path = paths::of(sandbox, &path, &user);
    let mut watcher = watch(e2b, sandbox, &path, recursive).await?;
    let ready = Arc::new(Mutex::new(VecDeque::new()));
    let (e2b, id, into) = (e2b.clone(), sandbox.id.clone(), Arc::clone(&ready));
    let task = tokio::spawn(async move {
        while let Ok(change) = watcher.next().await {
            let events = events(&e2b, &id, &path, &change, include_entry).await;
            let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
            into.extend(events);
            while into.len() > EVENTS_MAX {
                into.pop_front();
            }
        }
    });
    let polled = Polled { events: ready, _task: AbortOnDropHandle::new(task) };
    let id = secret::id('w');
    let mut all = sandbox.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= WATCHERS_MAX {
        return Err(RpcError::new(Code::ResourceExhausted, format!("more than {WATCHERS_MAX} watchers of a sandbox")));
    }
    all.insert(id.clone(), polled);
    Ok(json!({ "watcherId": id }))
}

async fn watcher_events(sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let WatcherId { watcher_id } = call.message().await?;
    let all = sandbox.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
    let polled = all.get(&watcher_id).ok_or_else(|| no_watcher(&watcher_id))?;
    let events: Vec<Value> = polled.events.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
    Ok(json!({ "events": events }))
}

async fn remove_watcher(sandbox: &Sandbox, call: Call) -> Result<Value, RpcError> {
    let WatcherId { watcher_id } = call.message().await?;
    let mut all = sandbox.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
    all.remove(&watcher_id).ok_or_else(|| no_watcher(&watcher_id))?;
    Ok(json!({}))
}

fn no_watcher(id: &str) -> RpcError {
    RpcError::new(Code::NotFound, format!("watcher with id {id} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_two_events() {
        let change = |kind: &str, path: &str, from: Option<&str>| ChangeView {
            kind: kind.to_owned(),
            path: path.to_owned(),
            from: from.map(str::to_owned),
        };
        assert_eq!(kinds(&change("created", "a", None)), [("EVENT_TYPE_CREATE", "a")]);
        let moved = [("EVENT_TYPE_RENAME", "a"), ("EVENT_TYPE_CREATE", "b")];
        assert_eq!(kinds(&change("moved", "b", Some("a"))), moved);
        assert_eq!(kinds(&change("moved", "", Some("a"))), [("EVENT_TYPE_RENAME", "a")]);
        assert!(kinds(&change("overflow", "", None)).is_empty());
    }
}
