//! Whether the house can do its work: each part is asked, and has to answer soon.

use den_api::{Check, Readiness};

use crate::{
    Error,
    control::Control,
    limits::CHECK_WAIT,
    usage::{low, room},
};

impl Control {
    /// Asks the store, the launcher and the gate, and looks at the disk. Takes a few seconds at most.
    pub async fn ready(&self) -> Readiness {
        let (store, launcher) = tokio::join!(self.store_writes(), self.launcher_answers());
        let checks = [
            ("daemon", self.0.open_for_work()),
            ("store", store),
            ("launcher", launcher),
            ("gate", self.gate_is_up()),
            ("disk", self.disk_has_room()),
        ];
        let checks: Vec<_> = checks.into_iter().map(|(name, result)| check(name, result.err())).collect();
        Readiness { ready: checks.iter().all(|check| check.ok), checks }
    }

    async fn store_writes(&self) -> Result<(), Error> {
        match tokio::time::timeout(CHECK_WAIT, self.0.store.probe()).await {
            Ok(probed) => Ok(probed?),
            Err(_) => Err(late("the store does not write").hint("look at the disk of the data folder: it may hang")),
        }
    }

    async fn launcher_answers(&self) -> Result<(), Error> {
        // Asked once it is ending, it would be started again.
        self.0.open_for_work()?;
        match tokio::time::timeout(CHECK_WAIT, self.0.machines.husks()).await {
            Ok(husks) => Ok(husks.map(drop)?),
            Err(_) => Err(late("the launcher does not answer").hint("look into launcher.log in the run folder")),
        }
    }

    fn gate_is_up(&self) -> Result<(), Error> {
        match self.0.gate.state() {
            ("up", _) => Ok(()),
            (_, why) => {
                let why = why.unwrap_or_else(|| "it is starting".to_owned());
                let message = format!("no computer reaches anything: {why}");
                Err(Error::new("gate_down", 503, message)
                    .hint("it is tried again by itself; look into gate.log in the run folder"))
            }
        }
    }

    fn disk_has_room(&self) -> Result<(), Error> {
        for path in [self.0.data.clone(), self.0.data.join("computers")] {
            let (total, free) = room(&path).map_err(|error| {
                Error::new("storage_failed", 500, format!("{}: {error}", path.display())).because(error)
            })?;
            if free < low(total).0 {
                let free = den_model::Bytes(free);
                return Err(Error::new("disk_low", 507, format!("{} has {free} left", path.display()))
                    .hint("remove computers with `den rm`, old states with `den snaps rm`, or enlarge the disk"));
            }
        }
        Ok(())
    }
}

fn late(message: &str) -> Error {
    Error::new("no_answer", 503, format!("{message} within {} s", CHECK_WAIT.as_secs()))
}

fn check(name: &str, error: Option<Error>) -> Check {
    let (ok, hint) = (error.is_none(), error.as_ref().and_then(|error| error.hint.clone()));
    Check { name: name.to_owned(), ok, error: error.map(|error| error.chain()), hint }
}
