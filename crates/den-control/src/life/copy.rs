//! Copies of what runs: a computer goes on, and others go on from where it was.
//!
//! ```text
//! looked at ─► shown as paused ─► agent rests ─► dump ─ frozen ─► state of the disk, logs ─► goes on ─► agent wakes
//!                                                                      └─► DATA/computers/.copies/<id> ─► children
//! ```
//!
//! Invariants:
//! - Memory, disk and logs of a copy are of one instant: nothing of the computer moves between them.
//! - The computer goes on whatever becomes of the copy, as the same processes with the same connections. What goes
//!   through its agent is joined anew afterwards, or is waited for, or breaks: see [`Transfers`].
//! - A copy is there while somebody makes something of it. The next start drops what a crash left.

use std::{
    io,
    path::{Path, PathBuf},
};

use den_machine::{Criu, CriuError, Dump, Machine};
use den_model::{ComputerId, Request, State, Step, StepNumber};
use den_sys::failpoint;
use tokio::{sync::RwLockWriteGuard, time::timeout};

use super::{
    hibernate::{NEW, WHOLE, criu, forget, fresh, home},
    pause::By,
};
use crate::{
    Error,
    control::{Inner, blocking, now},
    create::{new_id, shared},
    errors::chain,
    handle::Handle,
    history::{Resolved, Turn, held, keep},
    limits::{DIALS_MAX, PAUSE_INSIDE_WAIT},
    task::Task,
};

/// Where copies lie, among the homes of computers.
const COPIES: &str = ".copies";
/// The logs of steps that run, in the folder of a copy.
const STEPS: &str = "steps";
/// What CRIU wrote, in that folder.
const IMAGES: &str = "images";
/// Pages of memory, which nobody writes to once they are there.
const PAGES: &str = "pages-";
/// What is known beside the images.
const FACTS: &str = "den";

/// What becomes of files and connections that are on their way through the agent, which lets go of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfers {
    /// No copy is made while there are any.
    Spared,
    /// They break.
    Cut,
}

/// What ran in a computer, beside the state of the disk at that instant.
pub(crate) struct Copy {
    /// The state of the disk.
    from: Option<Resolved>,
    /// Steps that run in it.
    pub steps: Vec<Step>,
    folder: PathBuf,
}

impl Drop for Copy {
    fn drop(&mut self) {
        forget(&self.folder);
    }
}

impl Copy {
    /// The state of the disk at that instant, once.
    pub(crate) fn take_state(&mut self) -> Result<Resolved, Error> {
        self.from.take().ok_or_else(|| Error::internal("a copy without a state of the disk"))
    }

    /// Gives a computer the memory, with the logs of what runs in it. Its disk is there, and it has no processes.
    pub(crate) async fn give(&self, inner: &Inner, to: ComputerId) -> Result<(), Error> {
        let (home, logs) = (home(inner, to), inner.disks()?.disk(to).steps);
        let (new, whole) = (home.join(NEW), home.join(WHOLE));
        let (folder, steps) = (self.folder.clone(), self.steps.iter().map(|step| step.number).collect::<Vec<_>>());
        let given = blocking(move || {
            clone_images(&folder, &new)?;
            for number in steps {
                let name = log_name(number);
                std::fs::copy(folder.join(STEPS).join(&name), logs.join(&name))?;
            }
            // It was written to by its agent: it is safe before it counts.
            rustix::fs::syncfs(std::fs::File::open(&new)?)?;
            std::fs::rename(new, whole)
        });
        given.await?.map_err(|error| Error::internal("memory cannot be given to a fork").because(error))
    }
}

