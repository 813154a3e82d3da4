//! Carries builds out: one task each, to its end whoever asked for it.
//!
//! ```text
//! base found ─► the same done before? ─all─► that build's computer holds this one too
//!                     └─► fork of the last state that is the same, or the base ─► the other steps ─► ready ─► stopped
//! ```

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use den_api::{
    ChangeComputer, ComputerView, CreateComputer, ForkRequest, SnapRequest, computer::Amount, service::AddService,
};
use den_model::State;
use den_sys::failpoint;

use super::{
    BUILD_MAX, Build, Context, Made, READY_ASK_MAX, READY_MAX, Reason, START, START_LOOK, Start, Status,
    inside::{Builder, Command, how, refused, shown},
    log::Level,
    plan::{From, Layer, Plan, Step},
};
use crate::{
    E2b,
    error::ApiError,
    making::labels,
    secret,
    templates::{DEFAULT, Template},
    time::now,
    who,
};

/// Between two questions whether it is ready: the first, and the longest.
const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_LONGEST: Duration = Duration::from_secs(2);

/// Between the signals that end a builder's processes.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long a service is given to stand otherwise than it does, at a look.
const SERVICE_LOOK: Duration = Duration::from_millis(200);

/// What a build begins as.
struct Base {
    template: Template,
    /// What it is told apart by.
    key: String,
}

fn base_failed(why: impl Into<String>) -> Reason {
    Reason::new("base", why)
}

fn final_failed(why: impl Into<String>) -> Reason {
    Reason::new("finalize", why)
}

impl E2b {
    /// Carries a build out that was begun.
    pub(super) fn carry_out(&self, build: Arc<Build>, plan: Plan) {
        let e2b = self.clone();
        tokio::spawn(async move {
            // It is never closed.
            let Ok(_going) = e2b.shelf().going.acquire().await else { return };
            let done = e2b.carry(&build, &plan).await;
            let (shelf, control) = (e2b.shelf(), e2b.control());
            if let Err(reason) = done {
                tracing::info!(build = build.id, step = reason.step, why = reason.message, "a build failed");
                if let Err(error) = shelf.failed(control, &build, reason).await {
                    tracing::error!(build = build.id, error = error.chain(), "that a build failed is not written down");
                }
            }
            e2b.clear_builds().await;
        });
    }

    async fn carry(&self, build: &Arc<Build>, plan: &Plan) -> Result<(), Reason> {
        let (shelf, control) = (self.shelf(), self.control());
        let building = shelf.keep_build(control, build, |facts| facts.status = Status::Building);
        building.await.map_err(|error| base_failed(error.message))?;
        let base = self.base(plan).await?;
        let facts = build.facts();
        let sizes = (facts.cpus, facts.memory_mib);
        let keys = plan.keys(&format!("{} {sizes:?}", base.key));
        let found = self.before(&facts.template, &keys, plan);
        if let Some(made) = found.iter().find(|made| made.layers.len() >= keys.len() && is_same(made, &keys, plan)) {
            build.say(Level::Info, None, &format!("CACHED: all {} steps are as they were", plan.steps.len()));
            if self.commit(build, made.clone(), None).await.is_ok() {
                return Ok(());
            }
        }
        let name = secret::id('b');
        self.note(&name).await.map_err(|error| base_failed(error.message))?;
        let begun = self.begin_builder(&name, build, &base, &keys, found).await;
        let layers = match begun {
            Ok(layers) => layers,
            Err(error) => {
                // Of one that the end of the daemon breaks off the next start knows.
                if error.code != "shutting_down" {
                    self.unmake(&name).await;
                }
                return Err(base_failed(error.message));
            }
        };
        failpoint::hit("e2b.build.builder");
        let builder = Builder { e2b: self, build, name: &name };
        let worked = tokio::time::timeout(BUILD_MAX, self.work(&builder, plan, &keys, layers, &base));
        let made = match worked.await {
            Ok(made) => made,
            Err(_) => Err(final_failed(format!("the build took longer than {} minutes", BUILD_MAX.as_secs() / 60))),
        };
        let done = match made {
            Ok(made) => self.commit(build, made, Some(&name)).await,
            Err(reason) => Err(reason),
        };
        if done.is_err() {
            self.unmake(&name).await;
        }
        done
    }

