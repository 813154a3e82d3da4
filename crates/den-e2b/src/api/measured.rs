//! What sandboxes use, and what they did.

use std::sync::PoisonError;

use axum::{
    Json,
    extract::{Path, State},
    http::Uri,
};
use den_control::Order;
use serde_json::{Value, json};

use super::{
    find,
    query::{first, pairs},
};
use crate::{
    E2b,
    book::{Sample, Sandbox},
    error::ApiError,
    time::{self, SECOND},
};

/// The most log entries of one answer.
const ENTRIES_MAX: usize = 1000;

/// The most sandboxes that are asked for at once.
const MANY_MAX: usize = 100;

/// What a sandbox used between each two looks.
fn metrics(sandbox: &Sandbox) -> Vec<(i64, Value)> {
    let (cpus, memory, disk) = {
        let facts = sandbox.facts();
        (facts.cpus, facts.memory_mib << 20, facts.disk_mib << 20)
    };
    let samples = sandbox.samples.lock().unwrap_or_else(PoisonError::into_inner);
    let samples: Vec<Sample> = samples.iter().copied().collect();
    let mut before: Option<Sample> = None;
    let mut all = Vec::with_capacity(samples.len());
    for sample in samples {
        let percent = before.map_or(0.0, |before| {
            let time = (sample.at - before.at).max(1) as f64;
            sample.cpu_us.saturating_sub(before.cpu_us) as f64 / time * 100.0
        });
        before = Some(sample);
        let view = json!({
            "timestamp": time::text(sample.at),
            "timestampUnix": sample.at / SECOND,
            "cpuCount": cpus,
            "cpuUsedPct": (percent * 100.0).round() / 100.0,
            "memUsed": sample.memory,
            "memTotal": memory,
            "memCache": 0,
            "diskUsed": sample.disk,
            "diskTotal": disk,
        });
        all.push((sample.at, view));
    }
    all
}

fn number(query: &[(String, String)], key: &str) -> Result<Option<i64>, ApiError> {
    let Some(text) = first(query, key).filter(|text| !text.is_empty()) else { return Ok(None) };
    let number = text.parse().ok().filter(|number: &i64| (0..=i64::MAX / SECOND).contains(number));
    number.map(Some).ok_or_else(|| ApiError::bad(format!("{key}: `{text}` is no number that a time can be")))
}

/// `GET /sandboxes/{id}/metrics`.
pub(super) async fn of_one(
    State(e2b): State<E2b>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<Vec<Value>>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let (start, end) = (number(&query, "start")?, number(&query, "end")?);
    let sandbox = find(&e2b, &id)?;
    let within = |at: i64| {
        start.is_none_or(|start| at >= start.saturating_mul(SECOND))
            && end.is_none_or(|end| at < end.saturating_add(1).saturating_mul(SECOND))
    };
    Ok(Json(metrics(&sandbox).into_iter().filter(|(at, _)| within(*at)).map(|(_, view)| view).collect()))
}

/// `GET /sandboxes/metrics`.
pub(super) async fn of_many(State(e2b): State<E2b>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let ids: Vec<&str> = first(&query, "sandbox_ids").unwrap_or("").split(',').filter(|id| !id.is_empty()).collect();
    if ids.is_empty() || ids.len() > MANY_MAX {
        return Err(ApiError::bad(format!("sandbox_ids: 1 to {MANY_MAX} ids")));
    }
    let found = ids.iter().filter_map(|id| e2b.book().find(id));
    let last = found.filter_map(|sandbox| Some((sandbox.id.clone(), metrics(&sandbox).pop()?.1)));
    Ok(Json(json!({ "sandboxes": last.collect::<serde_json::Map<_, _>>() })))
}

/// The steps of a sandbox as lines, the oldest first.
async fn entries(e2b: &E2b, sandbox: &Sandbox, limit: usize) -> Result<Vec<(i64, Value)>, ApiError> {
    let page = e2b.control().steps(&sandbox.id, None, Some(limit.clamp(1, ENTRIES_MAX)), Order::NewestFirst).await?;
    let mut all = Vec::with_capacity(page.items.len());
    for step in page.items.iter().rev() {
        let end = step.end.as_ref().map(|end| end.exit_code.to_string());
        let level = if end.as_deref().is_some_and(|code| code != "0") { "warn" } else { "info" };
        let words = step.argv.join(" ");
        let fields = json!({
            "step": step.number.to_string(),
            "kind": step.kind,
            "who": step.who,
            "exitCode": end,
        });
        let message = format!("step {}: {words}", step.number);
        let entry = json!({
            "timestamp": time::text(step.started_at),
            "message": message,
            "level": level,
            "fields": fields.as_object().map(|fields| {
                let texts = fields.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.into())));
                texts.collect::<serde_json::Map<String, Value>>()
            }),
        });
        all.push((step.started_at, entry));
    }
    Ok(all)
}

fn limit(query: &[(String, String)]) -> Result<usize, ApiError> {
    Ok(number(query, "limit")?.map_or(ENTRIES_MAX, |limit| usize::try_from(limit).unwrap_or(ENTRIES_MAX)))
}

/// `GET /sandboxes/{id}/logs`.
pub(super) async fn logs(State(e2b): State<E2b>, Path(id): Path<String>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let start = number(&query, "start")?.unwrap_or(0).saturating_mul(1000);
    let sandbox = find(&e2b, &id)?;
    let entries = entries(&e2b, &sandbox, limit(&query)?).await?;
    let entries: Vec<Value> = entries.into_iter().filter(|(at, _)| *at >= start).map(|(_, entry)| entry).collect();
    let lines: Vec<Value> = entries
        .iter()
        .map(|entry| json!({ "timestamp": entry["timestamp"], "line": line(entry).to_string() }))
        .collect();
    Ok(Json(json!({ "logs": lines, "logEntries": entries })))
}

/// An entry as older clients read it, who take a line for JSON.
fn line(entry: &Value) -> Value {
    let mut line = entry["fields"].clone();
    if !line.is_object() {
        line = json!({});
    }
    for (name, value) in [("level", &entry["level"]), ("message", &entry["message"]), ("logger", &json!("den"))] {
        line[name] = value.clone();
    }
    line
}

/// `GET /v2/sandboxes/{id}/logs`.
pub(super) async fn logs_v2(State(e2b): State<E2b>, Path(id): Path<String>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let backward = match first(&query, "direction") {
        None | Some("forward") => false,
        Some("backward") => true,
        Some(other) => return Err(ApiError::bad(format!("direction: `{other}` is neither forward nor backward"))),
    };
    let cursor = number(&query, "cursor")?.map(|millis| millis.saturating_mul(1000));
    let (limit, level, search) = (limit(&query)?, first(&query, "level"), first(&query, "search"));
    let sandbox = find(&e2b, &id)?;
    let mut entries = entries(&e2b, &sandbox, ENTRIES_MAX).await?;
    if backward {
        entries.reverse();
    }
    let fits = |at: i64, entry: &Value| {
        cursor.is_none_or(|cursor| if backward { at <= cursor } else { at >= cursor })
            && level.is_none_or(|level| entry["level"] == level)
            && search.is_none_or(|words| entry["message"].as_str().is_some_and(|message| message.contains(words)))
    };
    entries.retain(|(at, entry)| fits(*at, entry));
    entries.truncate(limit);
    Ok(Json(json!({ "logs": entries.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>() })))
}
