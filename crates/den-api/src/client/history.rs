//! States of computers: kept, forked, gone back to, looked into, compared, merged.

use http::{HeaderValue, Method, Request, header};
use serde::de::DeserializeOwned;

use super::{Body, ByteStream, Client, ClientError, Events, Order, Target, calls::NOTHING};
use crate::{
    BlameView, DiffView, ExploreEvent, ExploreRequest, ForkRequest, ForkView, GrepList, MergeRequest, MergeView, Page,
    ProgressView, RestoreRequest, RestoreView, SnapRequest, SnapshotList, SnapshotView, StateEntry, StateList,
    StepChanges, StepView,
};

/// Which steps of a computer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepFilter {
    /// From there on: [`Page::next`].
    pub after: Option<String>,
    /// At most this many: 1000 at most, 100 without.
    pub limit: Option<u32>,
    /// The newest first.
    pub newest_first: bool,
    /// Only those with this text in their command.
    pub grep: Option<String>,
    /// Only those that changed this path or something below it.
    pub path: Option<String>,
}

/// An exploration that goes on. Dropping it ends it, and nothing of it stays.
pub struct Exploring(Events);

impl Exploring {
    /// What happens next; `None` after the end. Events that are not known are passed over.
    pub async fn next(&mut self) -> Result<Option<ExploreEvent>, ClientError> {
        while let Some((name, data)) = self.0.next().await? {
            let known = ["forked", "ran", "tried", "merging", "end"].contains(&name.as_str());
            if known {
                let event = [format!("{{\"{name}\":").as_bytes(), &data, b"}"].concat();
                return serde_json::from_slice(&event).map(Some).map_err(|error| self.0.malformed(error));
            }
        }
        Ok(None)
    }
}

/// Asks for events.
fn as_events(mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    request
}

impl StepFilter {
    /// The order, as the other lists take it.
    pub fn order(&self) -> Order {
        if self.newest_first { Order::Descending } else { Order::Ascending }
    }
}

/// What to look for in the files of a state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateGrep {
    /// A regular expression, or with `fixed` a text.
    pub pattern: String,
    /// Capitals and small letters are the same.
    pub ignore_case: bool,
    /// The pattern is a text.
    pub fixed: bool,
    /// At most this many lines.
    pub limit: Option<u32>,
}

