//! What happens, and what all computers use.

use http::{HeaderValue, Method, header};

use super::{Client, ClientError, Events, Target, calls::NOTHING};
use crate::{EventPage, EventView, UsageList};

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only beyond this number: [`EventPage::next`].
    pub after: Option<u64>,
    /// At most this many: 1000 at most, 100 without.
    pub limit: Option<u32>,
    /// The latest so many, in place of `after` and `limit`.
    pub last: Option<u32>,
    /// Only those of this computer, which may be gone.
    pub computer: Option<String>,
    /// Only these kinds.
    pub kinds: Vec<String>,
}

/// What a stream of events tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something happened.
    Event(Box<EventView>),
    /// Some events before the next one are gone.
    Lost,
}

/// Events as they happen.
pub struct EventStream(Events);

impl EventStream {
    /// The next one; `None` once the daemon ends the stream.
    pub async fn next(&mut self) -> Result<Option<Told>, ClientError> {
        while let Some((name, data)) = self.0.next().await? {
            match name.as_str() {
                "event" => {
                    let event = serde_json::from_slice(&data).map_err(|error| self.0.malformed(error))?;
                    return Ok(Some(Told::Event(event)));
                }
                "lost" => return Ok(Some(Told::Lost)),
                // What a newer daemon tells besides is not for us.
                _ => {}
            }
        }
        Ok(None)
    }
}

impl EventFilter {
    fn target(&self) -> Target {
        let kinds = (!self.kinds.is_empty()).then(|| self.kinds.join(","));
        Target { text: "/v1/events".to_owned(), asked: false }
            .ask_some("after", self.after)
            .ask_some("limit", self.limit)
            .ask_some("last", self.last)
            .ask_some("computer", self.computer.as_ref())
            .ask_some("kind", kinds)
    }
}

impl Client {
    /// Some events, the oldest first.
    pub async fn events(&self, filter: &EventFilter) -> Result<EventPage, ClientError> {
        self.json(Method::GET, &filter.target().text, NOTHING).await
    }

    /// Events as they happen, after those that there are.
    pub async fn follow_events(&self, filter: &EventFilter) -> Result<EventStream, ClientError> {
        let mut request = self.json_request(Method::GET, &filter.target().text, NOTHING);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        Ok(EventStream(Events::new(self.send(request).await?)))
    }

    /// What all computers use.
    pub async fn usage(&self) -> Result<UsageList, ClientError> {
        self.json(Method::GET, "/v1/usage", NOTHING).await
    }
}
