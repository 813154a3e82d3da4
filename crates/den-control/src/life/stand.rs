//! Having the processes of a computer stand still, for a moment or until further notice.
//!
//! ```text
//! pause, unplug ── hold ──► wanted ─► RUN/computers/<id>/frozen ─► freezer on
//! keep a state  ── moment ► freezer on ─► … ─► off again, unless it is wanted
//! resume        ── release ► not wanted ─► freezer off ─► file away
//! ```
//!
//! The file tells the launcher and the next daemon not to let it go on.

use std::{
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use den_machine::Machine;
use den_model::ComputerId;
use den_sys::{SysError, cgroup::Freezer};
use den_wire::launcher::FROZEN;

use crate::{control::Inner, errors::chain};

/// Whether a computer shall stand still, and the right to say so.
#[derive(Default)]
pub(crate) struct Stand {
    wanted: AtomicBool,
    turn: Mutex<()>,
}

impl Stand {
    /// Whether it stands still on purpose, beyond the moment that keeping a state takes.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Keeps others from freezing and thawing.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it stand still as soon as the kernel can; waits for nobody.
    ///
    /// Errors: the host has no freezer, or refuses.
    pub(crate) fn begin(&self, inner: &Inner, machine: &Machine) -> Result<(), SysError> {
        if machine.is_on_disk() {
            return Ok(());
        }
        self.wanted.store(true, Ordering::SeqCst);
        let mut freezer = self.freezer(inner, machine)?;
        // A daemon that dies between these two leaves it running, and its row says the same.
        let frozen = freezer.begin();
        freezer.keep();
        let marked = std::fs::write(file(inner, machine.id()), inner.history.cgroup_name(machine));
        frozen?;
        marked.map_err(|error| SysError::io("write", &file(inner, machine.id()), &error))
    }

    /// As [`Stand::begin`], and waits until all stand: says whether they do. Blocks.
    pub(crate) fn hold(&self, inner: &Inner, machine: &Machine, limit: Duration) -> Result<bool, SysError> {
        if machine.is_on_disk() {
            return Ok(true);
        }
        self.wanted.store(true, Ordering::SeqCst);
        let _turn = self.turn();
        self.begin(inner, machine)?;
        let mut freezer = self.freezer(inner, machine)?;
        freezer.wait(limit)
    }

    /// Lets it go on.
    pub(crate) fn release(&self, inner: &Inner, machine: &Machine) {
        self.wanted.store(false, Ordering::SeqCst);
        let _turn = self.turn();
        match inner.history.freezer(machine) {
            _ if machine.is_on_disk() => {}
            Some(mut freezer) => {
                if let Err(error) = freezer.thaw()
                    && !machine.is_dead()
                {
                    tracing::error!(computer = %machine.id(), error = chain(&error), "it may be left frozen");
                }
            }
            None if machine.is_dead() => {}
            None => tracing::error!(computer = %machine.id(), "its freezer is gone"),
        }
        self.forget(inner, machine.id());
    }

    /// Its processes are about to be ended: what stands in a v1 cgroup could not be.
    pub(crate) fn ending(&self, inner: &Inner, machine: &Machine) {
        if self.is_wanted() && inner.history.freezer(machine).is_some_and(|freezer| !freezer.ends_frozen()) {
            self.release(inner, machine);
        }
    }

    /// Its processes are gone; the launcher takes the file away with its folder.
    pub(crate) fn ended(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }

    /// Nothing of it says any more that it stands.
    fn forget(&self, inner: &Inner, id: ComputerId) {
        match std::fs::remove_file(file(inner, id)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(computer = %id, error = chain(&error), "it may be left frozen by the next start")
            }
        }
    }

    /// Whether an earlier daemon left it standing on purpose.
    pub(crate) fn was_left(inner: &Inner, id: ComputerId) -> bool {
        file(inner, id).exists()
    }

    fn freezer(&self, inner: &Inner, machine: &Machine) -> Result<Freezer, SysError> {
        inner
            .history
            .freezer(machine)
            .ok_or_else(|| SysError::new("open", "the freezer of its cgroup", rustix::io::Errno::NOENT.raw_os_error()))
    }
}

/// Says that it stands still on purpose.
fn file(inner: &Inner, id: ComputerId) -> PathBuf {
    inner.history.home(id).join(FROZEN)
}
