//! Resting: the agent lets go of all that is the host's, so that it can be written down with everything inside and
//! read back, perhaps as another computer.
//!
//! ```text
//! Rest  file operations end ─► connections are left ─► logs let go ─► listener away ─► `Done`, closed last
//!       ··· the name REST_SOCKET alone is listened on; output waits in its pipes; timers go on ···
//!       a failure: it listens as before, and `Relog` gives back the logs that were let go
//! Wake  a new listener ─► Relog, for each step: its output goes on
//! ```
//!
//! Invariants:
//! - Once `Rest` is answered and its connection has closed, no descriptor of the agent leads to the host.
//! - If whoever asked goes before that, nobody would wake it: it does not rest.
//! - Nobody inside is heard: a peer on the host has no process id in here, all others have one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use den_wire::agent::{FailureKind, REST_SOCKET, Reply};
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::conn::Conn;
use super::failure::{Outcome, bad, failure, from_io};
use super::{Agent, Beside};

/// How long operations that go on may take to end once the agent is to rest.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How long those that end by themselves are left alone.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked whether they have.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How long one who has come to REST_SOCKET may take to say why.
const WORD_MAX: Duration = Duration::from_secs(20);

/// Who is here from the host, and where the next ones come in.
pub struct Rest {
    resting: watch::Sender<bool>,
    /// Whether who comes now comes by REST_SOCKET.
    at_door: Cell<bool>,
    /// Connections on the one thread.
    guests: Cell<usize>,
    /// Sockets of the operations that have a thread.
    threads: Threads,
    /// The listener to go on with.
    next: RefCell<Option<UnixListener>>,
    turned: Notify,
}

/// Sockets of operations that have a thread of their own, by a number.
#[derive(Clone, Default)]
pub struct Threads(Arc<Mutex<(u64, HashMap<u64, OwnedFd>)>>);

/// An operation on a thread goes on until this is dropped.
pub struct Busy(Threads, u64);

impl Threads {
    /// Notes one, with a descriptor of its socket.
    pub fn enter(&self, socket: OwnedFd) -> Busy {
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inside.0 += 1;
        let number = inside.0;
        inside.1.insert(number, socket);
        Busy(self.clone(), number)
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.is_empty()
    }

    /// Ends what they read and write.
    fn cut(&self) {
        for socket in self.0.lock().unwrap_or_else(PoisonError::into_inner).1.values() {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

impl Busy {
    /// The socket of the operation, for one last word.
    pub fn with_socket(&self, word: impl FnOnce(&OwnedFd)) {
        if let Some(socket) = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).1.get(&self.1) {
            word(socket);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.1);
    }
}

/// A connection is served until this is dropped.
pub struct Guest<'a>(&'a Rest);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.guests.set(self.0.guests.get() - 1);
    }
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            resting: watch::Sender::new(false),
            at_door: Cell::new(false),
            guests: Cell::new(0),
            threads: Threads::default(),
            next: RefCell::new(None),
            turned: Notify::new(),
        }
    }
}

impl Rest {
    /// Notes a connection.
    pub fn guest(&self) -> Guest<'_> {
        self.guests.set(self.guests.get() + 1);
        Guest(self)
    }

    /// Those that have a thread.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Returns when the agent goes to rest.
    pub async fn leaving(&self) {
        // The sender is ours.
        let _ = self.resting.subscribe().wait_for(|resting| *resting).await;
    }

    /// Returns when a connection that has not said what it wants is to be left.
    pub async fn no_longer_heard(&self) {
        match self.at_door.get() {
            true => sleep(WORD_MAX).await,
            false => self.leaving().await,
        }
    }

    /// The next listener, when there is one.
    pub async fn next_listener(&self) -> UnixListener {
        loop {
            self.turned.notified().await;
            if let Some(next) = self.next.borrow_mut().take() {
                return next;
            }
        }
    }

    /// Has the next ones come in there; returns once the listener before is closed.
    async fn turn(&self, listener: UnixListener) {
        *self.next.borrow_mut() = Some(listener);
        self.turned.notify_one();
        while self.next.borrow().is_some() {
            tokio::task::yield_now().await;
        }
        // Taken, and the one before is dropped in the same breath.
        tokio::task::yield_now().await;
    }
}

