//! How long an agent is waited for.
//!
//! ```text
//! answered   a prompt answer: none within ANSWER_WAIT ─► agent_lost
//! carried    work that may take long: none within ANSWER_WAIT ─► does it answer anyone? ─► waited on, or agent_lost
//! ```
//!
//! A computer that stands still on purpose is waited for as long as it stands.

use std::{future::Future, pin::pin};

use den_machine::LinkError;
use tokio::time::timeout;

use crate::{
    handle::Handle,
    limits::{ANSWER_WAIT, HELLO_WAIT},
};

/// What the agent says, if it says anything in time.
pub(crate) async fn answered<T>(
    handle: &Handle,
    answer: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let mut answer = pin!(answer);
    loop {
        match timeout(ANSWER_WAIT, &mut answer).await {
            Ok(answer) => return answer,
            Err(_) if handle.stand.is_wanted() => {}
            Err(_) => return Err(LinkError::Silent(ANSWER_WAIT)),
        }
    }
}

/// What comes of work inside, however long it takes, while the agent is there for others.
pub(crate) async fn carried<T>(
    handle: &Handle,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let mut work = pin!(work);
    loop {
        match timeout(ANSWER_WAIT, &mut work).await {
            Ok(done) => return done,
            Err(_) if handle.stand.is_wanted() || is_there(handle).await => {}
            Err(_) => return Err(LinkError::Silent(ANSWER_WAIT)),
        }
    }
}

/// Whether the agent answers anyone.
async fn is_there(handle: &Handle) -> bool {
    let machine = handle.status.borrow().machine.clone();
    match machine {
        Some(machine) => matches!(timeout(HELLO_WAIT, machine.link().hello()).await, Ok(Ok(_))),
        None => false,
    }
}
