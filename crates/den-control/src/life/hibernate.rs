//! Memory on the disk: pausing so that nothing runs any more, and going on from there.
//!
//! ```text
//! DATA/computers/<id>/memory.new    being written: counts for nothing
//! DATA/computers/<id>/memory        whole: the computer is paused, and this is where it goes on
//! DATA/computers/<id>/memory.used   read back: goes away
//!
//! pause --to-disk  looked at ─► shown ─► agent rests ─► dump ─ frozen ─► flushed, renamed ─► ended ─► row
//! resume, wake     memory read back ─► the launcher has it: renamed ─► goes on ─► agent wakes ─► row
//! ```
//!
//! Invariants:
//! - The folder decides, not the row: with processes it is what failed or was used, without them a computer that
//!   is said to run or to be paused goes on from it.
//! - Memory is read back once. What went on from it has changed the disk, to which it would not fit any more.
//! - Whatever else becomes of the computer (stopped, taken back, removed) takes its memory with it.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use den_api::{ComputerView, MemoryView};
use den_machine::{Criu, CriuError, Dump, Machine};
use den_model::{Bytes, Computer, ComputerId, EventKind, Request, State};
use den_store::Durability;
use den_sys::failpoint;
use serde_json::json;

use super::pause::By;
use crate::{
    Error, Who,
    control::{Control, Inner, blocking, now},
    create::{plan, shared},
    errors::chain,
    handle::{Ask, Handle},
    limits::{MEMORY_BESIDE, PAUSE_INSIDE_WAIT},
    task::Task,
};

/// How long a CRIU that nobody answers may take to give up, and how often it is looked for.
const LEFT_ALONE_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(super) const NEW: &str = "memory.new";
pub(super) const WHOLE: &str = "memory";
const USED: &str = "memory.used";

impl Control {
    /// Writes the memory of a computer to the disk: nothing of it runs any more, and a request wakes it as one that
    /// is paused.
    ///
    /// Errors: `computer_not_found`, `wrong_state`, `unplugged`, `unsupported` with the reason, `host_full`,
    /// `pause_failed`. It goes on then.
    pub async fn hibernate(&self, computer: &str, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let who = who.0.clone();
        handle.ask(|reply| Ask::Hibernate { who, reply }).await?;
        Ok(handle.view())
    }

    /// What can be done with the memory of a computer.
    pub(crate) async fn memory(&self, handle: &Arc<Handle>) -> Option<MemoryView> {
        let machine = handle.status.borrow().machine.clone().filter(|machine| !machine.is_dead())?;
        let on_disk = machine.is_on_disk();
        let shared = shared(&self.0, handle).ok()?;
        let why = match criu(&self.0).await {
            Err(why) => Some(why),
            Ok(_) if on_disk => None,
            Ok(_) => {
                blocking(move || machine.may_be_written(&shared).err().map(|error| error.to_string())).await.ok()?
            }
        };
        Some(MemoryView { on_disk, hibernate: why.is_none(), memory_fork: why.is_none(), reason: why })
    }
}

/// CRIU, looked for once.
pub(super) async fn criu(inner: &Arc<Inner>) -> Result<Criu, String> {
    if let Some(found) = inner.criu.get() {
        return found.clone();
    }
    let house = Arc::clone(inner);
    let found =
        blocking(move || house.criu.get_or_init(|| Criu::find(house.criu_named.as_deref(), &house.data)).clone());
    found.await.unwrap_or_else(|error| Err(error.message))
}

pub(super) fn home(inner: &Inner, id: ComputerId) -> PathBuf {
    inner.data.join("computers").join(id.to_string())
}