/// Lets go of all that is the host's.
pub async fn rest(agent: &Rc<Agent>, mut conn: Conn) {
    match let_go(agent, &conn).await {
        Ok(None) => conn.answer(&Reply::Done).await,
        Ok(Some(calls)) => conn.answer_with(&Reply::Done, calls.as_fd()).await,
        Err(failure) => conn.answer(&Reply::Failed(failure)).await,
    }
}

/// Returns where the calls of programs inside arrive, if they do: they wait while that is open somewhere.
async fn let_go(agent: &Agent, conn: &Conn) -> Outcome<Option<OwnedFd>> {
    let rest = &agent.rest;
    let about = |error: std::io::Error| from_io(&error, REST_SOCKET.as_bytes());
    // A command of another user took that away. CRIU looks from within the user namespace, and memory that was read back
    // belongs to the host's: there it may read no other.
    den_sys::creds::set_dumpable();
    if *rest.resting.borrow() {
        return Err(bad("it rests already"));
    }
    let address = SocketAddr::from_abstract_name(REST_SOCKET).map_err(about)?;
    let door = StdListener::bind_addr(&address).map_err(about)?;
    door.set_nonblocking(true).map_err(about)?;
    let door = UnixListener::from_std(door).map_err(about)?;

    let (soon, late) = (Instant::now() + PATIENCE, Instant::now() + LEAVE_MAX);
    while !rest.threads.is_empty() {
        wanted_until(late, conn, "a file operation goes on")?;
        if Instant::now() >= soon {
            rest.threads.cut();
        }
        sleep(LOOK_INTERVAL).await;
    }
    rest.resting.send_replace(true);
    if let Err(failure) = all_let_go(agent, conn, late).await {
        rest.resting.send_replace(false);
        return Err(failure);
    }
    rest.turn(door).await;
    rest.at_door.set(true);
    Ok(agent.view.down())
}

/// Waits until connections are left and logs are let go.
async fn all_let_go(agent: &Agent, conn: &Conn, late: Instant) -> Outcome<()> {
    // This connection is the one that stays.
    while agent.rest.guests.get() > 1 {
        wanted_until(late, conn, "a connection goes on")?;
        sleep(LOOK_INTERVAL).await;
    }
    wanted_until(late, conn, "a connection went on")?;
    agent.steps.let_go();
    while !agent.steps.have_let_go() {
        if Instant::now() >= late {
            return Err(failure(FailureKind::Other, "a log is written", None));
        }
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Whether there is time left, and somebody still waits: whoever has gone would wake nobody.
fn wanted_until(late: Instant, conn: &Conn, why_late: &str) -> Outcome<()> {
    match (Instant::now() >= late, conn.is_left()) {
        (false, false) => Ok(()),
        (true, _) => Err(failure(FailureKind::Other, why_late, None)),
        (_, true) => Err(failure(FailureKind::Other, "who asked has gone", None)),
    }
}

/// Takes a listener from the host.
pub async fn wake(agent: &Rc<Agent>, mut conn: Conn, listener: Beside) {
    let woken = async {
        if !*agent.rest.resting.borrow() {
            return Err(bad("it does not rest"));
        }
        let listener = listener.ok_or_else(|| bad("no listener"))?;
        let about = |error: std::io::Error| from_io(&error, b"listener");
        if !rustix::net::sockopt::socket_acceptconn(listener.as_fd()).unwrap_or(false) {
            return Err(bad("no listener"));
        }
        let listener = StdListener::from(listener);
        listener.set_nonblocking(true).map_err(about)?;
        let listener = UnixListener::from_std(listener).map_err(about)?;
        agent.rest.at_door.set(false);
        agent.rest.resting.send_replace(false);
        agent.rest.turn(listener).await;
        Ok(())
    };
    let reply = woken.await.map_or_else(Reply::Failed, |()| Reply::Done);
    conn.answer(&reply).await;
}

/// Gives a step its log again.
pub fn relog(agent: &Agent, step: u64, log: Beside) -> Outcome<()> {
    let log = log.ok_or_else(|| bad("no descriptor for the log"))?;
    let running = agent.steps.get(step).ok_or_else(|| super::no_such_step(step))?;
    if running.relog(log) { Ok(()) } else { Err(bad("it has its log")) }
}
