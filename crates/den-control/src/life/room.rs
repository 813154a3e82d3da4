//! Giving the memory of those that sleep back to the host, where it has swap or zram to keep it in.
//!
//! A while after a computer was put to sleep, so that one that is woken soon finds all of it there. What is
//! given back comes again page by page as it is touched.

use std::sync::Arc;

use den_machine::Machine;
use den_model::State;
use den_sys::pageout;

use crate::{
    control::{Inner, blocking},
    errors::chain,
    handle::Handle,
    limits::ROOM_AFTER,
};

/// Gives its memory back if it still sleeps in a while.
pub(super) fn give_back_later(inner: &Arc<Inner>, handle: &Arc<Handle>, machine: Machine) {
    let (inner, handle) = (Arc::clone(inner), Arc::clone(handle));
    let tasks = inner.tasks.clone();
    tasks.spawn(async move {
        let mut status = handle.status.subscribe();
        let woken = status.wait_for(|status| status.state != State::Paused);
        if tokio::time::timeout(ROOM_AFTER, woken).await.is_ok() {
            return;
        }
        let id = handle.id;
        let given = blocking(move || give_back(&inner, &handle, &machine)).await;
        match given {
            Ok(Ok(bytes)) => tracing::debug!(computer = %id, bytes, "memory was given back"),
            Ok(Err(error)) => tracing::debug!(computer = %id, error = chain(&error), "no memory was given back"),
            Err(error) => tracing::error!(computer = %id, error = error.chain(), "no memory was given back"),
        }
    });
}

/// Until it is woken. Says how many bytes were offered.
fn give_back(inner: &Inner, handle: &Handle, machine: &Machine) -> Result<u64, den_sys::SysError> {
    if pageout::swap_bytes() == 0 {
        return Ok(0);
    }
    let cgroup = inner.history.cgroup_name(machine);
    pageout::give_back(inner.history.instance(), &cgroup, || handle.stand.is_wanted())
}