impl Task {
    /// Writes its memory down and ends what runs.
    pub(crate) async fn hibernate(&self, who: &str) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        handle.plugged()?;
        if handle.state() == State::Paused && self.machine().is_some_and(|machine| machine.is_on_disk()) {
            return Ok(());
        }
        let criu = criu(inner).await.map_err(|why| Error::unsupported_memory(handle.name(), &why))?;
        if handle.state() != State::Paused {
            handle.after(Request::Pause)?;
        }
        let machine = self.machine().ok_or_else(|| Error::internal("it runs without a machine"))?;
        let looked_at = machine.clone();
        let folders = shared(inner, handle)?;
        blocking(move || looked_at.may_be_written(&folders)).await?.map_err(|error| self.not_written(error))?;
        let home = home(inner, handle.id);
        self.room(&home).await?;
        // One that is paused is not gone on with for a refusal.
        if handle.state() == State::Paused {
            // Its agent has to answer.
            self.resume(By::Who(who.to_owned())).await?;
        }
        let paused = handle.after(Request::Pause)?;
        // No state is kept meanwhile: that freezes it too.
        let _turn = handle.history.turn_of_restore().await?;
        self.show(paused, None, now());
        failpoint::hit("hibernate.shown");
        handle.doors.all_left(PAUSE_INSIDE_WAIT).await;
        let written = self.write_down(&criu, &machine, &home).await;
        if let Err(error) = written {
            if !machine.is_dead() {
                self.show(State::Running, None, now());
            }
            return Err(error);
        }
        failpoint::hit("hibernate.ended");
        inner.gate.detach(handle.id).await;
        inner.store.set_state(handle.id, paused, None, now(), None, Durability::Power).await?;
        failpoint::hit("hibernate.row");
        inner.pools.stands(handle.id, paused, false);
        inner.events.tell(EventKind::Paused, Some(handle), Some(who), json!({ "to_disk": true }));
        Ok(())
    }

    async fn write_down(&self, criu: &Criu, machine: &Machine, home: &Path) -> Result<(), Error> {
        let (new, whole) = (home.join(NEW), home.join(WHOLE));
        let calls = self.have_rest(machine, &new).await?;
        failpoint::hit("hibernate.rests");
        let shared = shared(&self.inner, &self.handle)?;
        let dump = Dump { criu, folder: &new, goes_on: false, shared: &shared };
        let (from, to) = (new.clone(), whole.clone());
        let commit = async move {
            let kept = blocking(move || keep(&from, &to)).await;
            match kept {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::error!(error = chain(&error), "memory that was written cannot be kept");
                    false
                }
                Err(_) => false,
            }
        };
        let Err(error) = machine.dump(dump, commit).await else { return Ok(()) };
        if machine.is_on_disk() {
            // It counts, and what is left of its processes ends with the launcher's next breath.
            tracing::error!(computer = %self.handle.id, error = chain(&error), "something of it may still run");
            return Ok(());
        }
        // It goes on as it was.
        self.wake_agent(machine, calls).await;
        blocking(move || {
            forget(&new);
            forget(&whole);
        })
        .await?;
        Err(self.not_written(error))
    }

    /// An empty folder for its memory, and its agent lets go of the host; what [`Task::wake_agent`] wants.
    pub(super) async fn have_rest(&self, machine: &Machine, new: &Path) -> Result<Option<OwnedFd>, Error> {
        let made = new.to_owned();
        blocking(move || fresh(&made)).await?.map_err(|error| self.not_kept(&error))?;
        match machine.link().rest().await {
            Ok(calls) => {
                self.handle.doors.rested();
                logs_stand(&self.handle);
                Ok(calls)
            }
            Err(error) => {
                // It may rest, and its answer be lost.
                come_back(&self.handle, machine).await;
                forget(new);
                Err(self.handle.link_error(error))
            }
        }
    }

    /// Has an agent that rests take up its work.
    pub(super) async fn wake_agent(&self, machine: &Machine, calls: Option<OwnedFd>) {
        let logs = &self.handle.steps.logs;
        if let Err(error) = machine.wake(calls, |step| logs.go_on(step)).await {
            tracing::error!(computer = %self.handle.id, error = chain(&error), "its agent does not come back");
        }
    }

    /// Whether its memory has room on the disk.
    pub(super) async fn room(&self, home: &Path) -> Result<(), Error> {
        let usage = self.inner.machines.usage(self.handle.id).await?;
        let facts = rustix::fs::statvfs(home).map_err(|errno| self.not_kept(&errno.into()))?;
        let free = facts.f_bavail.saturating_mul(facts.f_frsize);
        let wanted = usage.memory_bytes.saturating_add(MEMORY_BESIDE.0);
        if free < wanted {
            let message = format!(
                "the memory of `{}` takes up to {}, and the disk has {} free",
                self.handle.name(),
                Bytes(wanted),
                Bytes(free)
            );
            return Err(Error::new("host_full", 507, message).hint("make room on the disk of the data folder"));
        }
        Ok(())
    }

    /// Goes on from its memory on the disk.
    pub(crate) async fn revive(&self, machine: &Machine) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        inner.open_for_work()?;
        let criu = criu(inner).await.map_err(|why| self.not_woken(&why))?;
        let image = inner.images.by_digest(&handle.spec().image_digest)?;
        let home = home(inner, handle.id);
        let disk = inner.disks()?.disk(handle.id);
        let counter = inner.disks()?.counter(handle.id);
        let shared = shared(inner, handle)?;
        let plan = plan(inner, handle, &image, &disk, counter.as_deref(), &shared);
        failpoint::hit("revive.begun");
        let (whole, used) = (home.join(WHOLE), home.join(USED));
        let revived = inner.machines.revive(machine, &plan, &criu, &whole, &used).await;
        revived.map_err(|error| self.not_woken(&error.to_string()).because(error))?;
        failpoint::hit("revive.goes_on");
        inner.gate.attach(handle, machine).await;
        self.wake_agent(machine, None).await;
        inner.tasks.spawn_blocking(move || forget(&used));
        Ok(())
    }

    fn not_written(&self, error: CriuError) -> Error {
        match error.refusal() {
            Ok(why) => Error::unsupported_memory(self.handle.name(), &why),
            Err(error) => {
                let message = format!("the memory of `{}` was not written: it goes on", self.handle.name());
                Error::new("pause_failed", 500, message).because(error)
            }
        }
    }

    pub(super) fn not_kept(&self, error: &io::Error) -> Error {
        let message = format!("the memory of `{}` has no place on the disk: {error}", self.handle.name());
        Error::of_file(message, error, |message| Error::new("pause_failed", 500, message))
    }

    fn not_woken(&self, why: &str) -> Error {
        let name = self.handle.name();
        Error::new("wake_failed", 500, format!("the memory of `{name}` cannot be read back: {why}")).hint(format!(
            "it is kept; `den doctor` says whether this host has CRIU; `den stop {name}` gives it up, not the disk"
        ))
    }
}

