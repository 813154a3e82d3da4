//! A sandbox's life: made, paused, taken up again, forked, killed; and found again after a restart.
//!
//! ```text
//! create   note ─► computer made ─► fact kept ─► answer     what a note alone names: removed at the next start
//! fork     notes ─► what runs copied, where that can be ─► each: computer ─► fact, tokens of its own ─► answer
//! kill     shown as gone, streams cut ─► computer removed for good ─► fact forgotten ─► answer
//! trash    put away, its fact stays ─► undone: shown again      a fact without a computer: forgotten
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use den_api::{ComputerView, CreateComputer, ForkRequest, NetRequest, VolumeMountRequest};
use den_control::{EachFork, ForkOne, Removal};
use den_model::State;
use den_sys::failpoint;

use crate::{
    E2b,
    book::{Facts, Mount, Paused, Phase, SANDBOX, Sandbox},
    error::ApiError,
    making::{labels, to_the_end},
    secret,
    templates::Template,
    time::{SECOND, now},
    who,
};

/// The longest time that a sandbox may be given: 30 days.
pub(crate) const TIMEOUT_MAX_S: i64 = 30 * 24 * 3600;

/// How long a sandbox runs that traffic has woken, at least.
pub(crate) const AUTO_RESUME_S: i64 = 300;

/// Between the signals that end a sandbox's processes when only its files are to stay.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long a change of another request is waited for.
pub(crate) const CHANGE_WAIT: Duration = Duration::from_secs(30);

/// The right to change a sandbox.
pub(crate) type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;

/// What a new sandbox is to be; checked.
pub(crate) struct New {
    pub template: Template,
    pub timeout_s: i64,
    pub metadata: BTreeMap<String, String>,
    pub env: BTreeMap<String, String>,
    pub secure: bool,
    pub auto_pause: bool,
    pub auto_pause_memory: bool,
    pub auto_resume: bool,
    pub internet: Option<bool>,
    pub network: Option<serde_json::Value>,
    pub net: Option<NetRequest>,
    pub public: bool,
    pub volumes: Vec<VolumeMountRequest>,
    /// Of a request that may come again.
    pub key: Option<String>,
}

/// Forks of one sandbox.
pub(crate) struct Forks {
    pub all: Vec<Result<Arc<Sandbox>, ApiError>>,
    /// Why processes do not go on in one of them.
    pub anew: Option<String>,
}

impl E2b {
    /// Makes a sandbox; the same one for the same key.
    pub(crate) async fn create(&self, new: New) -> Result<Arc<Sandbox>, ApiError> {
        let e2b = self.clone();
        to_the_end(async move {
            let Some(key) = &new.key else { return e2b.make(secret::id('i'), new).await };
            let id = format!("i{}", &blake3::hash(key.as_bytes()).to_hex()[..20]);
            let _turn = e2b.book().in_hand.turn(&id).await?;
            match e2b.book().find(&id) {
                Some(there) => Ok(there),
                None => e2b.make(id.clone(), new).await,
            }
        })
        .await
    }

    async fn make(&self, id: String, new: New) -> Result<Arc<Sandbox>, ApiError> {
        let at = now();
        let mut env = new.template.context.as_ref().map(|context| context.env.clone()).unwrap_or_default();
        env.extend(environment(&id, &new.template.id, &new.env));
        self.note(&id).await?;
        let made = match &new.template.holder {
            None => {
                let request = CreateComputer {
                    name: Some(id.clone()),
                    image: Some(new.template.image.clone()),
                    env,
                    labels: labels("sandbox"),
                    net: new.net.clone(),
                    volumes: Some(new.volumes.clone()),
                    ..CreateComputer::default()
                };
                self.control().create(request, None, &who()).await
            }
            Some(holder) => self.fork_one(holder, &id, "sandbox", env, new.net.as_ref(), &new.volumes).await,
        };
        let computer = self.made(&id, made).await?;
        if let Some(start) = &new.template.start
            && let Err(error) = self.add_start(&id, start).await
        {
            self.unmake(&id).await;
            return Err(error.into());
        }
        let facts = Facts {
            template: new.template.id,
            alias: new.template.alias,
            metadata: new.metadata,
            env: new.env,
            token: new.secure.then(|| format!("ea_{}", secret::digits())),
            traffic_token: (!new.public).then(secret::digits),
            started_at: at,
            ends_at: at + new.timeout_s * SECOND,
            auto_pause: new.auto_pause,
            auto_pause_memory: new.auto_pause_memory,
            auto_resume: new.auto_resume,
            paused: None,
            internet: new.internet,
            network: new.network,
            cpus: cpus(&computer),
            memory_mib: computer.memory.0 >> 20,
            disk_mib: computer.disk.0 >> 20,
            context: new.template.context,
            volumes: computer.volumes.into_iter().map(|at| Mount { name: at.name, path: at.path }).collect(),
            trashed: false,
        };
        self.enter(id, facts, None).await
    }