    async fn base(&self, plan: &Plan) -> Result<Base, Reason> {
        match &plan.from {
            From::Image(image) => {
                let plain = image.strip_prefix("docker.io/").unwrap_or(image);
                let plain = plain.strip_prefix("library/").unwrap_or(plain);
                let untagged = plain.strip_suffix(":latest").unwrap_or(plain);
                let names = match untagged {
                    "e2bdev/base" => vec![image.clone(), DEFAULT.to_owned()],
                    _ => vec![image.clone(), plain.to_owned(), untagged.to_owned(), format!("{untagged}:latest")],
                };
                let images = self.images().await.map_err(|error| base_failed(error.message))?;
                let found = names.iter().find_map(|name| images.iter().find(|image| image.name == *name));
                let Some(found) = found else {
                    let shown: String = image.chars().take(200).collect();
                    return Err(base_failed(format!(
                        "image '{shown}' is not in this house: `den image pull {shown}` brings it in"
                    )));
                };
                Ok(Base { template: Template::of_image(&found.name), key: format!("image {}", found.digest) })
            }
            From::Template(name) => {
                let template = self.template(name).await.map_err(|error| base_failed(error.message))?;
                let key = match &template.holder {
                    Some(holder) => format!("template {holder}"),
                    None => {
                        let image = self.control().image(&template.image).await;
                        format!("image {}", image.map_err(|error| base_failed(error.message))?.digest)
                    }
                };
                Ok(Base { template, key })
            }
        }
    }

    /// What earlier builds of the template have made that begin as this one does.
    fn before(&self, template: &str, keys: &[String], plan: &Plan) -> Vec<Made> {
        if plan.reusable() == 0 {
            return Vec::new();
        }
        let known = self.shelf().known();
        let made = known.of(template).into_iter().filter_map(|build| build.facts().made);
        let first = |made: &Made| made.layers.first().is_some_and(|layer| layer.key == keys[0]);
        let usable = plan.reusable();
        made.filter(first)
            .map(|mut made| {
                made.layers.truncate(usable);
                made
            })
            .collect()
    }

    /// Has a computer run that is at the last state which the others have reached too; the layers until there.
    async fn begin_builder(
        &self,
        name: &str,
        build: &Build,
        base: &Base,
        keys: &[String],
        found: Vec<Made>,
    ) -> Result<Vec<Layer>, den_control::Error> {
        let mut known: Vec<Vec<Layer>> = found
            .into_iter()
            .map(|made| {
                let same = made.layers.iter().zip(keys).take_while(|(layer, key)| layer.key == **key).count();
                made.layers.into_iter().take(same).collect()
            })
            .collect();
        known.sort_by_key(|layers| std::cmp::Reverse(layers.len()));
        for layers in known {
            let Some(last) = layers.last() else { continue };
            let request = ForkRequest {
                name: Some(name.to_owned()),
                labels: labels("template"),
                state: Some(last.state.clone()),
                ..ForkRequest::default()
            };
            match self.control().fork_with(&last.holder, request, None, None, &who()).await {
                Ok(_) => {
                    for number in 1..layers.len() {
                        build.say(Level::Info, Some(&number.to_string()), "CACHED");
                    }
                    return Ok(layers);
                }
                // It went meanwhile; there may be another, or the base.
                Err(error) => tracing::info!(build = build.id, error = error.chain(), "a state of an earlier build"),
            }
        }
        let facts = build.facts();
        let cpus = facts.cpus.map(|cpus| Amount(cpus.to_string()));
        let memory = facts.memory_mib.map(|mib| Amount(format!("{mib}MiB")));
        match &base.template.holder {
            None => {
                let request = CreateComputer {
                    name: Some(name.to_owned()),
                    image: Some(base.template.image.clone()),
                    labels: labels("template"),
                    cpus,
                    memory,
                    ..CreateComputer::default()
                };
                self.control().create(request, None, &who()).await?;
            }
            Some(holder) => {
                self.fork_one(holder, name, "template", BTreeMap::new(), None, &[]).await?;
                if cpus.is_some() || memory.is_some() {
                    let change = ChangeComputer { cpus, memory, ..ChangeComputer::default() };
                    self.control().change(name, &change, &who()).await?;
                }
            }
        }
        // A snapshot of a sandbox has its template's.
        match self.control().remove_service(name, START, &who()).await {
            Ok(()) => {}
            Err(error) if error.code == "service_not_found" => {}
            Err(error) => return Err(error),
        }
        Ok(Vec::new())
    }

