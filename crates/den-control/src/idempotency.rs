//! The same create asked for twice makes one computer.
//!
//! Keys in flight and recent ones are held in memory, so that the second asker waits for the first.
//! The store has all keys of creates that succeeded, for the time after a restart.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use den_model::ComputerId;
use tokio::sync::watch;

use crate::{Error, limits::IDEMPOTENCY_KEYS_MAX};

type Made = Option<ComputerId>;

/// What a key says about a create.
pub(crate) enum Claim {
    /// Nobody asked before: make it, then tell the ticket.
    First(Ticket),
    /// It was asked for before: this tells what was made; closed without where it failed.
    Again(watch::Receiver<Made>),
}

#[derive(Clone, Default)]
pub(crate) struct Keys(Arc<Mutex<HashMap<String, Known>>>);

struct Known {
    hash: blake3::Hash,
    made: watch::Receiver<Made>,
}

/// The right to make what a key asks for. Dropped untold, the key is free again.
pub(crate) struct Ticket {
    keys: Keys,
    key: String,
    hash: blake3::Hash,
    made: watch::Sender<Made>,
}

impl Keys {
    /// Claims a key for a request of this digest.
    ///
    /// Errors: `idempotency_mismatch` where it was used for another request.
    pub(crate) fn claim(&self, key: &str, hash: blake3::Hash) -> Result<Claim, Error> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = known.get(key) {
            return if before.hash == hash {
                Ok(Claim::Again(before.made.clone()))
            } else {
                Err(Error::idempotency_mismatch(key))
            };
        }
        if known.len() >= IDEMPOTENCY_KEYS_MAX {
            known.retain(|_, entry| entry.made.borrow().is_none()); // The store still has those.
        }
        let (made, receiver) = watch::channel(None);
        known.insert(key.to_owned(), Known { hash, made: receiver });
        Ok(Claim::First(Ticket { keys: self.clone(), key: key.to_owned(), hash, made }))
    }
}

impl Ticket {
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn hash(&self) -> String {
        self.hash.to_hex().to_string()
    }

    /// Tells all who wait.
    pub(crate) fn made(self, id: ComputerId) {
        self.made.send_replace(Some(id));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.made.borrow().is_none() {
            self.keys.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        }
    }
}

/// Waits for what the first asker makes; `None` where it failed, so that the second may try.
pub(crate) async fn outcome(mut made: watch::Receiver<Made>) -> Option<ComputerId> {
    made.wait_for(Option::is_some).await.ok().and_then(|made| *made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ComputerId {
        ComputerId::from_uuid(uuid::Uuid::from_u128(5))
    }

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let keys = Keys::default();
        let hash = blake3::hash(b"a");
        let Ok(Claim::First(ticket)) = keys.claim("k", hash) else { panic!("not first") };
        let Ok(Claim::Again(again)) = keys.claim("k", hash) else { panic!("not again") };
        let waiting = tokio::spawn(outcome(again));
        ticket.made(id());
        assert_eq!(waiting.await.unwrap(), Some(id()));
        let Ok(Claim::Again(later)) = keys.claim("k", hash) else { panic!("forgotten") };
        assert_eq!(outcome(later).await, Some(id()));
    }

    #[tokio::test]
    async fn a_failure_frees_the_key() {
        let keys = Keys::default();
        let hash = blake3::hash(b"a");
        let Ok(Claim::First(ticket)) = keys.claim("k", hash) else { panic!("not first") };
        let Ok(Claim::Again(again)) = keys.claim("k", hash) else { panic!("not again") };
        drop(ticket);
        assert_eq!(outcome(again).await, None);
        assert!(matches!(keys.claim("k", hash), Ok(Claim::First(_))));
    }

    #[test]
    fn another_body_is_refused() {
        let keys = Keys::default();
        let _ticket = keys.claim("k", blake3::hash(b"a")).ok();
        let refused = keys.claim("k", blake3::hash(b"b")).err().map(|error| error.code);
        assert_eq!(refused, Some("idempotency_mismatch"));
    }
}
