//! Bringing the changes of a fork into a computer that shares a state with it.
//!
//! ```text
//! base ◄── nearest state of both          plan: conflicts? ──yes──► told, nothing changed
//! ours ◄── the target now                       └─no─► state kept ─► step ─► agent: aside, checked, committed
//! theirs ◄── the fork's state                                                   └─ failed halfway ─► taken back
//! ```
//!
//! Invariants:
//! - All or nothing. What the agent refuses before it commits has changed nothing; what breaks off while
//!   it commits is taken back to the state that was kept before.
//! - The agent holds each path against what the plan was made from: what changed inside meanwhile is
//!   a refusal and not a loss.
//! - No state is kept while the agent is at it, nor until what broke off is taken back: none has half of a merge.
//! - It goes on without its caller.

use std::{io, sync::Arc, time::Instant};

use den_api::{MergeRequest, MergeView, SnapshotView};
use den_disk::Identity;
use den_history::{
    Phase, Progress, State,
    merge::{Content, MergeOptions, Op, Plan, plan_of_fork},
};
use den_machine::{ApplyContent, LinkError};
use den_model::{EventKind, Snapshot, SnapshotKind, State as Stand, StateName, StateRef, Step, StepEnd, StepKind};
use den_store::Durability;
use den_sys::failpoint;
use den_wire::agent::{ApplyOp, FailureKind};
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Resolved, Turn, Wanted,
    diff::same_image,
    look::{chosen, looking, still_there},
    take,
};
use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    durable::step_is_safe_or_said,
    errors::chain,
    handle::Handle,
    life::Awake,
    metrics::Operation,
    steps::{Live, finish},
    undo::{UNDO_BEFORE, What},
};

/// Paths that an answer names.
const FILES_MAX: usize = 10_000;
/// Conflicts that an answer names.
const CONFLICTS_MAX: usize = 1000;
/// How often the state before is put back where the computer changes from one state to another meanwhile.
const BACK_TRIES_MAX: u32 = 5;

/// A state, held and opened.
struct Opened {
    state: State,
    held: Resolved,
}

/// The states, and what is to be done.
struct Merge {
    /// How the state is written that both come from.
    base: String,
    ours: Opened,
    theirs: Opened,
    plan: Plan,
}

impl Control {
    /// Brings the changes of a fork since the state that both come from into `computer`, as one step. With
    /// conflicts, and with `dry_run`, nothing changes.
    ///
    /// Errors: `computer_not_found`, `state_not_found`, `bad_state`, `bad_request`, `no_common_state`,
    /// `computer_stopped`; `disk_full`, `changed_meanwhile` and `merge_failed` leave the computer as it was.
    pub async fn merge(&self, computer: &str, request: MergeRequest, who: &Who) -> Result<MergeView, Error> {
        self.merge_watched(computer, request, who, &Progress::default()).await
    }

    /// As [`Control::merge`]; `progress` says how far it is.
    pub async fn merge_watched(
        &self,
        computer: &str,
        request: MergeRequest,
        who: &Who,
        progress: &Progress,
    ) -> Result<MergeView, Error> {
        let began = Instant::now();
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let from: StateRef = request.from.parse()?;
        let options = MergeOptions {
            paths: chosen(&request.paths)?,
            ours: chosen(&request.ours)?,
            theirs: chosen(&request.theirs)?,
            progress: progress.clone(),
        };
        if self.0.registry.find_any(&from.computer)?.id == handle.id {
            let message = format!("`{}` is merged into itself", handle.name());
            return Err(Error::bad_request(message)
                .hint(format!("`den restore {}` goes back to an older state of it", request.from)));
        }
        if !request.dry_run {
            drop(runs(&handle).await?);
        }
        let merge = self.plan(&handle, &from, options).await?;
        let conflicts = merge.plan.conflicts.len();
        if request.dry_run || conflicts > 0 || merge.plan.ops.is_empty() {
            return Ok(view(merge.base, merge.plan));
        }
        let (told, done) = oneshot::channel();
        let (control, argv, who) = (self.clone(), argv(&merge.theirs.held.shown, &request), who.0.clone());
        let progress = progress.clone();
        self.0.tasks.spawn(async move {
            // The client may have gone; the merge has not.
            let _ = told.send(control.carry_out(&handle, merge, argv, who, progress).await);
        });
        let merged = done.await.map_err(|_| Error::shutting_down())??;
        self.0.metrics.took(Operation::Merge, began);
        Ok(merged)
    }

