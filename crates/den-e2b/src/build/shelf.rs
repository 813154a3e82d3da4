//! All templates that are built, and their builds: in memory, as their facts are on the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use den_control::{Control, Error};
use den_sys::failpoint;
use tokio::sync::Semaphore;

use super::{
    AT_ONCE, BEGUN_MAX, BUILDS_KEPT, Build, Facts, Reason, Record, Status, TEMPLATES_MAX, UNBEGUN_KEPT_S,
    log::Level,
    upload::{self, Files},
};
use crate::{
    E2b,
    error::ApiError,
    life::CHANGE_WAIT,
    making::to_the_end,
    time::{SECOND, now},
};

/// The kinds of the facts.
const TEMPLATE: &str = "e2b.template";
const BUILD: &str = "e2b.build";

/// All of them.
pub(crate) struct Shelf {
    known: Mutex<Known>,
    /// Who changes what tags lead to, or what is there.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Builds that may go on.
    pub(super) going: Semaphore,
    pub(super) files: Files,
    pub(super) logs: PathBuf,
}

#[derive(Default)]
pub(super) struct Known {
    pub records: BTreeMap<String, Record>,
    pub builds: BTreeMap<String, Arc<Build>>,
}

impl Known {
    /// The builds of a template, the newest first.
    pub(super) fn of(&self, template: &str) -> Vec<Arc<Build>> {
        let mut all: Vec<_> =
            self.builds.values().filter(|build| build.state().facts.template == template).cloned().collect();
        all.sort_by_key(|build| std::cmp::Reverse(build.state().facts.created_at));
        all
    }

    /// The builds that a tag leads to.
    fn tagged(&self) -> BTreeSet<&str> {
        self.records.values().flat_map(|record| record.tags.values().map(|tagged| tagged.build.as_str())).collect()
    }
}

fn folder_error(error: io::Error) -> Error {
    Error::internal("the folder of E2B's builds").because(error)
}

impl Shelf {
    /// Takes up what an earlier daemon left: a build that went on then has come to nothing.
    pub(crate) async fn open(control: &Control, data: &Path, key: &str) -> Result<Self, Error> {
        let logs = upload::folder(data, "logs").map_err(folder_error)?;
        let files = upload::folder(data, "files").and_then(|folder| Files::open(folder, key)).map_err(folder_error)?;
        let mut known = Known::default();
        for (id, text) in control.facts(TEMPLATE).await? {
            match serde_json::from_str::<Record>(&text) {
                Ok(record) => drop(known.records.insert(id, record)),
                Err(error) => tracing::error!(template = id, %error, "a template's fact cannot be read"),
            }
        }
        for (id, text) in control.facts(BUILD).await? {
            match serde_json::from_str::<Facts>(&text) {
                Ok(facts) => drop(known.builds.insert(id.clone(), Build::new(id, facts))),
                Err(error) => tracing::error!(build = id, %error, "a build's fact cannot be read"),
            }
        }
        let Known { records, builds } = &mut known;
        for record in records.values_mut() {
            record.tags.retain(|_, tagged| builds.get(&tagged.build).is_some_and(|it| it.status() == Status::Ready));
        }
        let interrupted: Vec<_> = builds.values().filter(|build| build.goes_on()).cloned().collect();
        let shelf = Self {
            known: Mutex::new(known),
            turn: tokio::sync::Mutex::default(),
            going: Semaphore::new(AT_ONCE),
            files,
            logs,
        };
        shelf.finish_commits(control).await?;
        for build in interrupted {
            tracing::info!(build = build.id, "a build was broken off by the end of the daemon");
            let why = "the daemon was started again during the build; build it again";
            shelf.failed(control, &build, Reason::new("base", why)).await?;
        }
        Ok(shelf)
    }

    /// Has the tags lead to a build that was ready when the daemon ended, before they did.
    async fn finish_commits(&self, control: &Control) -> Result<(), Error> {
        let ready: Vec<(String, Facts)> = {
            let known = self.known();
            known.builds.values().map(|build| (build.id.clone(), build.facts())).collect()
        };
        for (id, facts) in ready.into_iter().filter(|(_, facts)| facts.made.is_some()) {
            let record = self.known().records.get(&facts.template).cloned();
            let (Some(mut record), Some(at)) = (record, facts.finished_at) else { continue };
            // Whatever changes tags, changes the time.
            if record.updated_at < at {
                record.lead_to(&id, &facts.tags, at);
                self.keep_record(control, record).await?;
            }
        }
        Ok(())
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to change what tags lead to.
    pub(super) async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
        tokio::time::timeout(CHANGE_WAIT, self.turn.lock())
            .await
            .map_err(|_| ApiError::new(409, "other templates are still being changed"))
    }

