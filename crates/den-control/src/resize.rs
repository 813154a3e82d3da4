//! Another size for a computer that is there, whether it runs or not.
//!
//! ```text
//! task ─► pool ─► `resizing` ─► disk, memory, CPU, processes ─► row (flushed, with what leads back) ─► shown
//!                    └── a start that finds it sets what the row says ──────────┘
//! ```
//!
//! Invariants:
//! - A size that is refused changes nothing.
//! - Nothing inside is ended by it: a disk never becomes smaller than what is used of it, and memory only after
//!   what is beyond could be taken back, while all of it stands still.
//! - A crash leaves the old size everywhere or the new one, once the next start has looked at it.

use std::sync::Arc;

use den_api::ChangeComputer;
use den_machine::{Machine, MachineError};
use den_model::{Bytes, ComputerId, EventKind, Limits, Request};
use den_store::Durability;
use den_sys::{
    SysError,
    cgroup::{Cgroups, Freezer},
    failpoint, pageout,
};
use serde_json::json;

use crate::{
    Error,
    control::{Inner, blocking, now},
    errors::chain,
    handle::Handle,
    limits::{RESIZE_MEMORY_WAIT, RESIZE_STAND_WAIT},
    spec,
    task::Task,
    undo::What,
    usage::cgroup_of,
};

/// Which size.
pub(crate) enum Size {
    /// What is not named stays.
    Changed(ChangeComputer),
    /// As it was before the change of this number, where nothing has changed since.
    Back {
        /// Of what is taken back.
        number: u64,
        /// Then.
        before: Limits,
        /// Since.
        after: Limits,
    },
}

impl Size {
    /// Whether a change asks for any.
    pub(crate) fn is_named(change: &ChangeComputer) -> bool {
        let ChangeComputer { cpus, memory, disk, pids, .. } = change;
        cpus.is_some() || memory.is_some() || disk.is_some() || pids.is_some()
    }

    /// What comes of `from`, and what it takes back.
    ///
    /// Errors: `bad_size`, `changed_since`.
    fn of(self, from: Limits) -> Result<(Limits, Option<u64>), Error> {
        match self {
            Self::Changed(ChangeComputer { cpus, memory, disk, pids, .. }) => {
                let to = spec::limits(cpus.as_ref(), memory.as_ref(), disk.as_ref(), pids, from)?;
                Ok((to, None))
            }
            Self::Back { number, before, after } if after == from => Ok((before, Some(number))),
            Self::Back { .. } => Err(changed_since()),
        }
    }
}

/// It cannot be taken back to what it was, for it is not what it was made.
pub(crate) fn changed_since() -> Error {
    Error::new("changed_since", 409, "its size was changed again since")
        .hint("take the later change back first, or change it with `den resize`")
}