    /// Finds the three states and compares them.
    async fn plan(&self, handle: &Arc<Handle>, from: &StateRef, options: MergeOptions) -> Result<Merge, Error> {
        let theirs = self.resolve(from).await?;
        let target = StateRef { computer: handle.id.to_string(), state: StateName::Now };
        let ours = self.resolve(&target).await?;
        same_image(&ours, &theirs)?;
        let base = self.base(&ours, &theirs).await?.ok_or_else(|| {
            let message = format!("`{}` and `{}` have no state in common that is still kept", ours.shown, theirs.shown);
            Error::new("no_common_state", 409, message)
                .hint("merge a fork into the computer it was made from, or forks of one computer into each other")
        })?;
        let since = (base.generation > 0).then_some(base.generation);
        // What was made anew for a fork of it is no change of anybody.
        let made_as = match theirs.handle.id != base.handle.id && theirs.handle.parent.is_some() {
            true => {
                let zero = StateRef { computer: theirs.handle.id.to_string(), state: StateName::Snapshot(0) };
                Some(self.resolve(&zero).await?)
            }
            false => None,
        };
        looking(move || {
            let (base_state, ours_state, theirs_state) = (base.open()?, ours.open()?, theirs.open()?);
            let made = made_as.as_ref().map(Resolved::open).transpose()?;
            let plan = plan_of_fork(&base_state, &ours_state, &theirs_state, made.as_ref(), since, &options)?;
            still_there(&[&base, &ours, &theirs])?;
            let ours = Opened { state: ours_state, held: ours };
            let theirs = Opened { state: theirs_state, held: theirs };
            Ok(Merge { base: base.shown.clone(), ours, theirs, plan })
        })
        .await
    }

    /// Keeps the state before, and has the agent do it.
    async fn carry_out(
        &self,
        handle: &Arc<Handle>,
        merge: Merge,
        argv: Vec<String>,
        who: String,
        progress: Progress,
    ) -> Result<MergeView, Error> {
        let inner = &self.0;
        let machine = runs(handle).await?;
        let Merge { base, ours, theirs, mut plan } = merge;
        progress.begin(Phase::Applying, plan.ops.len());
        let (ops, content) = sending(std::mem::take(&mut plan.ops), ours, theirs, progress);
        handle.history.settled().await;
        let turn = handle.history.turn().await?;
        let wanted = Wanted::of(SnapshotKind::Merge);
        let before = take(inner, handle, &turn, wanted).await?;
        failpoint::hit("merge.kept");
        handle.steps.room()?;
        let what = What::Merge { from: argv.get(1).cloned().unwrap_or_default(), before: before.number };
        let (live, undo) = self.begin(handle, argv, who, what).await?;
        let step = live.step.number;
        failpoint::hit("merge.step");
        let applied = machine.link().apply(step, ops, content).await;
        failpoint::hit("merge.applied");
        match applied {
            Ok(()) => {
                drop(turn);
                finish(inner, handle, &live, StepEnd::Exited { code: 0 }, 0).await;
                step_is_safe_or_said(inner, handle, step, None).await;
                tracing::info!(computer = %handle.id, name = %handle.name(), step, "a fork was merged");
                let detail = json!({ "step": step, "before": before.number, "command": live.step.argv.join(" ") });
                inner.events.tell(EventKind::Merged, Some(handle), Some(&live.step.who), detail);
                let mut view = view(base, plan);
                view.step = Some(step);
                view.before = Some(SnapshotView::from(&before));
                Ok(view)
            }
            Err(error) => Err(self.back(handle, turn, &live, &before, undo, error).await),
        }
    }

    /// After a merge that did not come about: says why, and has the state before again if there may be another.
    async fn back(
        &self,
        handle: &Arc<Handle>,
        turn: Turn,
        live: &Live,
        before: &Snapshot,
        undo: u64,
        error: LinkError,
    ) -> Error {
        let untouched = matches!(&error, LinkError::Failed(failure) if failure.kind != FailureKind::HalfDone);
        let told = handle.link_error(error);
        let name = handle.name();
        let told = if untouched {
            drop(turn);
            if let Err(error) = self.0.store.forget_undo(undo, Durability::Process).await {
                tracing::error!(computer = %handle.id, error = chain(&error), "a merge that was none is left among what can be taken back");
            }
            match told.code {
                "disk_full" | "changed_meanwhile" | "unsupported" | "no_processes" => told,
                _ => merge_failed(format!("nothing was merged into `{name}`"), told),
            }
        } else {
            let state = StateName::Snapshot(before.number);
            // Half of a merge is no state that anybody may have.
            handle.history.lend(turn);
            let mut status = handle.status.subscribe();
            let mut tries = 0;
            let restored = loop {
                // A stop that broke it off goes on, and until it has ended no disk is put back. It cannot fail: the
                // sender is the handle's.
                let _ = status.wait_for(|status| !matches!(status.state, Stand::Stopping | Stand::Starting)).await;
                let restored = self.restore_for(handle, state.clone(), &Who("merge".to_owned()), Some(undo)).await;
                tries += 1;
                match restored {
                    // It began to change again meanwhile.
                    Err(error) if error.retryable && tries < BACK_TRIES_MAX => {}
                    restored => break restored,
                }
            };
            handle.history.unlend();
            match restored {
                Ok(_) => {
                    let message = format!("the merge into `{name}` broke off; its disk is as it was before");
                    merge_failed(message, told)
                }
                Err(failed) => {
                    let (number, why) = (before.number, &failed.message);
                    let message = format!("the merge into `{name}` broke off, and it could not be taken back: {why}");
                    merge_failed(message, told).hint(format!("`den restore {name}@.{number}` takes it back"))
                }
            }
        };
        let end = StepEnd::NotStarted { code: 1, message: told.message.clone() };
        finish(&self.0, handle, live, end, 0).await;
        told
    }