    /// The computers that builds stand on.
    pub(crate) fn holders(&self) -> Vec<String> {
        let known = self.known();
        known.builds.values().filter_map(|build| Some(build.facts().made?.computers())).flatten().collect()
    }

    /// Keeps what has changed of a build.
    pub(super) async fn keep_build(
        &self,
        control: &Control,
        build: &Build,
        change: impl FnOnce(&mut Facts),
    ) -> Result<(), Error> {
        let mut facts = build.facts();
        change(&mut facts);
        let text = serde_json::to_string(&facts).map_err(|error| Error::internal("a build").because(error))?;
        control.keep_fact(BUILD, &build.id, text).await?;
        let mut state = build.state();
        if facts.finished_at.is_some() {
            state.said = None;
        }
        state.facts = facts;
        Ok(())
    }

    /// Keeps what has changed of a template.
    pub(super) async fn keep_record(&self, control: &Control, record: Record) -> Result<(), Error> {
        let text = serde_json::to_string(&record).map_err(|error| Error::internal("a template").because(error))?;
        control.keep_fact(TEMPLATE, &record.id, text).await?;
        self.known().records.insert(record.id.clone(), record);
        Ok(())
    }

    /// Keeps a build that is ready, then what its tags lead to; it shows as ready when both are there.
    pub(super) async fn commit(
        &self,
        control: &Control,
        build: &Build,
        facts: Facts,
        record: Record,
    ) -> Result<(), Error> {
        let text = serde_json::to_string(&facts).map_err(|error| Error::internal("a build").because(error))?;
        control.keep_fact(BUILD, &build.id, text).await?;
        failpoint::hit("e2b.build.kept");
        self.keep_record(control, record).await?;
        let mut state = build.state();
        (state.facts, state.said) = (facts, None);
        Ok(())
    }

    /// A build has come to nothing.
    pub(super) async fn failed(&self, control: &Control, build: &Build, reason: Reason) -> Result<(), Error> {
        build.say(Level::Error, Some(&reason.step), &reason.message);
        build.write_log(&self.logs).await;
        let failed = |facts: &mut Facts| {
            facts.status = Status::Error;
            facts.reason = Some(reason);
            facts.finished_at = Some(now());
        };
        self.keep_build(control, build, failed).await
    }

    async fn forget_build(&self, control: &Control, id: &str) -> Result<(), Error> {
        control.forget_fact(BUILD, id).await?;
        self.known().builds.remove(id);
        if let Err(error) = tokio::fs::remove_file(self.logs.join(id)).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(build = id, %error, "the log of a build is left");
        }
        Ok(())
    }

    /// A new build of the template of this name, which is made if it is not there.
    ///
    /// Errors: 429.
    pub(super) async fn register(
        &self,
        control: &Control,
        name: &str,
        facts: Facts,
    ) -> Result<(Record, String), ApiError> {
        let _turn = self.turn().await?;
        let (there, count) = {
            let known = self.known();
            (known.records.values().find(|record| record.name == name).cloned(), known.records.len())
        };
        let record = match there {
            Some(record) => record,
            None if count >= TEMPLATES_MAX => {
                return Err(ApiError::new(429, format!("there are {TEMPLATES_MAX} templates; delete some")));
            }
            None => {
                let (id, at) = (crate::secret::id('t'), now());
                let name = name.to_owned();
                Record { id, name, public: false, created_at: at, updated_at: at, tags: BTreeMap::new() }
            }
        };
        self.keep_record(control, record.clone()).await?;
        let id = uuid::Uuid::new_v4().to_string();
        let build = Build::new(id.clone(), Facts { template: record.id.clone(), ..facts });
        self.keep_build(control, &build, |_| {}).await?;
        self.known().builds.insert(id.clone(), build);
        Ok((record, id))
    }

    /// A build of a template.
    pub(super) fn build(&self, template: &str, id: &str) -> Result<Arc<Build>, ApiError> {
        let known = self.known();
        let found = known.builds.get(id).filter(|build| build.state().facts.template == template);
        found.cloned().ok_or_else(|| ApiError::new(404, "there is no such build of this template"))
    }

    /// Has a build that waits be the one that goes on.
    ///
    /// Errors: 400 for one that does not wait; 429.
    pub(super) async fn begin(&self, control: &Control, build: &Build) -> Result<(), ApiError> {
        let _turn = self.turn().await?;
        if build.facts().begun {
            return Err(ApiError::bad(format!("build {} is not waiting to be started", build.id)));
        }
        if self.known().builds.values().filter(|build| build.goes_on()).count() >= BEGUN_MAX {
            return Err(ApiError::new(429, format!("{BEGUN_MAX} builds are waiting or going on")));
        }
        Ok(self.keep_build(control, build, |facts| facts.begun = true).await?)
    }
}

