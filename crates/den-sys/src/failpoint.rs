//! Places at which a test ends this process, to show that a crash there leaves nothing behind.
//!
//! `DEN_FAILPOINT=name` at process start makes the first [`hit`] of that name raise SIGKILL;
//! `name:3` the third. Without it a `hit` is one load of a static.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

struct Armed {
    name: String,
    left: AtomicU32,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Ends this process if the environment names this place.
#[inline]
pub fn hit(name: &str) {
    if let Some(armed) = ARMED.get_or_init(read) {
        armed.pass(name);
    }
}

/// Lets this process pass every place from here on: it replaces one that has died of it.
pub fn disarm() {
    if let Some(armed) = ARMED.get_or_init(read) {
        armed.left.store(0, Ordering::Relaxed);
    }
}

fn read() -> Option<Armed> {
    let text = std::env::var("DEN_FAILPOINT").ok().filter(|text| !text.is_empty())?;
    let (name, count) = match text.rsplit_once(':') {
        Some((name, count)) => (name.to_owned(), count.parse().ok()?),
        None => (text, 1),
    };
    Some(Armed { name, left: AtomicU32::new(count) })
}

impl Armed {
    #[cold]
    fn pass(&self, name: &str) {
        if self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