/// Copies CRIU's images and what is known beside them. Pages are shared where the file system can.
fn clone_images(from: &Path, to: &Path) -> io::Result<()> {
    fresh(to)?;
    std::fs::copy(from.join(FACTS), to.join(FACTS))?;
    std::fs::create_dir(to.join(IMAGES))?;
    for entry in std::fs::read_dir(from.join(IMAGES))? {
        let entry = entry?;
        let name = entry.file_name();
        let target = to.join(IMAGES).join(&name);
        let shared = name.to_string_lossy().starts_with(PAGES) && std::fs::hard_link(entry.path(), &target).is_ok();
        if !shared {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn log_name(step: StepNumber) -> String {
    format!("{step}.log")
}

/// Drops what a daemon left that died while it copied.
pub(crate) fn sweep(inner: &Inner) {
    forget(&copies(inner));
    if let Err(error) = make(&copies(inner)) {
        tracing::error!(error = chain(&error), "copies of memory have no place");
    }
}

fn copies(inner: &Inner) -> PathBuf {
    inner.data.join("computers").join(COPIES)
}

fn make(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)
}

fn place(inner: &Inner) -> io::Result<PathBuf> {
    let copies = copies(inner);
    make(&copies)?;
    Ok(copies.join(new_id().to_string()))
}

/// What goes through the agent and would break if it rested.
pub(crate) fn under_way(handle: &Handle) -> Option<&'static str> {
    match (handle.doors.carries(), handle.dials.available_permits() < DIALS_MAX) {
        (true, _) => Some("a file"),
        (_, true) => Some("a connection to a port"),
        _ => None,
    }
}

impl Task {
    /// Copies what runs, for others to go on from.
    pub(crate) async fn copy(&self, who: &str, transfers: Transfers) -> Result<Copy, Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        handle.plugged()?;
        if matches!(handle.state(), State::Stopped | State::Failed) {
            let message =
                format!("`{}` is {}: nothing runs that a fork could go on with", handle.name(), handle.state());
            return Err(Error::new("computer_stopped", 409, message).hint("without --memory a fork has the disk"));
        }
        let criu = criu(inner).await.map_err(|why| Error::unsupported_memory_fork(handle.name(), &why))?;
        let home = home(inner, handle.id);
        let folder = place(inner).map_err(|error| self.not_kept(&error))?;
        // From here on it goes with whoever has it.
        let mut copy = Copy { from: None, steps: Vec::new(), folder: folder.clone() };
        let machine = self.machine();
        let stood = handle.state() == State::Paused;
        if let Some(machine) = machine.as_ref().filter(|machine| stood && machine.is_on_disk()) {
            tracing::debug!(computer = %machine.id(), "its memory is on the disk already");
            let turn = handle.history.turn().await?;
            let (whole, to) = (home.join(WHOLE), folder);
            blocking(move || clone_images(&whole, &to)).await?.map_err(|error| self.not_kept(&error))?;
            self.fix(&mut copy, &turn).await?;
            return Ok(copy);
        }
        if !stood {
            handle.after(Request::Pause)?;
        }
        let machine = machine.ok_or_else(|| Error::internal("it runs without a machine"))?;
        let looked_at = machine.clone();
        let folders = shared(inner, handle)?;
        blocking(move || looked_at.may_be_written(&folders)).await?.map_err(|error| self.not_copied(error))?;
        self.room(&home).await?;
        let asleep = handle.status.borrow().asleep;
        if stood {
            // Its agent has to answer.
            self.resume(By::Who(who.to_owned())).await?;
        }
        let copied = self.copy_running(&criu, &machine, &home, &mut copy, transfers).await;
        // One that slept by itself does so again.
        if stood
            && !asleep
            && !machine.is_dead()
            && let Err(error) = self.pause(By::Who(who.to_owned())).await
        {
            tracing::error!(computer = %handle.id, error = error.chain(), "it was paused, and is not any more");
        }
        copied.map(|()| copy)
    }

    async fn copy_running(
        &self,
        criu: &Criu,
        machine: &Machine,
        home: &Path,
        copy: &mut Copy,
        transfers: Transfers,
    ) -> Result<(), Error> {
        let handle = &self.handle;
        handle.history.settled().await;
        // No state is kept meanwhile: that freezes it too.
        let turn = handle.history.turn().await?;
        let paused = handle.after(Request::Pause)?;
        self.show(paused, None, now());
        failpoint::hit("copy.shown");
        let written = match self.alone(transfers).await {
            Ok(_words) => self.write_copy(criu, machine, home, &turn, copy).await,
            Err(error) => Err(error),
        };
        if !machine.is_dead() {
            self.show(State::Running, None, now());
        }
        written?;
        let (new, to) = (home.join(NEW), copy.folder.clone());
        blocking(move || std::fs::rename(new, to)).await?.map_err(|error| self.not_kept(&error))?;
        failpoint::hit("copy.there");
        Ok(())
    }

    /// Waits until nobody is at it, who comes now waiting in turn; input waits until the answer is dropped.
    ///
    /// Errors: `unsupported` where somebody stays who is to be spared.
    async fn alone(&self, transfers: Transfers) -> Result<Option<RwLockWriteGuard<'_, ()>>, Error> {
        let handle = &self.handle;
        let left = handle.doors.all_left(PAUSE_INSIDE_WAIT).await;
        let words = timeout(PAUSE_INSIDE_WAIT, handle.doors.words.write()).await.ok();
        let stays = match (left, &words) {
            (false, _) => Some("a request"),
            (_, None) => Some("input that nothing reads"),
            _ => under_way(handle),
        };
        match stays {
            Some(what) if transfers == Transfers::Spared => {
                Err(Error::unsupported_memory_fork(handle.name(), &format!("{what} is on its way, and would break")))
            }
            _ => Ok(words),
        }
    }

    async fn write_copy(
        &self,
        criu: &Criu,
        machine: &Machine,
        home: &Path,
        turn: &Turn,
        copy: &mut Copy,
    ) -> Result<(), Error> {
        let new = home.join(NEW);
        let shared = shared(&self.inner, &self.handle)?;
        let calls = self.have_rest(machine, &new).await?;
        failpoint::hit("copy.rests");
        let mut fixed = Ok(());
        let commit = async {
            fixed = self.fix_in(&new, copy, turn).await;
            fixed.is_ok()
        };
        let dump = Dump { criu, folder: &new, goes_on: true, shared: &shared };
        let dumped = machine.dump(dump, commit).await;
        failpoint::hit("copy.dumped");
        self.wake_agent(machine, calls).await;
        let result = fixed.and_then(|()| dumped.map_err(|error| self.not_copied(error)));
        if result.is_err() {
            forget(&new);
        }
        result
    }

    /// The state of the disk and the logs of the steps that run, while all of it stands still.
    async fn fix(&self, copy: &mut Copy, turn: &Turn) -> Result<(), Error> {
        let folder = copy.folder.clone();
        self.fix_in(&folder, copy, turn).await
    }

    async fn fix_in(&self, folder: &Path, copy: &mut Copy, turn: &Turn) -> Result<(), Error> {
        let (inner, handle) = (&self.inner, &self.handle);
        let state = keep::now_of_still(inner, handle, turn).await?;
        copy.from = Some(held(inner, handle, state)?);
        let steps = inner.store.running_steps(handle.id).await?;
        let mut logs = Vec::new();
        for step in steps.into_iter().filter(|step| step.kind.has_log()) {
            // One whose log is gone has nothing that it could go on with.
            if let Ok(Some(log)) = handle.steps.logs.open(step.number) {
                logs.push((step.number, log));
                copy.steps.push(step);
            }
        }
        let folder = folder.join(STEPS);
        let copied = blocking(move || {
            std::fs::create_dir(&folder)?;
            logs.iter_mut().try_for_each(|(number, log)| {
                let mut to = std::fs::File::create(folder.join(log_name(*number)))?;
                io::copy(log, &mut to).map(drop)
            })
        });
        copied.await?.map_err(|error| self.not_kept(&error))
    }

    fn not_copied(&self, error: CriuError) -> Error {
        match error.refusal() {
            Ok(why) => Error::unsupported_memory_fork(self.handle.name(), &why),
            Err(error) => {
                let message = format!("the memory of `{}` was not copied: it goes on", self.handle.name());
                Error::new("fork_failed", 500, message).because(error)
            }
        }
    }
}
