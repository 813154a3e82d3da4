//! Making computers that go on from where another one is, with what runs in it.
//!
//! ```text
//! names reserved, copy made ─► each: row, running steps ─┐
//!                              └─► disk ─► memory, logs ─┴─► all paused, in one write ─► taken up ─► each goes on
//! ```
//!
//! Invariants:
//! - All or none, as with forks that boot: until all of them are recorded as paused a crash leaves rows that the
//!   next start unmakes; from there on it leaves computers whose memory is on the disk, and which go on when used.
//! - What runs in one is a step of it under the number that it has in the parent, whose output goes on from the
//!   parent's.

use std::sync::Arc;

use den_api::ForkView;
use den_image::Image;
use den_model::{EventKind, State};
use den_store::Durability;
use den_sys::failpoint;
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::{
    Resolved,
    fork::{Child, Origin, begin_disk, insert_rows, unmake_all},
};
use crate::{
    Error,
    control::{Inner, blocking, now},
    errors::chain,
    handle::{Ask, Handle, Reply},
    life::{By, Copy},
    limits::FORKS_AT_ONCE,
    recover,
    trash::Removal,
};

/// All of them go on, or sleep on the disk where they are not to go on yet; or nothing of any is left.
pub(super) async fn make(
    inner: Arc<Inner>,
    children: Vec<Child>,
    origin: Arc<Origin>,
    copy: Arc<Copy>,
    goes_on: bool,
    reply: Reply<ForkView>,
) {
    let Origin { from, image, who } = &*origin;
    failpoint::hit("fork.reserved");
    let children: Vec<Arc<Handle>> = children.into_iter().map(|(child, _)| child).collect();
    let mut work = Vec::with_capacity(children.len());
    for child in &children {
        work.push(make_one(&inner, child, from, &copy, image));
    }
    let made: Vec<_> = stream::iter(work).buffered(FORKS_AT_ONCE).collect().await;
    let rows: Vec<bool> = made.iter().map(|(has_row, _)| *has_row).collect();
    let mut result = made.into_iter().try_for_each(|(_, made)| made);
    if result.is_ok() {
        let ids = children.iter().map(|child| child.id).collect();
        let paused = inner.store.all_are(ids, State::Paused, now(), Durability::Process);
        result = paused.await.map_err(Error::from);
    }
    if let Err(error) = result {
        unmake_all(&inner, children.iter().zip(rows)).await;
        drop(reply.send(Err(error)));
        return;
    }
    drop(copy);
    failpoint::hit("fork.state");
    let mut work = Vec::with_capacity(children.len());
    for child in &children {
        work.push(go_on(&inner, child, goes_on.then_some(who)));
    }
    let gone_on: Vec<_> = stream::iter(work).buffered(FORKS_AT_ONCE).collect().await;
    let handles: Result<Vec<_>, Error> = gone_on.into_iter().collect();
    let handles = match handles {
        Ok(handles) => handles,
        Err(error) => {
            for child in &children {
                remove(&inner, child, who).await;
            }
            drop(reply.send(Err(not_gone_on(from, error))));
            return;
        }
    };
    drop(reply.send(Ok(ForkView { items: handles.iter().map(|child| child.view()).collect() })));
    for child in handles {
        tracing::info!(computer = %child.id, name = %child.name(), parent = %from.handle.id, snapshot = from.number, goes_on, "a fork goes on from where its parent was");
        let of = json!({
            "parent": from.handle.id, "parent_name": from.handle.name(), "state": from.number, "memory": true,
        });
        inner.events.tell(EventKind::Forked, Some(&child), Some(who), of);
    }
}

/// Rows, disk and memory of one, and whether it has a row.
async fn make_one(
    inner: &Inner,
    child: &Arc<Handle>,
    from: &Resolved,
    copy: &Copy,
    image: &Arc<Image>,
) -> (bool, Result<(), Error>) {
    let rows = insert_rows(inner, child, from, &copy.steps);
    let carried = async {
        let disk = begin_disk(inner, child, image).await?;
        failpoint::hit("fork.disk");
        let (written, given) = tokio::join!(blocking(|| disk.finish()), copy.give(inner, child.id));
        written??;
        given
    };
    match tokio::join!(rows, carried) {
        (Ok(()), carried) => (true, carried),
        (Err(error), _) => (false, Err(error.into())),
    }
}

/// Takes one up as the next start would, and has it go on for somebody.
async fn go_on(inner: &Arc<Inner>, child: &Handle, who: Option<&String>) -> Result<Arc<Handle>, Error> {
    recover::take_up_again(inner, child.id).await?;
    let handle = inner.registry.get(child.id).ok_or_else(|| Error::computer_not_found(&child.id.to_string()))?;
    if let Some(who) = who {
        let by = By::Who(who.clone());
        handle.ask(|reply| Ask::Resume { by, reply }).await?;
    }
    Ok(handle)
}

/// Removes one that was recorded, and whatever of it runs.
async fn remove(inner: &Arc<Inner>, child: &Arc<Handle>, who: &str) {
    // One that was not taken up is nobody's yet.
    let taken_up = inner.registry.get(child.id).filter(|handle| !Arc::ptr_eq(handle, child));
    let removed = match taken_up {
        Some(handle) => handle.ask(|reply| Ask::Remove { removal: Removal::ForGood, who: who.to_owned(), reply }).await,
        None => {
            unmake_all(inner, [(child, true)].into_iter()).await;
            Ok(())
        }
    };
    if let Err(error) = removed {
        tracing::error!(computer = %child.id, error = chain(&error), "a fork that did not go on is left");
    }
}

fn not_gone_on(from: &Resolved, error: Error) -> Error {
    let message = format!("what runs in `{}` did not go on in a fork: {}", from.handle.name(), error.chain());
    Error::new("fork_failed", 500, message).hint("without --memory a fork has the disk, and services start again")
}
