//! Computers: create, list, look, start, stop, remove.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use den_api::{ComputerView, CreateComputer, Page, StopComputer};
use den_control::{ListComputers, Removal};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query, bad},
};

/// The request's header that makes a create repeatable.
const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// Makes a computer and waits until it runs.
#[utoipa::path(
    post,
    path = "/v1/computers",
    tag = "computers",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "A repeated request with the same key gives the computer that the first one made")),
    request_body = CreateComputer,
    responses((status = 201, description = "It runs", body = ComputerView))
)]
pub(crate) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    Body(create): Body<CreateComputer>,
) -> Result<(StatusCode, Json<ComputerView>), ApiError> {
    let key = match headers.get(IDEMPOTENCY_KEY_HEADER) {
        None => None,
        Some(value) => Some(
            value
                .to_str()
                .map_err(|_| ApiError::bad_request("the header `Idempotency-Key` is no printable ASCII"))?
                .to_owned(),
        ),
    };
    Ok((StatusCode::CREATED, Json(app.control.create(create, key, &who()).await?)))
}

/// Which computers to list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query; `label` may repeat, which a struct cannot take")]
pub(crate) struct ListQuery {
    /// The `next` of the page before.
    after: Option<String>,
    /// Entries at most: 1 to 1000, 100 without.
    limit: Option<usize>,
    /// Only those in this state.
    #[param(example = "running")]
    state: Option<String>,
    /// Only those with this label, `KEY=VALUE`. May be given several times: all must be there.
    label: Option<Vec<String>>,
}

/// Lists computers, the oldest first.
#[utoipa::path(
    get,
    path = "/v1/computers",
    tag = "computers",
    params(ListQuery),
    responses((status = 200, description = "A page", body = Page<ComputerView>))
)]
pub(crate) async fn list(
    State(app): State<App>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Json<Page<ComputerView>>, ApiError> {
    Ok(Json(app.control.list(list_request(query)?).await?))
}

fn list_request(query: Vec<(String, String)>) -> Result<ListComputers, ApiError> {
    let mut list = ListComputers::default();
    for (name, value) in query {
        match name.as_str() {
            "after" => list.after = Some(value),
            "limit" => list.limit = Some(value.parse().map_err(|error| bad("limit", &value, error))?),
            "state" => {
                let state = den_model::State::parse(&value).ok_or_else(|| {
                    let states = den_model::State::ALL.map(den_model::State::as_str).join(", ");
                    bad("state", &value, format!("wanted one of {states}"))
                })?;
                list.state = Some(state);
            }
            "label" => {
                let (key, value) = value.split_once('=').ok_or_else(|| bad("label", &value, "wanted `KEY=VALUE`"))?;
                list.labels.push((key.to_owned(), value.to_owned()));
            }
            _ => {
                return Err(ApiError::bad_request(format!("`{name}` is no parameter of this list"))
                    .hint("`after`, `limit`, `state` and `label` are"));
            }
        }
    }
    Ok(list)
}

/// Shows a computer, with what it uses while it runs.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), GetQuery),
    responses((status = 200, description = "The computer", body = ComputerView))
)]
pub(crate) async fn get(
    State(app): State<App>,
    Path(c): Path<String>,
    Query(query): Query<GetQuery>,
) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.get(&c, query.memory).await?))
}

/// How much is wanted of a computer.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct GetQuery {
    /// `true`: also what can be done with its memory, for which all that runs inside is looked at.
    #[serde(default)]
    memory: bool,
}

/// Whether a removal is for good.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveQuery {
    /// `true`: for good, also out of the trash.
    #[serde(default)]
    now: bool,
}

/// Removes a computer, in whatever state it is. It lies in the trash for a while, where the house has one.
#[utoipa::path(
    delete,
    path = "/v1/computers/{c}",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), RemoveQuery),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove(
    State(app): State<App>,
    Path(c): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    let removal = if query.now { Removal::ForGood } else { Removal::IntoTrash };
    app.control.remove(&c, removal, &who()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Boots a stopped or failed computer on the disk it had.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/start",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "It runs", body = ComputerView))
)]
pub(crate) async fn start(State(app): State<App>, Path(c): Path<String>) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.start(&c, &who()).await?))
}

/// Ends all processes of a computer; the disk stays.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/stop",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = StopComputer,
    responses((status = 200, description = "It has stopped", body = ComputerView))
)]
pub(crate) async fn stop(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(stop): Body<StopComputer>,
) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.stop(&c, stop.grace_ms.map(Duration::from_millis), &who()).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        text.split('&').map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn labels_repeat_and_keep_their_equals_signs() {
        let list = list_request(pairs("label=a=b&label=c=d=e&limit=7&state=stopped")).unwrap();
        assert_eq!(list.labels, [("a".into(), "b".into()), ("c".into(), "d=e".into())]);
        assert_eq!(list.limit, Some(7));
        assert_eq!(list.state, Some(den_model::State::Stopped));
    }

    #[test]
    fn what_a_list_does_not_know_is_refused() {
        for query in ["limit=x", "limit=-1", "state=sleeping", "label=a", "offset=3"] {
            assert!(list_request(pairs(query)).is_err(), "{query}");
        }
    }
}