impl Task {
    /// Gives it another size.
    pub(crate) async fn resize(&self, size: Size, who: &str) -> Result<(), Error> {
        let (inner, handle, id) = (&self.inner, &self.handle, self.handle.id);
        handle.plugged()?;
        handle.after(Request::Resize)?;
        let from = handle.limits();
        let (to, takes_back) = size.of(from)?;
        if to == from {
            return Ok(());
        }
        let mut machine = self.machine();
        if machine.as_ref().is_some_and(Machine::is_on_disk) {
            // It gets its size when it is brought back, with room for what it had.
            if to.memory < from.memory {
                return Err(memory_on_disk(handle));
            }
            machine = None;
        }
        // What is more is taken of the pool first, what is less is given back last.
        inner.pools.change(id, &larger(from, to))?;
        let recorded = match hold_to(inner, handle, machine.as_ref(), from, to).await {
            Ok(()) => {
                failpoint::hit("resize.held");
                let undo = What::Resize { before: from, after: to }.record(handle, who, now(), takes_back);
                inner.store.set_limits(id, to, undo, Durability::Power).await.map_err(Error::from)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            settle(inner, id, machine.as_ref(), from).await;
            inner.pools.change(id, &from)?;
            return Err(error);
        }
        failpoint::hit("resize.row");
        handle.resized(to);
        inner.pools.change(id, &to)?;
        if let Err(error) = inner.disks()?.end_resize(id) {
            tracing::warn!(computer = %id, error = chain(&error), "the next start sets its size again");
        }
        failpoint::hit("resize.done");
        tracing::info!(computer = %id, name = %handle.name(), who, before = ?from, after = ?to, "a size has changed");
        let detail = json!({ "before": from, "after": to });
        inner.events.tell(EventKind::Resized, Some(handle), Some(who), detail);
        Ok(())
    }
}

fn larger(one: Limits, other: Limits) -> Limits {
    Limits {
        cpus: one.cpus.max(other.cpus),
        memory: one.memory.max(other.memory),
        disk: one.disk.max(other.disk),
        pids: one.pids.max(other.pids),
    }
}

/// Has the kernel hold it to another size. Where it refuses, some of it may hold already.
async fn hold_to(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    machine: Option<&Machine>,
    from: Limits,
    to: Limits,
) -> Result<(), Error> {
    let (disks, id) = (inner.disks()?, handle.id);
    let lowers = machine.filter(|_| to.memory < from.memory).cloned();
    let (house, computer) = (Arc::clone(inner), Arc::clone(handle));
    blocking(move || {
        if to.disk < from.disk
            && let Some(used) = disks.used_now(id)?
            && used > to.disk
        {
            return Err(disk_in_use(&computer, used, to.disk));
        }
        disks.begin_resize(id)?;
        failpoint::hit("resize.begun");
        if let Some(machine) = &lowers
            && let Err(error) = lower_memory(&house, &computer, machine, from.memory, to.memory)
            && !machine.is_dead()
        {
            return Err(error);
        }
        if to.disk != from.disk {
            disks.resize(id, to.disk)?;
        }
        Ok(())
    })
    .await??;
    failpoint::hit("resize.part");
    hold_machine(inner, machine, to).await
}

/// One whose processes end meanwhile, or lie on the disk, is held to nothing.
async fn hold_machine(inner: &Inner, machine: Option<&Machine>, to: Limits) -> Result<(), Error> {
    let Some(machine) = machine.filter(|machine| !machine.is_on_disk()) else { return Ok(()) };
    match inner.machines.set_limits(machine.id(), &to).await {
        Err(error) if !machine.is_dead() => Err(error.into()),
        _ => Ok(()),
    }
}

/// All of it stands still meanwhile, so that nothing inside asks for more in between.
fn lower_memory(inner: &Inner, handle: &Handle, machine: &Machine, from: Bytes, to: Bytes) -> Result<(), Error> {
    let cgroups = Cgroups::look(inner.history.instance()).map_err(host)?;
    let name = cgroup_of(machine);
    let refused = |held| memory_in_use(handle, Bytes(held), to);
    let held = cgroups.memory_held(&name);
    if held > to.0 && pageout::swap_bytes() == 0 {
        return Err(refused(held));
    }
    let _turn = handle.stand.turn();
    let mut freezer = inner.history.freezer(machine);
    if let Some(freezer) = &mut freezer {
        let stands = freezer.begin().and_then(|()| freezer.wait(RESIZE_STAND_WAIT));
        if handle.stand.is_wanted() {
            freezer.keep();
        }
        if !stands.map_err(host)? && !handle.stand.is_wanted() {
            let message =
                format!("`{}` did not stand still, as it has to while its memory becomes less", handle.name());
            return Err(Error::new("pause_failed", 409, message)
                .hint("something inside waits for the host's kernel; try again")
                .retryable());
        }
    }
    let lowered = cgroups.lower_memory(&name, from.0, to.0, RESIZE_MEMORY_WAIT);
    if handle.stand.is_wanted() {
        freezer.iter_mut().for_each(Freezer::keep); // Cut off meanwhile.
    }
    drop(freezer);
    match lowered.map_err(host)? {
        true => Ok(()),
        false => Err(refused(cgroups.usage(&name).memory_bytes)),
    }
}

fn host(error: SysError) -> Error {
    Error::from(MachineError::from(error))
}

fn disk_in_use(handle: &Handle, used: Bytes, wanted: Bytes) -> Error {
    let name = handle.name();
    Error::new("disk_in_use", 409, format!("`{name}` uses {used} of its disk, with its states: more than {wanted}"))
        .hint(format!(
            "delete files inside and old states with `den snaps rm {name} STATE`, or ask for more than {used}"
        ))
}

fn memory_in_use(handle: &Handle, used: Bytes, wanted: Bytes) -> Error {
    let name = handle.name();
    let message = format!("`{name}` uses {used} of memory that cannot be taken from it: more than {wanted}");
    Error::new("memory_in_use", 409, message)
        .hint(format!("end what uses it, or stop it with `den stop {name}`, resize it and start it again"))
}

fn memory_on_disk(handle: &Handle) -> Error {
    let name = handle.name();
    let message = format!("the memory of `{name}` lies on the disk, and has to fit when it comes back");
    Error::new("memory_in_use", 409, message).hint(format!("`den resume {name}` brings it back; resize it then"))
}

/// Ends a resize that a crash cut off, or that was refused: what the row says holds. What goes wrong is tried again
/// by the next start.
pub(crate) async fn settle(inner: &Inner, id: ComputerId, machine: Option<&Machine>, limits: Limits) {
    let Ok(disks) = inner.disks() else { return };
    if !disks.is_resizing(id) {
        return;
    }
    let settled = async {
        hold_machine(inner, machine, limits).await?;
        blocking(move || disks.resize(id, limits.disk).and_then(|()| disks.end_resize(id))).await??;
        Ok::<_, Error>(())
    };
    if let Err(error) = settled.await {
        tracing::error!(computer = %id, error = error.chain(), "its size may be another than its row says");
    }
}
