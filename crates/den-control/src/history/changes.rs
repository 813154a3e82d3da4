//! What a step changed: found after it has ended, and kept beside its computer's disk.
//!
//! ```text
//! DATA/computers/<id>/changes/<step>.jsonl      one FileChange a line, at most CHANGES_MAX
//! ```
//!
//! The folder is made in the computer's, never above it: where the computer is removed meanwhile, nothing is left.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use den_api::{ChangeCount, FileChange};
use den_model::{Snapshot, StateName, StateRef, StepNumber};
use den_store::Durability;

use super::{Resolved, retain};
use crate::{
    Error,
    control::{Control, Inner, blocking},
    handle::Handle,
    limits::{CHANGES_KEEP_BYTES, CHANGES_MAX, CHANGES_PRUNE_EVERY},
    undo::UNDO_BEFORE,
};

/// Where the list of a step is, if there is one.
pub(crate) fn changes_file(inner: &Inner, handle: &Handle, step: StepNumber) -> Result<PathBuf, Error> {
    Ok(folder(inner, handle)?.join(format!("{step}.jsonl")))
}

fn folder(inner: &Inner, handle: &Handle) -> Result<PathBuf, Error> {
    let disk = inner.disks()?.disk(handle.id);
    Ok(disk.live.with_file_name("changes"))
}

/// Finds and writes, in the background, what a step changed; then lets states go that are too many.
pub(super) fn count_later(inner: &Arc<Inner>, handle: &Arc<Handle>, step: StepNumber, taken: &Snapshot) {
    count_between(inner, handle, step, taken.parent.unwrap_or(0), taken.number);
}

/// As [`count_later`], of a step that led from one state to another.
pub(super) fn count_between(inner: &Arc<Inner>, handle: &Arc<Handle>, step: StepNumber, before: u64, after: u64) {
    let (inner, handle) = (Arc::clone(inner), Arc::clone(handle));
    inner.history.work.clone().spawn(async move {
        let Ok(_place) = inner.history.compared.acquire().await else { return };
        if inner.open_for_work().is_err() {
            return; // Whoever asks for it later finds it.
        }
        if let Err(error) = list_changes(&inner, &handle, step, before, after).await {
            tracing::debug!(computer = %handle.id, step, error = error.chain(), "what a step changed is not known");
        }
        // Only now: what is compared cannot go.
        retain::later(&inner, &handle);
    });
}

/// Finds what a step changed, writes it down and counts it.
///
/// Errors: `state_not_found` where one of the two states is gone.
pub(crate) async fn list_changes(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    step: StepNumber,
    before: u64,
    after: u64,
) -> Result<(ChangeCount, Vec<FileChange>, bool), Error> {
    let control = Control(Arc::clone(inner));
    let find = async |number| {
        let reference = StateRef { computer: handle.id.to_string(), state: StateName::Snapshot(number) };
        let turn = handle.history.turn().await?;
        control.resolve_under(handle, &reference.state, &turn).await
    };
    let (a, b): (Resolved, Resolved) = (find(before).await?, find(after).await?);
    let since = control.common(&a, &b);
    let path = changes_file(inner, handle, step)?;
    let (difference, a, b) = blocking(move || {
        let (one, other) = (a.open()?, b.open()?);
        let options = super::diff::options(Vec::new(), false, CHANGES_MAX);
        let difference = den_history::diff(&one, &other, since, &options)?;
        write(&path, step, &difference.files)
            .map_err(|error| Error::internal("the changes of a step are not written").because(error))?;
        Ok::<_, Error>((difference, a, b))
    })
    .await??;
    drop((a, b));
    let count = difference.count;
    inner.store.set_step_snapshot(handle.id, vec![step], after, Some(count.into()), Durability::Process).await?;
    if count == ChangeCount::default() {
        was_no_merge(inner, handle, step, before).await?;
    }
    Ok((count, difference.files, difference.truncated))
}

/// A step that changed nothing: if it is a merge whose daemon died, it never was, and there is nothing to take back.
pub(super) async fn was_no_merge(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    step: StepNumber,
    before: u64,
) -> Result<(), Error> {
    if handle.history.was_unsure(step) {
        inner.store.forget_undo_of(handle.id, UNDO_BEFORE, before, Durability::Process).await?;
    }
    Ok(())
}

/// It appears whole.
fn write(path: &Path, step: StepNumber, files: &[FileChange]) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if step.is_multiple_of(CHANGES_PRUNE_EVERY) {
        prune(folder, CHANGES_KEEP_BYTES.0)?;
    }
    let making = path.with_extension("making");
    let mut file = BufWriter::new(std::fs::File::create(&making)?);
    for change in files {
        serde_json::to_writer(&mut file, change)?;
        file.write_all(b"\n")?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    std::fs::rename(making, path)
}

/// Removes the lists of the oldest steps beyond `limit` bytes.
fn prune(folder: &Path, limit: u64) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        found.push((number.unwrap_or(0), entry.metadata()?.len(), path));
    }
    found.sort_unstable_by_key(|&(number, ..)| std::cmp::Reverse(number));
    let mut sum = 0_u64;
    for (_, bytes, path) in found {
        sum += bytes;
        if sum > limit {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