    /// One fork, by this name, that mounts these volumes and no other.
    pub(crate) async fn fork_one(
        &self,
        parent: &str,
        name: &str,
        label: &str,
        env: BTreeMap<String, String>,
        net: Option<&NetRequest>,
        volumes: &[VolumeMountRequest],
    ) -> Result<ComputerView, den_control::Error> {
        let request = ForkRequest { name: Some(name.to_owned()), labels: labels(label), env, ..ForkRequest::default() };
        let mut made = self.control().fork_with(parent, request, net, Some(volumes), &who()).await?;
        made.items.pop().ok_or_else(|| den_control::Error::internal("nothing was forked"))
    }

    /// The computer that was noted, if it was made.
    pub(crate) async fn made<T>(&self, name: &str, made: Result<T, den_control::Error>) -> Result<T, ApiError> {
        match made {
            Ok(computer) => {
                failpoint::hit("e2b.create.computer");
                Ok(computer)
            }
            // Nothing is left of it, and somebody else may have the name; unless the daemon ends meanwhile.
            Err(error) => {
                if error.code != "shutting_down" {
                    self.noted(name).await;
                }
                Err(error.into())
            }
        }
    }

    /// Writes down a sandbox whose computer runs, and shows it.
    async fn enter(&self, id: String, facts: Facts, parent: Option<&Sandbox>) -> Result<Arc<Sandbox>, ApiError> {
        if let Err(error) = self.write(&id, &facts).await {
            self.unmake(&id).await;
            return Err(error);
        }
        failpoint::hit("e2b.create.fact");
        self.noted(&id).await;
        let sandbox = match parent {
            Some(parent) => Sandbox::forked(id, facts, parent),
            None => Sandbox::made(id, facts),
        };
        self.book().add(Arc::clone(&sandbox));
        Ok(sandbox)
    }

    async fn write(&self, id: &str, facts: &Facts) -> Result<(), ApiError> {
        let text = serde_json::to_string(facts).map_err(|error| ApiError::new(500, error.to_string()))?;
        Ok(self.control().keep_fact(SANDBOX, id, text).await?)
    }

    /// Writes down what has changed of a sandbox. Whoever calls this has its turn, so that the fact of one that is
    /// gone does not come back.
    ///
    /// Errors: 404 for one that is gone; then, and where it cannot be written, nothing has changed.
    pub(crate) async fn keep(
        &self,
        sandbox: &Sandbox,
        _turn: &Turn<'_>,
        change: impl FnOnce(&mut Facts),
    ) -> Result<(), ApiError> {
        if sandbox.phase() == Phase::Gone {
            return Err(ApiError::no_sandbox(&sandbox.id));
        }
        let mut facts = sandbox.facts().clone();
        change(&mut facts);
        self.write(&sandbox.id, &facts).await?;
        *sandbox.facts() = facts;
        self.book().alarm.notify_one();
        Ok(())
    }

    /// As [`E2b::keep`], of what has been done already: it has changed though it cannot be written.
    async fn follow(
        &self,
        sandbox: &Sandbox,
        turn: &Turn<'_>,
        change: impl FnOnce(&mut Facts),
    ) -> Result<(), ApiError> {
        let phase = {
            let mut facts = sandbox.facts();
            change(&mut facts);
            if facts.paused.is_some() { Phase::Paused } else { Phase::Running }
        };
        sandbox.phase.send_replace(phase);
        self.keep(sandbox, turn, |_| {}).await
    }