    /// All steps that are left, and what comes after them.
    async fn work(
        &self,
        builder: &Builder<'_>,
        plan: &Plan,
        keys: &[String],
        mut layers: Vec<Layer>,
        base: &Base,
    ) -> Result<Made, Reason> {
        let template = builder.build.facts().template;
        let ends = Instant::now() + BUILD_MAX;
        let left = || ends.saturating_duration_since(Instant::now());
        if layers.is_empty() {
            let context = base.template.context();
            builder.prepare(&context, left()).await.map_err(base_failed)?;
            let state = self.keep_state(builder.name, 0).await.map_err(base_failed)?;
            layers.push(Layer { key: keys[0].clone(), holder: builder.name.to_owned(), state, context });
        }
        let total = plan.steps.len();
        for (at, planned) in plan.steps.iter().enumerate().skip(layers.len() - 1) {
            let number = (at + 1).to_string();
            let failed = |why: String| Reason::new(number.clone(), why);
            let line = format!("[builder {number}/{total}] {}", planned.step.shown());
            builder.build.say(Level::Info, Some(&number), &line);
            let archive = match &planned.step {
                Step::Copy { hash, .. } => {
                    let found = self.shelf().files.find(&template, hash).await;
                    found.map_err(|error| failed(error.message))?
                }
                _ => None,
            };
            let before = layers.last().cloned().ok_or_else(|| failed("a build without a base".to_owned()))?;
            let context = builder
                .step(&number, &planned.step, archive.as_deref(), &before.context, left())
                .await
                .map_err(failed)?;
            let (holder, state) = match planned.step {
                Step::Env(_) => (before.holder, before.state),
                _ => {
                    let state = self.keep_state(builder.name, at + 1).await.map_err(failed)?;
                    (builder.name.to_owned(), state)
                }
            };
            layers.push(Layer { key: keys[at + 1].clone(), holder, state, context });
        }
        let context = layers.last().map(|layer| layer.context.clone()).unwrap_or_default();
        self.finish(builder, plan, layers, context, base).await
    }

    /// Keeps what a builder is now, to begin from it another time.
    async fn keep_state(&self, name: &str, number: usize) -> Result<String, String> {
        let label = format!("step-{number}");
        let request = SnapRequest { label: Some(label.clone()), ..SnapRequest::default() };
        self.control().snap(name, request, &who()).await.map(|_| label).map_err(|error| error.message)
    }

    /// Waits until what is to run is ready, and stops the computer.
    async fn finish(
        &self,
        builder: &Builder<'_>,
        plan: &Plan,
        layers: Vec<Layer>,
        context: Context,
        base: &Base,
    ) -> Result<Made, Reason> {
        let said = |error: den_control::Error| final_failed(error.message);
        let inherited = base.template.start.as_ref().map(|start| (start.command.clone(), start.how.clone()));
        let start = plan.start.clone().map(|command| (command, plan.start_how.clone())).or(inherited);
        builder.build.say(Level::Info, Some("finalize"), "Finalizing the template");
        if let Some((command, how)) = &start {
            let command = Start { command: command.clone(), how: how.clone(), context: context.clone() };
            self.add_start(builder.name, &command).await.map_err(said)?;
        }
        self.wait_ready(builder, start.is_some(), plan.ready.as_deref(), &context).await?;
        if start.is_some() {
            self.control().remove_service(builder.name, START, &who()).await.map_err(said)?;
        }
        let view: ComputerView = self.control().stop(builder.name, Some(STOP_GRACE), &who()).await.map_err(said)?;
        let (start, start_how) = start.unzip();
        Ok(Made {
            holder: builder.name.to_owned(),
            image: view.image.clone(),
            context,
            start,
            start_how: start_how.unwrap_or_default(),
            ready: plan.ready.clone(),
            layers,
            files: plan.files(),
            cpus: view.cpus.0.div_ceil(1000).max(1),
            memory_mib: view.memory.0 >> 20,
            disk_mib: view.disk.0 >> 20,
        })
    }

    /// Has a start command be a service.
    pub(crate) async fn add_start(&self, name: &str, start: &Start) -> Result<(), den_control::Error> {
        let Start { command, how, context } = start;
        let request = AddService {
            name: START.to_owned(),
            run: ["/bin/bash", "-l", "-c", command].map(str::to_owned).to_vec(),
            restart: Some(how.restart.clone().unwrap_or_else(|| "no".to_owned())),
            ready: None,
            ready_within_ms: None,
            user: Some(how.user.clone().unwrap_or_else(|| context.user.clone())),
            cwd: Some(context.workdir.clone()),
            env: context.env.clone(),
            keep_bytes: None,
        };
        self.control().add_service(name, request, &who()).await.map(drop)
    }

