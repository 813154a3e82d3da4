//! PID 1 of a computer.
//!
//! ```text
//! fd 3 (listening) ─► one connection = one operation
//!    Exec, Attach, Signal ... ─► `step`, `exec`: on the one thread, never waiting for a connection
//!    Dial                     ─► `dial`: on the one thread
//!    files, archives, watches ─► `files`: a thread for each, made for it and gone with it
//!    Ports                    ─► `ports`: the same
//! SIGCHLD ─► `reap` ─► the step whose first process it was
//! fd 4 (calls that wait), /dev/fuse ─► `view`: a thread, on which the one thread never waits
//! ```
//!
//! Invariants:
//! - What steps need (start, output, signals, ends) needs no thread, so it works where no process
//!   can be made any more. A file operation that gets no thread is answered with `NoProcesses`.
//! - Nothing that arrives makes the agent panic: a panic would end the computer.
//! - A connection that is slow or gone holds up no command and costs one buffer at most.

mod conn;
mod dial;
mod exec;
mod failure;
mod files;
mod hibernate;
mod log;
mod output;
mod ports;
mod reap;
mod session;
mod step;
mod sync;
mod users;
mod view;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::time::Duration;

use den_wire::agent::{FailureKind, Hello, Reply, Request};
use rustix::process::Resource;
use tokio::net::UnixListener;
use tokio::task::LocalSet;

use self::conn::Conn;
use self::failure::failure;
use self::reap::Children;
use self::step::Steps;
use self::view::View;

/// Between SIGTERM and SIGKILL when the agent itself gets SIGTERM.
const TERM_GRACE: Duration = Duration::from_secs(5);

/// How long accepting rests when the agent has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The stack of a file operation's thread, in bytes. Nothing on it recurses.
const THREAD_STACK_BYTES: usize = 128 << 10;

/// What all operations share; lives on the one thread.
pub(crate) struct Agent {
    pub children: Children,
    pub steps: Steps,
    pub rest: hibernate::Rest,
    /// What is put back for commands: the agent itself takes as many descriptors as it may.
    pub descriptors: (u64, u64),
    /// Whether the agent is protected from running out of memory, which commands must not be.
    pub oom_protected: bool,
    /// What programs see of the computer's share.
    pub view: View,
}

/// Serves until the computer ends; returns the agent's exit code. The environment says what the husk left for it:
/// `DEN_CALLS` (descriptor 4 is where calls arrive), `DEN_COUNTER` (where the disk is counted, below a sysfs).
pub fn main() -> i32 {
    if std::process::id() != 1 {
        // Ending everything inside means kill(-1): outside a pid namespace of its own that is the host.
        eprintln!("den-agent init: runs as PID 1 of a computer only");
        return 2;
    }
    den_sys::spawn::small_heap();
    let listener = match inherited_listener() {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("den-agent init: descriptor 3 is no listening unix socket: {error}");
            return 2;
        }
    };
    let calls = std::env::var_os("DEN_CALLS").and_then(|_| den_sys::spawn::take_descriptor(4).ok());
    let counter = std::env::var("DEN_COUNTER").ok();
    rustix::process::umask(rustix::fs::Mode::empty());
    let agent = Rc::new(Agent {
        children: Children::default(),
        steps: Steps::default(),
        rest: hibernate::Rest::default(),
        descriptors: raise_descriptors(),
        oom_protected: std::fs::read("/proc/self/oom_score_adj").is_ok_and(|text| text.starts_with(b"-")),
        view: View::new(calls, counter),
    });
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("den-agent init: {error}");
            return 2;
        }
    };
    LocalSet::new().block_on(&runtime, serve(agent, listener))
}

