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
//! - No state is kept while the agent is at it, so that none has half of a merge.
//! - It goes on without its caller.

use std::{io, sync::Arc};

use den_api::{MergeRequest, MergeView, RestoreRequest, SnapshotView};
use den_disk::Identity;
use den_history::{
    State,
    merge::{Content, MergeOptions, Op, Plan, plan},
};
use den_machine::{ApplyContent, LinkError};
use den_model::{Snapshot, SnapshotKind, StateName, StateRef, Step, StepEnd, StepKind};
use den_store::Durability;
use den_sys::failpoint;
use den_wire::agent::{ApplyOp, FailureKind};
use tokio::sync::oneshot;

use super::{
    Resolved, Wanted,
    diff::same_image,
    look::{chosen, looking, still_there},
    take,
};
use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    handle::Handle,
    steps::{Live, finish},
};

/// Paths that an answer names.
const FILES_MAX: usize = 10_000;
/// Conflicts that an answer names.
const CONFLICTS_MAX: usize = 1000;

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
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let from: StateRef = request.from.parse()?;
        let options = MergeOptions {
            paths: chosen(&request.paths)?,
            ours: chosen(&request.ours)?,
            theirs: chosen(&request.theirs)?,
        };
        if self.0.registry.find(&from.computer)?.id == handle.id {
            let message = format!("`{}` is merged into itself", handle.name());
            return Err(Error::bad_request(message)
                .hint(format!("`den restore {}` goes back to an older state of it", request.from)));
        }
        if !request.dry_run {
            runs(&handle)?;
        }
        let merge = self.plan(&handle, &from, options).await?;
        let conflicts = merge.plan.conflicts.len();
        if request.dry_run || conflicts > 0 || merge.plan.ops.is_empty() {
            return Ok(view(merge.base, merge.plan));
        }
        let (told, done) = oneshot::channel();
        let (control, argv, who) = (self.clone(), argv(&merge.theirs.held.shown, &request), who.0.clone());
        self.0.tasks.spawn(async move {
            // The client may have gone; the merge has not.
            let _ = told.send(control.carry_out(&handle, merge, argv, who).await);
        });
        done.await.map_err(|_| Error::shutting_down())?
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
        looking(move || {
            let (base_state, ours_state, theirs_state) = (base.open()?, ours.open()?, theirs.open()?);
            let plan = plan(&base_state, &ours_state, &theirs_state, since, &options)?;
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
    ) -> Result<MergeView, Error> {
        let inner = &self.0;
        let machine = runs(handle)?;
        let Merge { base, ours, theirs, mut plan } = merge;
        let (ops, content) = sending(std::mem::take(&mut plan.ops), ours, theirs);
        handle.history.settled().await;
        let turn = handle.history.turn().await?;
        let wanted = Wanted::of(SnapshotKind::Merge);
        let before = take(inner, handle, &turn, wanted).await?;
        failpoint::hit("merge.kept");
        handle.steps.room()?;
        let live = self.begin(handle, argv, who).await?;
        let step = live.step.number;
        failpoint::hit("merge.step");
        let applied = machine.link().apply(step, ops, content).await;
        failpoint::hit("merge.applied");
        drop(turn);
        match applied {
            Ok(()) => {
                finish(inner, handle, &live, StepEnd::Exited { code: 0 }, 0).await;
                tracing::info!(computer = %handle.id, name = %handle.name(), step, "a fork was merged");
                let mut view = view(base, plan);
                view.step = Some(step);
                view.before = Some(SnapshotView::from(&before));
                Ok(view)
            }
            Err(error) => Err(self.undo(handle, &live, &before, error).await),
        }
    }

    /// After a merge that did not come about: says why, and has the state before again if there may be another.
    async fn undo(&self, handle: &Arc<Handle>, live: &Live, before: &Snapshot, error: LinkError) -> Error {
        let untouched = matches!(&error, LinkError::Failed(failure) if failure.kind != FailureKind::HalfDone);
        let told = handle.link_error(error);
        let name = handle.name();
        let told = if untouched {
            match told.code {
                "disk_full" | "changed_meanwhile" | "unsupported" | "no_processes" => told,
                _ => merge_failed(format!("nothing was merged into `{name}`"), told),
            }
        } else {
            let restore = RestoreRequest { state: StateName::Snapshot(before.number).to_string() };
            match self.restore(&handle.id.to_string(), restore, &Who("merge".to_owned())).await {
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
    async fn begin(&self, handle: &Handle, argv: Vec<String>, who: String) -> Result<Arc<Live>, Error> {
        let number = handle.steps.number();
        let step = Step::begun(number, StepKind::Merge, argv, who, now());
        let row = self.0.store.insert_step(handle.id, &step, Durability::Process);
        let live = Live::new(step, None);
        handle.steps.add(&live);
        if let Err(error) = row.await {
            handle.steps.forget(number);
            return Err(error.into());
        }
        Ok(live)
    }
}

/// The operations for the agent, and what gives the bytes of their files. It holds the states.
fn sending(
    ops: Vec<Op>,
    ours: Opened,
    theirs: Opened,
) -> (Vec<ApplyOp>, impl FnMut(usize) -> io::Result<ApplyContent> + Send + 'static) {
    let (ops, sources): (Vec<_>, Vec<_>) = ops.into_iter().map(|op| (op.op, op.source)).unzip();
    let content = move |index: usize| {
        let _held = (&ours.held, &theirs.held);
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
    let (hostname, limit) = (handle.name().to_string(), handle.spec.limits.disk);
    let (back, kept) = (to.number, before.number);
    blocking(move || {
        let identity = Identity { hostname: &hostname, machine_id: id.uuid().into_bytes() };
        disks.restore_prepare(id, back, limit, &identity)?;
        disks.restore_commit(id, kept)
    })
    .await??;
    handle.history.went(inner, handle, &before).await;
    tracing::warn!(computer = %id, name = %handle.name(), step = step.number, to = back, "half a merge was taken back");
    Ok(())
}

/// The machine of a target.
fn runs(handle: &Handle) -> Result<den_machine::Machine, Error> {
    handle.admit().map_err(|error| match error.code {
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
    let Plan { mut files, count, mut conflicts, .. } = plan;
    let truncated = files.len() > FILES_MAX || conflicts.len() > CONFLICTS_MAX;
    files.truncate(FILES_MAX);
    conflicts.truncate(CONFLICTS_MAX);
    MergeView { base, files, truncated, count, conflicts, step: None, before: None }
}
