//! What is being made: noted before it is begun, so that a crash leaves nothing that nobody knows of.
//!
//! ```text
//! note ─► computer made ─► its fact kept ─► note forgotten
//!   └──────── crash ────────┘
//!                next start: a note without a fact: the computer of that name is removed
//! ```
//!
//! Invariants:
//! - A start removes only what a note names, whatever labels a computer has: forks and what came back from the trash
//!   have those of sandboxes too.
//! - A note is on the disk before its computer is.
//! - What cannot be removed is tried again at the next start, and keeps no daemon from starting.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    future::Future,
};

use den_control::Removal;
use den_model::State;
use tokio::sync::watch;

use crate::{
    E2b,
    book::{LABEL, SANDBOX},
    error::ApiError,
    life::CHANGE_WAIT,
    who,
};

/// The kind of the notes.
const MAKING: &str = "e2b.making";

/// Does it to the end though the client goes away: what is half done would be nobody's.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(work).await.map_err(|error| ApiError::new(500, error.to_string()))?
}

/// The labels of a computer that is E2B's.
pub(crate) fn labels(what: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL.to_owned(), what.to_owned())])
}

/// The ids that requests are at now whose like may come again.
pub(crate) struct InHand(watch::Sender<BTreeSet<String>>);

impl Default for InHand {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeSet::new()))
    }
}

/// The right to make what has an id; ends when dropped.
pub(crate) struct Turn<'a> {
    all: &'a InHand,
    id: &'a str,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.all.0.send_if_modified(|all| all.remove(self.id));
    }
}

impl InHand {
    /// Waits until nobody else is at this id.
    ///
    /// Errors: 409 where that takes longer than [`CHANGE_WAIT`].
    pub(crate) async fn turn<'a>(&'a self, id: &'a str) -> Result<Turn<'a>, ApiError> {
        let mut seen = self.0.subscribe();
        let ours = async {
            loop {
                let mut taken = false;
                self.0.send_if_modified(|all| {
                    taken = all.insert(id.to_owned());
                    false
                });
                if taken {
                    return Turn { all: self, id };
                }
                // The sender is ours, so there always is one.
                drop(seen.wait_for(|all| !all.contains(id)).await);
            }
        };
        tokio::time::timeout(CHANGE_WAIT, ours)
            .await
            .map_err(|_| ApiError::new(409, "a request with the same Idempotency-Key is still being carried out"))
    }
}

impl E2b {
    /// Notes that a computer of this name is made, or unmade.
    pub(crate) async fn note(&self, name: &str) -> Result<(), ApiError> {
        Ok(self.control().note_fact(MAKING, name, "{}".to_owned()).await?)
    }

    /// Forgets the note, for its computer has a fact, or is gone.
    pub(crate) async fn noted(&self, name: &str) {
        if let Err(error) = self.control().forget_note(MAKING, name).await {
            tracing::warn!(name, error = error.chain(), "a note stays until the next start");
        }
    }

    /// Removes a computer for good that has come to nothing, and its note. What lies in the trash stays there.
    pub(crate) async fn unmake(&self, name: &str) {
        if self.control().state_of(name) == Some(State::Trashed) {
            return self.noted(name).await;
        }
        match self.control().remove(name, Removal::ForGood, &who()).await {
            Ok(()) => {}
            Err(error) if error.code == "computer_not_found" => {}
            Err(error) => {
                return tracing::error!(
                    name,
                    error = error.chain(),
                    "a computer of E2B's that has come to nothing is left; the next start removes it"
                );
            }
        }
        self.noted(name).await;
    }

    /// Removes what an earlier daemon has noted and did not come to finish.
    pub(crate) async fn unmake_half_made(&self) -> Result<(), den_control::Error> {
        let notes = self.control().facts(MAKING).await?;
        if notes.is_empty() {
            return Ok(());
        }
        let mut whole: HashSet<String> = self.control().facts(SANDBOX).await?.into_iter().map(|(id, _)| id).collect();
        whole.extend(self.holders().await?);
        for (name, _) in notes {
            // Another's that has the name has not the label.
            let is_ours = !whole.contains(&name)
                && self.control().get(&name, false).await.is_ok_and(|computer| computer.labels.contains_key(LABEL));
            if is_ours {
                tracing::info!(name, "a computer of E2B's that was half made is removed");
                self.unmake(&name).await;
            } else {
                self.noted(&name).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_has_an_id() {
        let all = InHand::default();
        let first = all.turn("a").await.unwrap();
        let other = all.turn("b").await.unwrap();
        let mut second = Box::pin(all.turn("a"));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(other);
        assert!(futures_util::poll!(&mut second).is_pending(), "b's end is not a's");
        drop(first);
        drop(second.await.unwrap());
        assert!(all.0.borrow().is_empty());
    }
}
