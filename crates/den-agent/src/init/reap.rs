//! Reaping, and the end of everything.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use den_sys::spawn::kill;
use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::{Agent, TERM_GRACE};

/// The longest grace of a shutdown.
const GRACE_MAX: Duration = Duration::from_secs(3600);

/// How often the shutdown looks whether anybody is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How long killed processes may take to go.
const KILLED_MAX: Duration = Duration::from_secs(2);

/// How long steps may take to write their ends once all processes are gone.
const FLUSH_MAX: Duration = Duration::from_millis(500);

/// Who waits for which child. All other processes that end are reaped and forgotten.
#[derive(Default)]
pub struct Children(RefCell<HashMap<u32, oneshot::Sender<WaitStatus>>>);

impl Children {
    /// How `pid` will have ended. Called in the same breath as the start, so before it can be reaped.
    pub fn end_of(&self, pid: u32) -> oneshot::Receiver<WaitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Takes all that have ended.
    pub fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(waiting) = self.0.borrow_mut().remove(&(pid.as_raw_pid() as u32)) {
                let _ = waiting.send(status);
            }
        }
    }
}

/// Starts reaping, and taking SIGTERM for a shutdown. `false` if the kernel refused.
pub fn start(agent: &Rc<Agent>) -> bool {
    let (Ok(mut ended), Ok(mut term)) = (signal(SignalKind::child()), signal(SignalKind::terminate())) else {
        return false;
    };
    let reaper = agent.clone();
    tokio::task::spawn_local(async move {
        loop {
            reaper.children.reap();
            ended.recv().await;
        }
    });
    let agent = agent.clone();
    tokio::task::spawn_local(async move {
        while term.recv().await.is_some() {
            shut_down(&agent, TERM_GRACE).await;
        }
    });
    true
}

/// Ends everything inside and exits.
pub async fn shut_down(agent: &Agent, grace: Duration) {
    let grace = grace.min(GRACE_MAX);
    let _ = kill(-1, libc::SIGTERM);
    // A stopped process takes no SIGTERM.
    let _ = kill(-1, libc::SIGCONT);
    if !all_gone_by(Instant::now() + grace).await {
        let until = Instant::now() + KILLED_MAX;
        loop {
            let _ = kill(-1, libc::SIGKILL);
            if all_gone_by((Instant::now() + LOOK_INTERVAL * 5).min(until)).await || Instant::now() >= until {
                break;
            }
        }
    }
    let until = Instant::now() + FLUSH_MAX;
    while !agent.steps.all_told() && Instant::now() < until {
        sleep(LOOK_INTERVAL).await;
    }
    std::process::exit(0);
}

async fn all_gone_by(until: Instant) -> bool {
    loop {
        if kill(-1, 0) == Err(libc::ESRCH) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK_INTERVAL).await;
    }
}