    /// Changes what is kept of a sandbox, to the end.
    ///
    /// Errors: 404 for one that is gone.
    pub(crate) async fn change(
        &self,
        sandbox: &Arc<Sandbox>,
        change: impl FnOnce(&mut Facts) + Send + 'static,
    ) -> Result<(), ApiError> {
        let (e2b, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_the_end(async move {
            let turn = e2b.turn(&sandbox).await?;
            e2b.keep(&sandbox, &turn, change).await
        })
        .await
    }

    /// Ends a sandbox, and all it has, if it is to be when its turn has come.
    ///
    /// Errors: 404, for one too whose computer lies in the trash; 409 where it is not to be.
    pub(crate) async fn kill(&self, sandbox: &Arc<Sandbox>, only_if: fn(&Sandbox) -> bool) -> Result<(), ApiError> {
        let (e2b, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_the_end(async move {
            let turn = e2b.turn(&sandbox).await?;
            e2b.see(&sandbox, &turn).await;
            let before = sandbox.phase();
            if before == Phase::Gone {
                return Err(ApiError::no_sandbox(&sandbox.id));
            }
            if !only_if(&sandbox) {
                return Err(not_now(&sandbox));
            }
            sandbox.phase.send_replace(Phase::Gone);
            match e2b.control().remove(&sandbox.id, Removal::ForGood, &who()).await {
                Ok(()) => {}
                Err(error) if error.code == "computer_not_found" => {}
                Err(error) => {
                    sandbox.phase.send_replace(before);
                    return Err(error.into());
                }
            }
            failpoint::hit("e2b.kill.computer");
            e2b.book().remove(&sandbox.id);
            e2b.control().forget_fact(SANDBOX, &sandbox.id).await?;
            Ok(())
        })
        .await
    }

    /// Has a sandbox stand still, with its memory or without, if it is to when its turn has come.
    ///
    /// Errors: 404; 409 where it does already, or is not to.
    pub(crate) async fn pause(
        &self,
        sandbox: &Arc<Sandbox>,
        what: Paused,
        only_if: fn(&Sandbox) -> bool,
    ) -> Result<(), ApiError> {
        let (e2b, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_the_end(async move {
            let turn = e2b.turn(&sandbox).await?;
            e2b.see(&sandbox, &turn).await;
            match sandbox.phase() {
                Phase::Running if only_if(&sandbox) => {}
                Phase::Running => return Err(not_now(&sandbox)),
                Phase::Gone => return Err(ApiError::no_sandbox(&sandbox.id)),
                _ => return Err(ApiError::new(409, format!("Sandbox {} is already paused", sandbox.id))),
            }
            sandbox.phase.send_replace(Phase::Changing);
            let done = e2b.down(&sandbox.id, what).await;
            failpoint::hit("e2b.pause.computer");
            match done {
                Ok(_) => e2b.follow(&sandbox, &turn, |facts| facts.paused = Some(what)).await,
                Err(error) => {
                    sandbox.phase.send_replace(Phase::Running);
                    e2b.see(&sandbox, &turn).await;
                    Err(error.into())
                }
            }
        })
        .await
    }

    /// Has a computer stand still.
    async fn down(&self, id: &str, what: Paused) -> Result<ComputerView, den_control::Error> {
        let (control, who) = (self.control(), who());
        let down = || async {
            match what {
                Paused::Memory => control.pause(id, &who).await,
                Paused::Disk => control.stop(id, Some(STOP_GRACE), &who).await,
            }
        };
        match down().await {
            // It sleeps because nobody used it, and would wake for a request.
            Err(error) if error.code == "wrong_state" && control.state_of(id) == Some(State::Running) => {
                self.up(id, Some(Paused::Memory)).await?;
                down().await
            }
            done => done,
        }
    }

    /// Has a computer run that stands still.
    async fn up(&self, id: &str, was: Option<Paused>) -> Result<ComputerView, den_control::Error> {
        let done = match was {
            Some(Paused::Memory) => self.control().resume(id, &who()).await,
            _ => return self.control().start(id, &who()).await,
        };
        match done {
            // The host was restarted since: its processes are gone, its files are not.
            Err(error) if error.code == "wrong_state" || error.code == "computer_stopped" => {
                self.control().start(id, &who()).await
            }
            done => done,
        }
    }

    /// Takes a paused sandbox up again, for so many seconds; whether it had been paused.
    pub(crate) async fn resume(&self, sandbox: &Arc<Sandbox>, timeout_s: i64) -> Result<bool, ApiError> {
        let (e2b, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_the_end(async move {
            let turn = e2b.turn(&sandbox).await?;
            e2b.see(&sandbox, &turn).await;
            match sandbox.phase() {
                Phase::Paused => {}
                Phase::Gone => return Err(ApiError::no_sandbox(&sandbox.id)),
                _ => return Ok(false),
            }
            sandbox.phase.send_replace(Phase::Changing);
            let was = sandbox.facts().paused;
            let done = e2b.up(&sandbox.id, was).await;
            let at = now();
            match done {
                Ok(_) => {
                    let resumed = |facts: &mut Facts| {
                        facts.paused = None;
                        facts.started_at = at;
                        facts.ends_at = at + timeout_s * SECOND;
                    };
                    e2b.follow(&sandbox, &turn, resumed).await?;
                    Ok(true)
                }
                Err(error) => {
                    sandbox.phase.send_replace(Phase::Paused);
                    e2b.see(&sandbox, &turn).await;
                    Err(error.into())
                }
            }
        })
        .await
    }

    /// Makes sandboxes that go on from where another is now, each as if it were the only one.
    ///
    /// Errors: 409 for one that does not run, and what forking none of them meets.
    pub(crate) async fn fork(&self, sandbox: &Arc<Sandbox>, timeout_s: i64, count: usize) -> Result<Forks, ApiError> {
        if sandbox.phase() != Phase::Running {
            return Err(ApiError::new(409, format!("Sandbox {} is not running", sandbox.id)));
        }
        let (e2b, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_the_end(async move {
            let old = sandbox.facts().clone();
            let mut wanted = Vec::with_capacity(count);
            for _ in 0..count {
                let id = secret::id('i');
                let name = id.parse().map_err(|error| ApiError::new(500, format!("{error}")))?;
                e2b.note(&id).await?;
                wanted.push(ForkOne {
                    name,
                    labels: labels("sandbox"),
                    env: environment(&id, &old.template, &old.env),
                });
            }
            let ids: Vec<String> = wanted.iter().map(|one| one.name.to_string()).collect();
            let made = {
                let _still = sandbox.is_copied();
                e2b.control().fork_each(&sandbox.id, wanted, &who()).await
            };
            let made = match made {
                Ok(made) => made,
                Err(error) => {
                    for id in &ids {
                        e2b.made::<()>(id, Err(error.clone())).await.ok();
                    }
                    return Err(error.into());
                }
            };
            let mut forks = Forks { all: Vec::with_capacity(count), anew: None };
            for (id, made) in ids.into_iter().zip(made) {
                let made = e2b.made(&id, made).await;
                forks.all.push(match made {
                    Ok(EachFork { anew, .. }) => {
                        forks.anew = forks.anew.take().or(anew);
                        e2b.enter_fork(id, &sandbox, &old, timeout_s).await
                    }
                    Err(error) => Err(error),
                });
            }
            Ok(forks)
        })
        .await
    }

    /// Writes down a fork, with tokens of its own, and shows it with what is known of the commands in it.
    async fn enter_fork(
        &self,
        id: String,
        parent: &Sandbox,
        old: &Facts,
        timeout_s: i64,
    ) -> Result<Arc<Sandbox>, ApiError> {
        let at = now();
        let facts = Facts {
            token: old.token.is_some().then(|| format!("ea_{}", secret::digits())),
            traffic_token: old.traffic_token.is_some().then(secret::digits),
            started_at: at,
            ends_at: at + timeout_s * SECOND,
            paused: None,
            ..old.clone()
        };
        self.enter(id, facts, Some(parent)).await
    }

    /// The right to change a sandbox's phase, and what is kept of it.
    pub(crate) async fn turn<'a>(&self, sandbox: &'a Sandbox) -> Result<Turn<'a>, ApiError> {
        tokio::time::timeout(CHANGE_WAIT, sandbox.turn.lock())
            .await
            .map_err(|_| ApiError::new(409, format!("Sandbox {} is still transitioning", sandbox.id)))
    }

    /// Shows what exists of what is kept: the sandboxes that an earlier daemon left.
    pub(crate) async fn take_up(&self) -> Result<(), den_control::Error> {
        for (id, text) in self.control().facts(SANDBOX).await? {
            let mut facts = match serde_json::from_str::<Facts>(&text) {
                Ok(facts) => facts,
                Err(error) => {
                    tracing::error!(sandbox = id, %error, "a sandbox's fact cannot be read; its computer stays");
                    continue;
                }
            };
            match self.control().state_of(&id) {
                None => self.forget(&id).await,
                Some(State::Trashed) => {
                    facts.trashed = true;
                    drop(self.book().away().insert(id, facts));
                }
                Some(state) => self.come_back(id, facts, state).await,
            }
        }
        Ok(())
    }

    /// Shows a sandbox whose computer is there. One that comes out of the trash is given time, for its own may be over.
    async fn come_back(&self, id: String, mut facts: Facts, state: State) {
        facts.paused = match state {
            State::Running => None,
            State::Paused => Some(Paused::Memory),
            _ => Some(Paused::Disk),
        };
        if std::mem::take(&mut facts.trashed) {
            facts.ends_at = facts.ends_at.max(now() + AUTO_RESUME_S * SECOND);
            if let Err(error) = self.write(&id, &facts).await {
                tracing::warn!(sandbox = id, error = error.message, "that it is back is not written down");
            }
        }
        self.book().add(Sandbox::new(id, facts));
    }

    /// Takes a sandbox out of the book whose computer lies in the trash. Its fact stays.
    async fn put_away(&self, sandbox: &Sandbox, turn: &Turn<'_>) {
        if let Err(error) = self.keep(sandbox, turn, |facts| facts.trashed = true).await {
            tracing::warn!(sandbox = sandbox.id, error = error.message, "that it is in the trash is not written down");
        }
        tracing::info!(sandbox = sandbox.id, "a sandbox's computer was put into the trash");
        sandbox.phase.send_replace(Phase::Gone);
        self.book().remove(&sandbox.id);
        let facts = Facts { trashed: true, ..sandbox.facts().clone() };
        self.book().away().insert(sandbox.id.clone(), facts);
    }

    async fn forget(&self, id: &str) {
        if let Err(error) = self.control().forget_fact(SANDBOX, id).await {
            tracing::warn!(sandbox = id, error = error.chain(), "its fact stays until the next start");
        }
    }

    /// Follows what has happened to a sandbox's computer by other ways.
    pub(crate) async fn see(&self, sandbox: &Sandbox, turn: &Turn<'_>) {
        let phase = sandbox.phase();
        let paused = match self.control().state_of(&sandbox.id) {
            _ if phase == Phase::Gone => return,
            None => {
                tracing::info!(sandbox = sandbox.id, "a sandbox's computer was removed by another way");
                sandbox.phase.send_replace(Phase::Gone);
                self.book().remove(&sandbox.id);
                return self.forget(&sandbox.id).await;
            }
            Some(State::Trashed) => return self.put_away(sandbox, turn).await,
            // Only until what runs in it is copied.
            Some(State::Paused) if sandbox.copies.load(Ordering::Acquire) > 0 => return,
            Some(State::Paused) => Some(Paused::Memory),
            // Evidence too: its time does not pass.
            Some(State::Stopped | State::Failed | State::Unplugged) => Some(Paused::Disk),
            Some(State::Running) => None,
            Some(_) => return,
        };
        let is_so = match phase {
            Phase::Paused => sandbox.facts().paused == paused,
            _ => phase == Phase::Running && paused.is_none(),
        };
        if is_so {
            return;
        }
        tracing::info!(sandbox = sandbox.id, ?paused, "a sandbox was paused or woken by another way");
        let at = now();
        let followed = self.follow(sandbox, turn, |facts| {
            // Whoever woke it has not said for how long.
            if paused.is_none() {
                facts.ends_at = facts.ends_at.max(at + AUTO_RESUME_S * SECOND);
            }
            facts.paused = paused;
        });
        if let Err(error) = followed.await {
            tracing::warn!(sandbox = sandbox.id, error = error.message, "that it was is not written down");
        }
    }

    /// Takes up those again whose computers came back from the trash, and forgets those whose computers are gone.
    pub(crate) async fn look_into_the_trash(&self) {
        let away: Vec<String> = self.book().away().keys().cloned().collect();
        for id in away {
            let state = self.control().state_of(&id);
            if matches!(state, Some(State::Trashed | State::Removing)) {
                continue;
            }
            let Some(facts) = self.book().away().remove(&id) else { continue };
            match state {
                None => self.forget(&id).await,
                Some(state) => {
                    tracing::info!(sandbox = id, "a sandbox has come back from the trash");
                    self.come_back(id, facts, state).await;
                }
            }
        }
    }
}

fn not_now(sandbox: &Sandbox) -> ApiError {
    ApiError::new(409, format!("Sandbox {} was given more time", sandbox.id))
}

/// What every command in a sandbox finds in its environment.
fn environment(id: &str, template: &str, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut env = own.clone();
    env.insert("E2B_SANDBOX".to_owned(), "true".to_owned());
    env.insert("E2B_SANDBOX_ID".to_owned(), id.to_owned());
    env.insert("E2B_TEMPLATE_ID".to_owned(), template.to_owned());
    env
}

fn cpus(computer: &ComputerView) -> u32 {
    computer.cpus.0.div_ceil(1000).max(1)
}
