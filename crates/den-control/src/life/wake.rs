//! Letting requests in, and waking whom they are for.

use std::{
    ops::Deref,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use den_machine::Machine;
use den_model::{Micros, Request, State};
use tokio::sync::{Mutex, Notify, RwLock};

use crate::{
    Error,
    handle::{Ask, Handle, Status},
    limits::{WAKE_TRIES, WAKE_WAIT},
};

/// Microseconds of a clock that nobody sets.
pub(super) fn steady() -> Micros {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed().as_micros() as Micros
}

/// Who is at a computer through Den, and since when nobody is.
pub(crate) struct Doors {
    /// Requests that were let in, until the agent has answered.
    inside: AtomicUsize,
    /// What goes on beyond its request: files on their way, watches.
    open: AtomicUsize,
    /// Watches among those.
    watches: AtomicUsize,
    /// How often its agent has let go of all who were there.
    rests: AtomicU64,
    /// Held while input is sent to a step, and by who has that wait.
    pub(crate) words: RwLock<()>,
    last: AtomicI64,
    left: Notify,
    /// One wakes it; the others wait for that.
    waking: Mutex<()>,
}

impl Doors {
    pub(crate) fn new() -> Self {
        Self {
            inside: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            rests: AtomicU64::new(0),
            words: RwLock::new(()),
            last: AtomicI64::new(steady()),
            left: Notify::new(),
            waking: Mutex::new(()),
        }
    }

    /// When somebody was last seen, by the steady clock.
    pub(crate) fn last(&self) -> Micros {
        self.last.load(Ordering::Relaxed)
    }

    /// Somebody was there.
    pub(crate) fn seen(&self) {
        self.last.store(steady(), Ordering::Relaxed);
    }

    /// Whether somebody is there.
    pub(crate) fn is_open(&self) -> bool {
        self.inside.load(Ordering::SeqCst) + self.open.load(Ordering::SeqCst) > 0
    }

    /// Whether files are on their way, in or out.
    pub(crate) fn carries(&self) -> bool {
        self.open.load(Ordering::SeqCst) > self.watches.load(Ordering::SeqCst)
    }

    /// How often its agent has let go of all who were there. What was joined before is to be joined anew.
    pub(crate) fn rests(&self) -> u64 {
        self.rests.load(Ordering::SeqCst)
    }

    /// Its agent has let go of all who were there.
    pub(crate) fn rested(&self) {
        self.rests.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until every request that was let in has had its answer, for this long at most; says whether.
    pub(crate) async fn all_left(&self, limit: Duration) -> bool {
        let left = async {
            loop {
                let mut told = std::pin::pin!(self.left.notified());
                told.as_mut().enable();
                if self.inside.load(Ordering::SeqCst) == 0 {
                    return;
                }
                told.await;
            }
        };
        tokio::time::timeout(limit, left).await.is_ok()
    }
}

/// Somebody is there until this is dropped, and it does not go to sleep by itself.
pub(crate) struct Busy {
    handle: Arc<Handle>,
    watches: bool,
}

impl Busy {
    /// For a file that is on its way beyond its request.
    pub(crate) fn of(handle: &Arc<Handle>) -> Self {
        handle.doors.open.fetch_add(1, Ordering::SeqCst);
        Self { handle: Arc::clone(handle), watches: false }
    }

    /// For a watch.
    pub(crate) fn watching(handle: &Arc<Handle>) -> Self {
        handle.doors.watches.fetch_add(1, Ordering::SeqCst);
        handle.doors.open.fetch_add(1, Ordering::SeqCst);
        Self { handle: Arc::clone(handle), watches: true }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let doors = &self.handle.doors;
        doors.seen();
        doors.open.fetch_sub(1, Ordering::SeqCst);
        if self.watches {
            doors.watches.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The machine of a computer that is awake. It is not paused while this is there; to be held until the agent
/// has answered, and no longer.
pub(crate) struct Awake {
    machine: Machine,
    handle: Arc<Handle>,
}

impl Awake {
    /// The machine, for what is to go on when this has gone.
    pub(crate) fn machine(&self) -> Machine {
        self.machine.clone()
    }
}

impl Deref for Awake {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        left(&self.handle);
    }
}

fn left(handle: &Handle) {
    let doors = &handle.doors;
    doors.seen();
    if doors.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
        doors.left.notify_waiters();
    }
}

impl Status {
    fn stands(&self) -> bool {
        self.cut || matches!(self.state, State::Paused | State::Unplugged)
    }

    /// Whether a request wakes it. One that somebody has stopped is not asleep.
    fn sleeps(&self) -> bool {
        match self.state {
            State::Paused => !self.cut,
            State::Stopping | State::Stopped | State::Starting => self.asleep && !self.cut,
            _ => false,
        }
    }
}

impl Handle {
    /// Lets a request in that was authorised; wakes the computer for it where it sleeps, once for however many
    /// ask.
    ///
    /// Errors: `computer_stopped`, `wrong_state`, `unplugged`, `computer_not_found`, and those of a start.
    pub(crate) async fn awake(self: &Arc<Self>) -> Result<Awake, Error> {
        for _ in 0..WAKE_TRIES {
            let refused = match self.try_awake() {
                Ok(awake) => return Ok(awake),
                Err(refused) => refused,
            };
            if !self.status.borrow().sleeps() {
                return Err(refused);
            }
            let _one = self.doors.waking.lock().await;
            if self.state() == State::Running {
                continue;
            }
            // It may be on its way to sleep just now.
            let mut status = self.status.subscribe();
            let settled = status.wait_for(|status| status.state != State::Stopping);
            if let Ok(Err(_)) = tokio::time::timeout(WAKE_WAIT, settled).await {
                return Err(refused);
            }
            self.ask(|reply| Ask::Wake { reply }).await?;
        }
        Err(Error::new("wrong_state", 409, format!("`{}` is put to sleep as soon as it wakes", self.name()))
            .retryable())
    }

    /// As [`Handle::awake`], for one that is awake.
    fn try_awake(self: &Arc<Self>) -> Result<Awake, Error> {
        // Counted before its state is looked at: who pauses it changes the state first and counts then.
        self.doors.inside.fetch_add(1, Ordering::SeqCst);
        match self.admit() {
            Ok(machine) => Ok(Awake { machine, handle: Arc::clone(self) }),
            Err(refused) => {
                left(self);
                Err(refused)
            }
        }
    }

    /// Refuses where the computer is cut off: it is evidence then, and nothing of it changes.
    ///
    /// Errors: `unplugged`.
    pub(crate) fn plugged(&self) -> Result<(), Error> {
        let status = self.status.borrow();
        if status.cut || status.state == State::Unplugged {
            return Err(Error::unplugged(self.name()));
        }
        Ok(())
    }

    /// Whether it stands still, or is about to.
    pub(crate) fn stands(&self) -> bool {
        self.status.borrow().stands()
    }

    /// Waits until it does not stand still.
    pub(crate) async fn moves(&self) {
        // It cannot fail: the sender is the handle's.
        let _ = self.status.subscribe().wait_for(|status| !status.stands()).await;
    }

    /// The state after `request`, or why not.
    pub(crate) fn after(&self, request: Request) -> Result<State, Error> {
        self.state().ask(request).map_err(|refused| Error::refused(self.name(), refused))
    }
}