    /// Errors: why the start command has failed.
    async fn look_at_start(&self, name: &str) -> Result<(), Reason> {
        let seen = self.control().service(name, START, None, Duration::ZERO).await;
        let seen = seen.map_err(|error| final_failed(error.message))?;
        match seen.state.as_str() {
            "failed" => {
                let why = seen.last_end.as_ref().map(how).or(seen.reason).unwrap_or_default();
                Err(final_failed(format!("the start command failed: {why}")))
            }
            _ => Ok(()),
        }
    }

    async fn wait_ready(
        &self,
        builder: &Builder<'_>,
        starts: bool,
        ready: Option<&str>,
        context: &Context,
    ) -> Result<(), Reason> {
        let began = Instant::now();
        let most = if ready.is_some() { READY_MAX } else { START_LOOK };
        let mut pause = ASK_FIRST;
        while ready.is_some() || (starts && began.elapsed() < most) {
            if starts {
                self.look_at_start(builder.name).await?;
            }
            let Some(command) = ready else {
                tokio::time::sleep(SERVICE_LOOK).await;
                continue;
            };
            let left = most.saturating_sub(began.elapsed());
            if left.is_zero() {
                let why = format!("it was not ready within {} s: '{}'", most.as_secs(), shown(command));
                return Err(final_failed(why));
            }
            let asked = builder.run(Command {
                argv: ["/bin/bash", "-l", "-c", command].map(str::to_owned).to_vec(),
                user: &context.user,
                cwd: Some(&context.workdir),
                env: context.env.clone(),
                within: READY_ASK_MAX.min(left),
                said_under: None,
            });
            let ran = asked.await.map_err(|error| {
                let why = refused(&error, &context.user);
                final_failed(format!("failed to run the ready command '{}': {why}", shown(command)))
            })?;
            if ran.end.exit_code == 0 {
                builder.build.say(Level::Info, Some("finalize"), "It is ready");
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ASK_LONGEST);
        }
        Ok(())
    }

    /// Keeps what a build has made, and has its tags lead to it. The name is that of the computer that is new.
    async fn commit(&self, build: &Arc<Build>, made: Made, noted: Option<&str>) -> Result<(), Reason> {
        let (shelf, control) = (self.shelf(), self.control());
        let failed = |error: ApiError| final_failed(error.message);
        let _turn = shelf.turn().await.map_err(failed)?;
        if control.state_of(&made.holder) != Some(State::Stopped) {
            return Err(final_failed("the computer of the template was taken away; build it again"));
        }
        build.say(Level::Info, None, "Build finished");
        build.write_log(&shelf.logs).await;
        let (at, mut facts) = (now(), build.facts());
        let record = shelf.known().records.get(&facts.template).cloned();
        let Some(mut record) = record else { return Err(final_failed("the template was deleted")) };
        // Later than whatever led elsewhere.
        let at = at.max(record.updated_at + 1);
        record.lead_to(&build.id, &facts.tags, at);
        (facts.status, facts.finished_at, facts.made) = (Status::Ready, Some(at), Some(made));
        shelf.commit(control, build, facts, record).await.map_err(|error| final_failed(error.message))?;
        failpoint::hit("e2b.build.fact");
        if let Some(name) = noted {
            self.noted(name).await;
        }
        Ok(())
    }
}

/// Whether a build has made just what this one is to make.
fn is_same(made: &Made, keys: &[String], plan: &Plan) -> bool {
    made.layers.iter().map(|layer| &layer.key).eq(keys)
        && made.start == plan.start
        && made.start_how == plan.start_how
        && made.ready == plan.ready
}

impl Step {
    /// As the log has it.
    fn shown(&self) -> String {
        match self {
            Self::Run { command, .. } => format!("RUN {}", shown(command)),
            Self::Copy { source, to, .. } => format!("COPY {source} {to}"),
            Self::Env(pairs) => {
                let names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
                format!("ENV {}", names.join(" "))
            }
            Self::Workdir(path) => format!("WORKDIR {path}"),
            Self::User(name) => format!("USER {name}"),
        }
    }
}