impl E2b {
    /// Lets go what nobody needs: computers and files of builds that no tag leads to, and the oldest builds.
    pub(crate) async fn clear_builds(&self) {
        let e2b = self.clone();
        let cleared = to_the_end(async move {
            let _turn = e2b.shelf().turn().await?;
            e2b.clear_under_turn().await
        });
        if let Err(error) = cleared.await {
            tracing::warn!(error = error.message, "builds that nobody needs are left until the next one");
        }
    }

    /// As [`E2b::clear_builds`], for who has the turn already.
    pub(super) async fn clear_under_turn(&self) -> Result<(), ApiError> {
        let (shelf, control) = (self.shelf(), self.control());
        let (loose, mut old, needed) = {
            let known = shelf.known();
            let tagged = known.tagged();
            let is_tagged = |build: &Build| tagged.contains(build.id.as_str());
            let needed: BTreeSet<String> = known
                .builds
                .values()
                .filter(|build| is_tagged(build))
                .filter_map(|build| Some(build.facts().made?.computers()))
                .flatten()
                .collect();
            let loose: Vec<_> = known
                .builds
                .values()
                .filter(|build| !is_tagged(build) && build.state().facts.made.is_some())
                .cloned()
                .collect();
            let mut old = Vec::new();
            for template in known.records.keys() {
                let idle = known.of(template).into_iter().filter(|build| !is_tagged(build) && !build.goes_on());
                let stale = now() - UNBEGUN_KEPT_S * SECOND;
                for (at, build) in idle.enumerate() {
                    let facts = build.facts();
                    if at >= BUILDS_KEPT || (!facts.begun && facts.created_at < stale) {
                        old.push(build.id.clone());
                    }
                }
            }
            old.extend(
                known
                    .builds
                    .values()
                    .filter(|build| !known.records.contains_key(&build.state().facts.template))
                    .map(|build| build.id.clone()),
            );
            (loose, old, needed)
        };
        for build in loose {
            self.drop_made(&build, &needed).await?;
        }
        old.dedup();
        for id in old {
            shelf.forget_build(control, &id).await?;
        }
        self.clear_files(None).await;
        Ok(())
    }

    /// Lets go what a build has made, but for computers that others need.
    pub(super) async fn drop_made(&self, build: &Build, needed: &BTreeSet<String>) -> Result<(), ApiError> {
        let Some(made) = build.facts().made else { return Ok(()) };
        let own: Vec<String> = made.computers().difference(needed).cloned().collect();
        for name in &own {
            self.note(name).await?;
        }
        self.shelf().keep_build(self.control(), build, |facts| facts.made = None).await?;
        for name in own {
            // Another build may stand on it, that is let go in its turn.
            match self.shelf().holders().contains(&name) {
                true => self.noted(&name).await,
                false => self.unmake(&name).await,
            }
        }
        Ok(())
    }

    /// Removes the files that no build uses; all of a template that is gone.
    pub(super) async fn clear_files(&self, gone: Option<&str>) {
        let used: BTreeSet<String> = {
            let known = self.shelf().known();
            let of = |build: &Arc<Build>| {
                let facts = build.facts();
                let files = facts.made.map(|made| made.files).unwrap_or_default();
                files.into_iter().map(|hash| upload::name(&facts.template, &hash)).collect::<Vec<_>>()
            };
            known.builds.values().flat_map(of).collect()
        };
        self.shelf().files.clear(&used, gone).await;
    }

    /// Forgets a template, its builds and their computers.
    ///
    /// Errors: 409 while a build of it goes on.
    pub(super) async fn delete_record(&self, record: &Record) -> Result<(), ApiError> {
        let (shelf, control) = (self.shelf(), self.control());
        let _turn = shelf.turn().await?;
        let builds = shelf.known().of(&record.id);
        if builds.iter().any(|build| build.goes_on()) {
            return Err(ApiError::new(409, format!("a build of template '{}' goes on", record.name)));
        }
        for build in builds {
            self.drop_made(&build, &BTreeSet::new()).await?;
            shelf.forget_build(control, &build.id).await?;
        }
        control.forget_fact(TEMPLATE, &record.id).await?;
        shelf.known().records.remove(&record.id);
        self.clear_files(Some(&record.id)).await;
        Ok(())
    }
}