/// An empty folder for memory that is to be written: root's alone.
pub(super) fn fresh(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    forget(folder);
    std::fs::DirBuilder::new().mode(0o700).create(folder)
}

/// What was written counts from here on, also after the end of power.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(from)?)?;
    forget(to);
    failpoint::hit("hibernate.written");
    std::fs::rename(from, to)?;
    if let Some(parent) = to.parent() {
        File::open(parent)?.sync_all()?;
    }
    failpoint::hit("hibernate.kept");
    Ok(())
}

pub(super) fn forget(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::error!(folder = %folder.display(), error = chain(&error), "memory is left on the disk"),
    }
}

/// Whether its memory is on the disk.
pub(crate) fn is_kept(inner: &Inner, id: ComputerId) -> bool {
    home(inner, id).join(WHOLE).is_dir()
}

/// Its memory is of no use any more.
pub(crate) fn forget_memory(inner: &Inner, id: ComputerId) {
    let home = home(inner, id);
    [WHOLE, NEW, USED].iter().for_each(|name| forget(&home.join(name)));
}

/// Waits until no CRIU of an earlier daemon works on the memory of a computer any more: nobody says yes to it, so it
/// gives up, and lets the computer go on or ends it. Woken or removed before that, it would stand still for good.
pub(crate) async fn left_alone(inner: &Inner, id: ComputerId) -> Result<(), Error> {
    let home = home(inner, id);
    if ![NEW, WHOLE, USED].iter().any(|name| home.join(name).is_dir()) {
        return Ok(());
    }
    blocking(move || {
        let folder = home.join(WHOLE);
        let since = Instant::now();
        while is_named(folder.as_os_str().as_bytes()) {
            if since.elapsed() > LEFT_ALONE_MAX {
                tracing::error!(folder = %folder.display(), "criu of an earlier daemon does not end");
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    })
    .await
}

/// Whether a process of the host has words on its command line that begin with these.
fn is_named(words: &[u8]) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word.starts_with(words))
    };
    processes.into_iter().any(named)
}

/// What is on the disk of a computer that is taken up: one that goes on from there is paused, with a machine that has
/// no processes. Says whether its agent may rest though it runs.
pub(crate) fn find(inner: &Inner, row: &mut Computer, machine: Option<Machine>) -> (Option<Machine>, bool) {
    let home = home(inner, row.id);
    let (whole, other) = (home.join(WHOLE).is_dir(), home.join(NEW).is_dir() || home.join(USED).is_dir());
    let goes_on = matches!(row.state, State::Running | State::Paused | State::Unplugged);
    if whole && machine.is_none() && goes_on {
        if row.state == State::Running {
            row.state = State::Paused;
        }
        [NEW, USED].iter().for_each(|name| forget(&home.join(name)));
        return (Some(inner.machines.asleep(row.id)), false);
    }
    if whole || other {
        forget_memory(inner, row.id);
    }
    let rests = (whole || other) && machine.is_some();
    (machine, rests)
}

/// The agent has let go of all logs: what it wrote last, and told nobody of, is there to be read too.
fn logs_stand(handle: &Handle) {
    for live in handle.steps.all() {
        let Some(length) = live.log.as_ref().and_then(|log| log.metadata().ok()).map(|facts| facts.len()) else {
            continue;
        };
        live.progress.send_if_modified(|progress| {
            let more = progress.end.is_none() && progress.log_bytes < length;
            if more {
                progress.log_bytes = length;
            }
            more
        });
    }
}

/// Has the agent of a computer come back that may rest: for an earlier daemon, or though it did not say so.
pub(crate) async fn come_back(handle: &Handle, machine: &Machine) {
    let logs = &handle.steps.logs;
    if let Err(error) = machine.come_back(|step| logs.go_on(step)).await {
        tracing::error!(computer = %handle.id, error = chain(&error), "its agent does not come back");
    }
}