/// Takes over descriptor 3, by a name that needs no `unsafe`.
fn inherited_listener() -> std::io::Result<StdListener> {
    let three = den_sys::spawn::take_descriptor(3)?;
    if !rustix::net::sockopt::socket_acceptconn(&three)? {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let listener = StdListener::from(three);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Raises the soft limit on descriptors to the hard one; returns what it was.
fn raise_descriptors() -> (u64, u64) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

async fn serve(agent: Rc<Agent>, listener: StdListener) -> i32 {
    let Ok(mut listener) = UnixListener::from_std(listener) else { return 2 };
    if !reap::start(&agent) {
        return 2;
    }
    loop {
        let accepted = tokio::select! {
            next = agent.rest.next_listener() => {
                listener = next;
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::task::spawn_local(async move {
                    let _guest = agent.rest.guest();
                    handle(&agent, Conn::new(stream)).await;
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn handle(agent: &Rc<Agent>, mut conn: Conn) {
    // While it rests, anybody inside may come to its door.
    if !conn.is_from_outside() {
        return conn.answer(&Reply::Failed(failure(FailureKind::PermissionDenied, "only the host asks", None))).await;
    }
    let asked = tokio::select! {
        biased;
        asked = conn.request() => asked,
        // Who has not said anything by then keeps it from nothing.
        () = agent.rest.no_longer_heard() => return,
    };
    let (request, descriptor) = match asked {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(kind) => return conn.answer(&Reply::Failed(failure(kind, "request", None))).await,
    };
    match request {
        Request::Rest => hibernate::rest(agent, conn).await,
        Request::Wake => hibernate::wake(agent, conn, descriptor).await,
        request => tokio::select! {
            biased;
            () = operate(agent, conn, request, descriptor) => {}
            // What goes on inside does so without it.
            () = agent.rest.leaving() => {}
        },
    }
}

async fn operate(agent: &Rc<Agent>, mut conn: Conn, request: Request, descriptor: Beside) {
    match request {
        Request::Hello { .. } => {
            let running = agent.steps.numbers();
            let hello = Hello { version: den_wire::VERSION, build: crate::BUILD.to_owned(), running };
            conn.answer(&Reply::Hello(hello)).await;
            agent.view.begin();
        }
        Request::Exec(request) => {
            agent.view.ready().await;
            exec::exec(agent, conn, request, descriptor).await;
        }
        Request::Attach { step } => match agent.steps.get(step) {
            Some(step) => step::attend(&step, conn, step::Stdin::Shared, None).await,
            None => conn.answer(&Reply::Failed(no_such_step(step))).await,
        },
        Request::Signal { step, signal, scope } => {
            let done = match agent.steps.get(step) {
                Some(step) => step.signal(signal, scope),
                None => Err(no_such_step(step)),
            };
            conn.answer(&done.map_or_else(Reply::Failed, |()| Reply::Done)).await;
        }
        Request::Shutdown { grace_ms } => {
            conn.answer(&Reply::Done).await;
            reap::shut_down(agent, Duration::from_millis(grace_ms)).await;
        }
        Request::Calls => {
            agent.view.up(descriptor);
            conn.answer(&Reply::Done).await;
        }
        Request::Relog { step } => {
            let done = hibernate::relog(agent, step, descriptor);
            conn.answer(&done.map_or_else(Reply::Failed, |()| Reply::Done)).await;
        }
        Request::Dial { port } => dial::dial(conn, port).await,
        request => on_a_thread(agent, conn, request).await,
    }
}

/// Runs a file operation, or a look at all processes, on a thread of its own.
async fn on_a_thread(agent: &Agent, conn: Conn, request: Request) {
    let Ok(blocking) = conn.into_blocking() else { return };
    let Ok(spare) = blocking.try_clone() else { return };
    let busy = std::sync::Arc::new(agent.rest.threads().enter(spare));
    let of_thread = busy.clone();
    let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
    if let Err(error) = thread.spawn(move || {
        match request {
            Request::Ports => ports::run(blocking),
            Request::Sync => sync::run(blocking),
            request => files::run(request, blocking),
        }
        drop(of_thread);
    }) {
        let reply = Reply::Failed(failure(FailureKind::NoProcesses, "thread", error.raw_os_error()));
        // Short enough for the empty buffer of a socket that nothing was sent on.
        busy.with_socket(|socket| {
            let _ = rustix::net::send(socket.as_fd(), &den_wire::frame::message_bytes(&reply), SEND_NOW);
        });
    }
}

const SEND_NOW: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL.union(rustix::net::SendFlags::DONTWAIT);

fn no_such_step(step: u64) -> den_wire::agent::Failure {
    failure(FailureKind::NoSuchStep, step.to_string(), None)
}

/// A descriptor that came beside a request.
pub(crate) type Beside = Option<OwnedFd>;
