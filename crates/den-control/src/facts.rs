//! What translations of other interfaces keep in the house: text under a kind and an id, which means nothing here.

use den_model::State;
use den_store::Durability;

use crate::{Error, control::Control, handle::Handle};

impl Control {
    /// Keeps what is known of `id`; it survives the end of power when this returns.
    ///
    /// Errors: `host_full`, `internal`.
    pub async fn keep_fact(&self, kind: &'static str, id: &str, fact: String) -> Result<(), Error> {
        Ok(self.0.store.put_fact(kind, id.to_owned(), fact, Durability::Power).await?)
    }

    /// Notes what is about to be done to `id`: no later change of the house is on the disk without it.
    ///
    /// Errors: `host_full`, `internal`.
    pub async fn note_fact(&self, kind: &'static str, id: &str, fact: String) -> Result<(), Error> {
        Ok(self.0.store.put_fact(kind, id.to_owned(), fact, Durability::Process).await?)
    }

    /// Forgets a note once it is done; after the end of power it may be there again.
    ///
    /// Errors: `host_full`, `internal`.
    pub async fn forget_note(&self, kind: &'static str, id: &str) -> Result<bool, Error> {
        Ok(self.0.store.delete_fact(kind, id.to_owned(), Durability::Process).await?)
    }

    /// How the computer called `name` stands: `Trashed` from the moment that it is on its way there, and `Running` where
    /// it sleeps because nobody used it, for a request wakes it. None once nothing of it is left.
    pub fn state_of(&self, name: &str) -> Option<State> {
        let registry = &self.0.registry;
        let stands = |handle: &Handle| {
            let status = handle.status.borrow();
            let sleeps = status.asleep && !status.cut && matches!(status.state, State::Paused | State::Stopped);
            if sleeps { State::Running } else { status.state }
        };
        match registry.find(name) {
            Ok(handle) => Some(stands(&handle)),
            Err(error) if error.code == "computer_trashed" => Some(State::Trashed),
            // One that is being removed has its name no more, and may be there again where that fails.
            Err(_) => registry.all().iter().find(|handle| handle.name().as_str() == name).map(|handle| stands(handle)),
        }
    }

    /// Forgets what is known of `id`; whether anything was.
    ///
    /// Errors: `host_full`, `internal`.
    pub async fn forget_fact(&self, kind: &'static str, id: &str) -> Result<bool, Error> {
        Ok(self.0.store.delete_fact(kind, id.to_owned(), Durability::Power).await?)
    }

    /// All that is known of a kind, by id.
    ///
    /// Errors: `internal`.
    pub async fn facts(&self, kind: &'static str) -> Result<Vec<(String, String)>, Error> {
        Ok(self.0.store.facts(kind).await?)
    }
}