    /// Records the step that the merge is.
    async fn begin(
        &self,
        handle: &Handle,
        argv: Vec<String>,
        who: String,
        what: What,
    ) -> Result<(Arc<Live>, u64), Error> {
        let number = handle.steps.number();
        let undo = what.record(handle, &who, now(), None);
        let step = Step::begun(number, StepKind::Merge, argv, who, now());
        let row = self.0.store.insert_step_undo(handle.id, &step, undo, Durability::Process);
        let live = Live::new(step, None);
        handle.steps.add(&live);
        match row.await {
            Ok(undo) => Ok((live, undo)),
            Err(error) => {
                handle.steps.forget(number);
                Err(error.into())
            }
        }
    }
}

/// The operations for the agent, and what gives the bytes of their files. It holds the states.
fn sending(
    ops: Vec<Op>,
    ours: Opened,
    theirs: Opened,
    progress: Progress,
) -> (Vec<ApplyOp>, impl FnMut(usize) -> io::Result<ApplyContent> + Send + 'static) {
    let (ops, sources): (Vec<_>, Vec<_>) = ops.into_iter().map(|op| (op.op, op.source)).unzip();
    let content = move |index: usize| {
        let _held = (&ours.held, &theirs.held);
        progress.at(index + 1);
        match sources[index].open(&ours.state, &theirs.state).map_err(io::Error::other)? {
            Content::Bytes(bytes) => Ok(ApplyContent::Bytes(bytes)),
            Content::File(file) => Ok(ApplyContent::File(file)),
        }
    };
    (ops, content)
}

/// Puts a disk back whose computer ended in the middle of a merge, while no daemon ran: what the agent had put
/// aside is still there. `steps` are those that have no end.
pub(crate) async fn take_back(inner: &Arc<Inner>, handle: &Arc<Handle>, steps: &[Step]) -> Result<(), Error> {
    let (disks, id) = (inner.disks()?, handle.id);
    let Some(step) = steps.iter().find(|step| step.kind == StepKind::Merge) else { return Ok(()) };
    let aside = disks.disk(id).live.join("data").join(format!(".den-merge-{}", step.number));
    let states = handle.history.all_kept();
    let to = states.iter().rfind(|state| state.kind == SnapshotKind::Merge && state.step < step.number);
    let Some(to) = to.filter(|_| aside.symlink_metadata().is_ok()) else { return Ok(()) };
    let before = handle.history.leaving(handle.history.last_ended(), to.number, now());
    inner.store.insert_snapshot(id, &before, Durability::Power).await?;
    let (hostname, limit) = (handle.name().to_string(), handle.limits().disk);
    let (back, kept) = (to.number, before.number);
    blocking(move || {
        let identity = Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() };
        disks.restore_prepare(id, back, limit, &identity)?;
        disks.restore_commit(id, kept)
    })
    .await??;
    handle.history.went(inner, handle, &before).await;
    inner.store.forget_undo_of(id, UNDO_BEFORE, back, Durability::Process).await?;
    tracing::warn!(computer = %id, name = %handle.name(), step = step.number, to = back, "half a merge was taken back");
    Ok(())
}

/// The machine of a target, which is woken for it.
pub(super) async fn runs(handle: &Arc<Handle>) -> Result<Awake, Error> {
    handle.awake().await.map_err(|error| match error.code {
        "computer_stopped" => {
            let name = handle.name();
            error.hint(format!("a merge goes through what runs: `den start {name}` first; `--dry-run` needs no start"))
        }
        _ => error,
    })
}

fn merge_failed(message: String, cause: Error) -> Error {
    // That the computer ended meanwhile is nobody's fault here.
    let error = match cause.status {
        500.. => Error::new("merge_failed", 500, message)
            .hint("`den doctor` and the log of `den serve` say more; it may be tried again"),
        _ => Error::new("merge_failed", 409, format!("{message}: {}", cause.message))
            .hint("start it if it does not run, and merge again"),
    };
    error.because(cause)
}

/// The words of the step.
fn argv(theirs: &str, request: &MergeRequest) -> Vec<String> {
    let mut words = vec!["merge".to_owned(), theirs.to_owned()];
    for (word, paths) in [("--path", &request.paths), ("--ours", &request.ours), ("--theirs", &request.theirs)] {
        words.extend(paths.iter().flat_map(|path| [word.to_owned(), path.clone()]));
    }
    words
}

fn view(base: String, plan: Plan) -> MergeView {
    let Plan { mut files, count, mut conflicts, skipped, volumes, .. } = plan;
    let truncated = files.len() > FILES_MAX || conflicts.len() > CONFLICTS_MAX;
    files.truncate(FILES_MAX);
    conflicts.truncate(CONFLICTS_MAX);
    MergeView { base, files, truncated, count, conflicts, skipped, volumes, step: None, before: None }
}
