//! Lists of sandboxes.
//!
//! A page's token names the last sandbox of the page before and the order, so that a list goes on where it was though
//! others came and went.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    listed,
    query::{decode, first, pairs},
};
use crate::{
    E2b,
    book::{Phase, Sandbox},
    error::ApiError,
    templates, time,
};

/// The most, and the usual number, of one page.
const PAGE_MAX: usize = 100;

/// What is asked for.
struct Wanted {
    metadata: Vec<(String, String)>,
    running: bool,
    paused: bool,
    ascending: bool,
    after: Option<i64>,
    template: Option<String>,
    limit: usize,
    token: Option<(i64, String)>,
}

impl Wanted {
    fn read(query: &[(String, String)]) -> Result<Self, ApiError> {
        let states = first(query, "state").unwrap_or("running,paused");
        let (mut running, mut paused) = (false, false);
        for state in query.iter().filter(|(key, _)| key == "state").flat_map(|(_, value)| value.split(',')) {
            match state {
                "running" => running = true,
                "paused" => paused = true,
                other => return Err(ApiError::bad(format!("state: `{other}` is neither running nor paused"))),
            }
        }
        if states == "running,paused" {
            (running, paused) = (true, true);
        }
        let ascending = match first(query, "order") {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(other) => return Err(ApiError::bad(format!("order: `{other}` is neither asc nor desc"))),
        };
        let after = first(query, "startedAfter").map(|text| {
            time::parse(text).ok_or_else(|| ApiError::bad(format!("startedAfter: `{text}` is no time of RFC 3339")))
        });
        let limit = match first(query, "limit") {
            None => PAGE_MAX,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=PAGE_MAX).contains(limit))
                .ok_or_else(|| ApiError::bad(format!("limit: `{text}` is not from 1 to {PAGE_MAX}")))?,
        };
        let token = first(query, "nextToken").filter(|text| !text.is_empty());
        let token = token.map(|text| read_token(text, ascending).ok_or_else(|| ApiError::bad("nextToken: not ours")));
        let template = first(query, "template").filter(|text| !text.is_empty());
        if template.is_some_and(|name| name.contains(':')) {
            return Err(ApiError::bad("template: an id or a name, without a tag"));
        }
        Ok(Self {
            metadata: first(query, "metadata").map(metadata).unwrap_or_default(),
            running,
            paused,
            ascending,
            after: after.transpose()?,
            template: template.map(str::to_owned),
            limit,
            token: token.transpose()?,
        })
    }

    fn has(&self, sandbox: &Sandbox) -> bool {
        let facts = sandbox.facts();
        let paused = facts.paused.is_some();
        (if paused { self.paused } else { self.running })
            && self.after.is_none_or(|after| facts.started_at >= after)
            && self.metadata.iter().all(|(key, value)| facts.metadata.get(key) == Some(value))
            && self.template.as_ref().is_none_or(|name| facts.template == *name || facts.alias.as_ref() == Some(name))
    }
}

/// A form whose keys and values were percent-encoded before they were put into it.
fn metadata(text: &str) -> Vec<(String, String)> {
    pairs(text).into_iter().map(|(key, value)| (decode(&key), decode(&value))).collect()
}

fn write_token(started_at: i64, id: &str, ascending: bool) -> String {
    let order = if ascending { "__asc" } else { "" };
    URL_SAFE_NO_PAD.encode(format!("{}__{id}{order}", time::text(started_at)))
}

fn read_token(text: &str, ascending: bool) -> Option<(i64, String)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?).ok()?;
    let (text, is_ascending) = text.strip_suffix("__asc").map_or((text.as_str(), false), |text| (text, true));
    let (started_at, id) = text.split_once("__")?;
    (is_ascending == ascending).then_some(())?;
    Some((time::parse(started_at)?, id.to_owned()))
}

/// `GET /v2/sandboxes`.
pub(super) async fn list(State(e2b): State<E2b>, uri: Uri) -> Result<Response, ApiError> {
    let mut wanted = Wanted::read(&pairs(uri.query().unwrap_or("")))?;
    if let Some(name) = &wanted.template
        && e2b.book().all().iter().all(|sandbox| sandbox.facts().template != *name)
    {
        // By name; one that is unknown has no sandboxes.
        match e2b.template(name).await {
            Ok(template) => wanted.template = Some(template.id),
            Err(error) if error.status == 404 => wanted.template = Some(templates::id_of(name)),
            Err(error) => return Err(error),
        }
    }
    let mut found: Vec<(i64, Arc<Sandbox>)> = e2b
        .book()
        .all()
        .into_iter()
        .filter(|sandbox| wanted.has(sandbox))
        .map(|sandbox| {
            let started_at = sandbox.facts().started_at;
            (started_at, sandbox)
        })
        .collect();
    let running = found.iter().filter(|(_, sandbox)| sandbox.phase() == Phase::Running).count();
    found.sort_by(|one, two| {
        let by_time = if wanted.ascending { one.0.cmp(&two.0) } else { two.0.cmp(&one.0) };
        by_time.then_with(|| one.1.id.cmp(&two.1.id))
    });
    if let Some((at, id)) = &wanted.token {
        found.retain(|(started_at, sandbox)| {
            let later = if wanted.ascending { started_at > at } else { started_at < at };
            later || (started_at == at && sandbox.id > *id)
        });
    }
    let more = found.len() > wanted.limit;
    found.truncate(wanted.limit);
    let mut headers = HeaderMap::new();
    if more && let Some((at, last)) = found.last() {
        let token = write_token(*at, &last.id, wanted.ascending);
        headers.insert("x-next-token", HeaderValue::from_str(&token).map_err(|_| ApiError::new(500, "a token"))?);
    }
    if wanted.running {
        headers.insert("x-total-running", HeaderValue::from(running));
    }
    let items: Vec<_> = found.iter().map(|(_, sandbox)| listed(sandbox)).collect();
    Ok((headers, Json(items)).into_response())
}

/// `GET /sandboxes`: those that run.
pub(super) async fn running(State(e2b): State<E2b>, uri: Uri) -> Result<Response, ApiError> {
    let query = pairs(uri.query().unwrap_or(""));
    let wanted = first(&query, "metadata").map(metadata).unwrap_or_default();
    let all = e2b.book().all().into_iter().filter(|sandbox| {
        let facts = sandbox.facts();
        facts.paused.is_none() && wanted.iter().all(|(key, value)| facts.metadata.get(key) == Some(value))
    });
    Ok(Json(all.map(|sandbox| listed(&sandbox)).collect::<Vec<_>>()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_decoded_three_times() {
        // As the SDK for JavaScript sends `{a: "b c"}`.
        let query = pairs("metadata=a%3Db%252520c&state=running,paused&limit=5");
        let Ok(wanted) = Wanted::read(&query) else { panic!("it is sound") };
        assert_eq!(wanted.metadata, [("a".to_owned(), "b c".to_owned())]);
        assert!(wanted.running && wanted.paused && wanted.limit == 5);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for query in ["limit=0", "limit=101", "order=x", "state=x", "nextToken=x", "template=a:b", "startedAfter=x"] {
            assert_eq!(Wanted::read(&pairs(query)).err().map(|error| error.status), Some(400), "{query}");
        }
        let token = write_token(5, "iabc", true);
        assert_eq!(read_token(&token, true), Some((5, "iabc".to_owned())));
        assert_eq!(read_token(&token, false), None, "a token is of one order");
    }
}
