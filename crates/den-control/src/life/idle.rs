//! Finding the computers that nobody uses.
//!
//! ```text
//! every second, of those that run and have an idle time:
//!   step, open door, connection ──► used now
//!   else: first look at CPU and flows ··· the idle time ··· second look: little has changed ─► its task: doze
//! ```
//!
//! Two looks per idle time are all that it costs; whoever comes meanwhile begins it anew.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use den_api::{ChangeComputer, ComputerView};
use den_model::{Idle, IdleError, Micros, State};
use den_store::Durability;

use super::wake::steady;
use crate::{
    Error, Who,
    control::{Control, Inner},
    handle::{Ask, Handle},
    limits::{DIALS_MAX, IDLE_CPU_PERCENT, IDLE_LOOK},
    resize::Size,
};

/// The word for no idle time.
const OFF: &str = "off";

/// When a computer sleeps by itself, and what was seen of it.
#[derive(Default)]
pub(crate) struct IdleCell(Mutex<Cell>);

#[derive(Default, Clone, Copy)]
struct Cell {
    idle: Option<Idle>,
    first: Option<Look>,
}

/// What a computer had used at a moment.
#[derive(Clone, Copy)]
struct Look {
    /// When somebody was last seen before.
    since: Micros,
    at: Micros,
    cpu_us: u64,
    /// That its flows have carried.
    bytes: u64,
}

impl IdleCell {
    fn lock(&self) -> std::sync::MutexGuard<'_, Cell> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self) -> Option<Idle> {
        self.lock().idle
    }

    pub(crate) fn set(&self, idle: Option<Idle>) {
        *self.lock() = Cell { idle, first: None };
    }
}

/// Reads an idle time; `off` is none.
///
/// Errors: `bad_idle`.
pub(crate) fn parse(text: Option<&str>) -> Result<Option<Idle>, Error> {
    match text {
        None | Some(OFF) => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|error: IdleError| {
            Error::new("bad_idle", 400, format!("`idle`: {error}"))
                .hint("it looks like `10m`, `2h:stop` or `off`; a computer is paused without `:stop`")
                .because(error)
        }),
    }
}

impl Control {
    /// Changes what may be changed of a computer while it is there: its size, and when it sleeps by itself.
    ///
    /// Errors: `computer_not_found`, `bad_idle`, `unplugged`; `bad_size`, `disk_in_use`, `memory_in_use`,
    /// `pause_failed`, `wrong_state`, and then nothing is changed.
    pub async fn change(&self, computer: &str, change: &ChangeComputer, who: &Who) -> Result<ComputerView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let idle = parse(change.idle.as_deref())?;
        if Size::is_named(change) {
            let (size, who) = (Size::Changed(change.clone()), who.0.clone());
            handle.ask(|reply| Ask::Resize { size, who, reply }).await?;
        }
        if let Some(text) = &change.idle {
            handle.plugged()?;
            self.0.store.set_idle(handle.id, idle, Durability::Power).await?;
            handle.idle.set(idle);
            handle.doors.seen();
            tracing::info!(computer = %handle.id, name = %handle.name(), who = who.0, idle = text, "its idle time has changed");
        }
        Ok(handle.view())
    }
}

/// Sends computers to sleep that nobody uses, until the house is closed.
pub(crate) fn look_after(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(IDLE_LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if round(&weak).await.is_none() {
                return;
            }
        }
    });
}

/// One look at all; none where the house is closed.
async fn round(house: &Weak<Inner>) -> Option<()> {
    let inner = house.upgrade()?;
    inner.open_for_work().ok()?;
    let with_idle = |handle: &Arc<Handle>| handle.state() == State::Running && handle.idle.get().is_some();
    for handle in inner.registry.all().into_iter().filter(with_idle) {
        if let Some((since, idle)) = look(&inner, &handle).await {
            // One that has its hands full is not idle.
            let _ = handle.mailbox.try_send(Ask::Doze { since, then: idle.then });
        }
    }
    Some(())
}

/// Whether nobody has used a computer for its idle time: since when, then.
async fn look(inner: &Inner, handle: &Handle) -> Option<(Micros, Idle)> {
    let doors = &handle.doors;
    let cell = *handle.idle.lock();
    let idle = cell.idle?;
    if doors.is_open() || handle.steps.in_use() || handle.dials.available_permits() < DIALS_MAX {
        doors.seen();
        return None;
    }
    let (since, at) = (doors.last(), steady());
    let first = cell.first.filter(|first| first.since == since);
    if let Some(first) = first
        && elapsed(first.at, at) < idle.after()
    {
        return None;
    }
    let usage = inner.machines.usage(handle.id).await.ok()?;
    let bytes = inner.gate.status(handle.id).await.map_or(0, |status| status.up_bytes + status.down_bytes);
    let now = Look { since, at, cpu_us: usage.cpu_us, bytes };
    let is_quiet = first.is_some_and(|first| {
        let cpu = u128::from(now.cpu_us.saturating_sub(first.cpu_us)) * 100;
        let most = elapsed(first.at, at).as_micros() * u128::from(IDLE_CPU_PERCENT);
        cpu <= most && now.bytes == first.bytes
    });
    if !is_quiet {
        let mut cell = handle.idle.lock();
        if cell.idle == Some(idle) {
            cell.first = Some(now);
        }
        return None;
    }
    Some((since, idle))
}

fn elapsed(from: Micros, to: Micros) -> Duration {
    Duration::from_micros(to.saturating_sub(from).max(0) as u64)
}