impl Client {
    /// Keeps the state of a computer as it is now.
    pub async fn snap(&self, name: &str, snap: &SnapRequest) -> Result<SnapshotView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/snapshots").text, Some(snap)).await
    }

    /// The states of a computer that are kept, the oldest first.
    pub async fn snapshots(&self, name: &str) -> Result<Vec<SnapshotView>, ClientError> {
        let target = Self::computer_target(name, "/snapshots");
        self.json::<SnapshotList>(Method::GET, &target.text, NOTHING).await.map(|list| list.items)
    }

    /// Forgets a state.
    pub async fn drop_snapshot(&self, name: &str, state: &str) -> Result<(), ClientError> {
        let target = Target::new(&Self::computer_target(name, "/snapshots/").text, state, "");
        self.nothing(Method::DELETE, &target.text, NOTHING).await
    }

    /// Makes computers that begin as a state of this one.
    pub async fn fork(&self, name: &str, fork: &ForkRequest) -> Result<ForkView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/fork").text, Some(fork)).await
    }

    /// Puts a computer's disk back to a state.
    pub async fn restore(&self, name: &str, restore: &RestoreRequest) -> Result<RestoreView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/restore").text, Some(restore)).await
    }

    /// The bytes of a file in a state.
    pub async fn state_file(&self, name: &str, state: &str, path: impl AsRef<[u8]>) -> Result<ByteStream, ClientError> {
        let target = Self::state_target(name, state, "/file").path(path.as_ref());
        Ok(ByteStream::new(self.send(self.json_request(Method::GET, &target.text, NOTHING)).await?))
    }

    /// What a directory of a state holds, `depth` levels deep (1 without), at most `limit` entries.
    pub async fn state_list(
        &self,
        name: &str,
        state: &str,
        path: impl AsRef<[u8]>,
        depth: Option<u32>,
        limit: Option<u32>,
    ) -> Result<StateList, ClientError> {
        let target = Self::state_target(name, state, "/list")
            .path(path.as_ref())
            .ask_some("depth", depth)
            .ask_some("limit", limit);
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// What a path of a state is; a link itself, not where it points.
    pub async fn state_stat(&self, name: &str, state: &str, path: impl AsRef<[u8]>) -> Result<StateEntry, ClientError> {
        let target = Self::state_target(name, state, "/stat").path(path.as_ref());
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// Lines of files of a state that match.
    pub async fn state_grep(
        &self,
        name: &str,
        state: &str,
        path: impl AsRef<[u8]>,
        grep: &StateGrep,
    ) -> Result<GrepList, ClientError> {
        let mut target = Self::state_target(name, state, "/grep")
            .path(path.as_ref())
            .ask("pattern", &grep.pattern)
            .ask_some("limit", grep.limit);
        if grep.ignore_case {
            target = target.ask("ignore_case", "true");
        }
        if grep.fixed {
            target = target.ask("fixed", "true");
        }
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// Packs a path of a state into a tar stream. Names in it begin with the path's last component.
    pub async fn state_tar(&self, name: &str, state: &str, path: impl AsRef<[u8]>) -> Result<ByteStream, ClientError> {
        let target = Self::state_target(name, state, "/tar").path(path.as_ref());
        Ok(ByteStream::new(self.send(self.json_request(Method::GET, &target.text, NOTHING)).await?))
    }

    /// How two states differ: `a` and `b` are `NAME` or `NAME@STATE`. Without `b`: `NAME@STATE`
    /// against the same computer now, and a fork's `NAME` against the state it was made from.
    pub async fn diff(
        &self,
        a: &str,
        b: Option<&str>,
        paths: &[String],
        text: bool,
        limit: Option<u32>,
    ) -> Result<DiffView, ClientError> {
        self.json(Method::GET, &Self::diff_target(a, b, paths, text, limit).text, NOTHING).await
    }

    fn diff_target(a: &str, b: Option<&str>, paths: &[String], text: bool, limit: Option<u32>) -> Target {
        let mut target = Target::plain("/v1/diff").ask("a", a).ask_some("b", b);
        for path in paths {
            target = target.ask("path", path);
        }
        if text {
            target = target.ask("text", "true");
        }
        target.ask_some("limit", limit)
    }

    /// Brings the changes of a fork into a computer, all or nothing. Conflicts come in the answer.
    pub async fn merge(&self, name: &str, merge: &MergeRequest) -> Result<MergeView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/merge").text, Some(merge)).await
    }

    /// As [`Client::diff`], telling how far it is.
    pub async fn diff_watched(
        &self,
        a: &str,
        b: Option<&str>,
        paths: &[String],
        text: bool,
        limit: Option<u32>,
        tell: impl FnMut(ProgressView),
    ) -> Result<DiffView, ClientError> {
        let target = Self::diff_target(a, b, paths, text, limit);
        self.watched(self.json_request(Method::GET, &target.text, NOTHING), tell).await
    }

    /// As [`Client::merge`], telling how far it is.
    pub async fn merge_watched(
        &self,
        name: &str,
        merge: &MergeRequest,
        tell: impl FnMut(ProgressView),
    ) -> Result<MergeView, ClientError> {
        let target = Self::computer_target(name, "/merge");
        self.watched(self.json_request(Method::POST, &target.text, Some(merge)), tell).await
    }

    async fn watched<T: DeserializeOwned>(
        &self,
        request: Request<Body>,
        mut tell: impl FnMut(ProgressView),
    ) -> Result<T, ClientError> {
        let events = Events::new(self.send(as_events(request)).await?);
        events
            .end(|name, data| {
                // What a newer daemon tells besides is not for us.
                if name == "progress"
                    && let Ok(progress) = serde_json::from_slice(data)
                {
                    tell(progress);
                }
            })
            .await
    }

    /// Tries a command in forks of a computer. Dropping what this returns ends it.
    pub async fn explore(&self, name: &str, explore: &ExploreRequest) -> Result<Exploring, ClientError> {
        let target = Self::computer_target(name, "/explore");
        let request = self.json_request(Method::POST, &target.text, Some(explore));
        Ok(Exploring(Events::new(self.send(as_events(request)).await?)))
    }

    /// What a step changed.
    pub async fn step_changes(&self, name: &str, step: u64) -> Result<StepChanges, ClientError> {
        self.json(Method::GET, &Self::computer_target(name, &format!("/steps/{step}/changes")).text, NOTHING).await
    }

    /// One page of the steps that a filter lets through.
    pub async fn steps_matching(&self, name: &str, filter: &StepFilter) -> Result<Page<StepView>, ClientError> {
        let target = Self::computer_target(name, "/steps")
            .ask_some("after", filter.after.as_ref())
            .ask_some("limit", filter.limit)
            .ask("order", if filter.newest_first { "desc" } else { "asc" })
            .ask_some("grep", filter.grep.as_ref())
            .ask_some("path", filter.path.as_ref());
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// The step that changed a path last; with `lines`, of each line of a text file.
    pub async fn blame(&self, name: &str, path: impl AsRef<[u8]>, lines: bool) -> Result<BlameView, ClientError> {
        let mut target = Self::computer_target(name, "/blame").path(path.as_ref());
        if lines {
            target = target.ask("lines", "true");
        }
        self.json(Method::GET, &target.text, NOTHING).await
    }

    fn state_target(name: &str, state: &str, rest: &str) -> Target {
        Target::new(&Self::computer_target(name, "/states/").text, state, rest)
    }
}
