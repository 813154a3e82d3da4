//! Ending a flow from outside of its task.

use std::sync::OnceLock;

use tokio::sync::Notify;

/// Fired at most once, with a reason.
#[derive(Default)]
pub(super) struct Cut {
    why: OnceLock<&'static str>,
    notify: Notify,
}

impl Cut {
    /// Ends the flow for this reason, unless it was ended for another one.
    pub(super) fn fire(&self, why: &'static str) {
        if self.why.set(why).is_ok() {
            // A permit stays for one that does not wait yet: a flow has one task.
            self.notify.notify_one();
        }
    }

    /// Waits until it is fired.
    pub(super) async fn fired(&self) -> &'static str {
        loop {
            if let Some(why) = self.why.get() {
                return why;
            }
            self.notify.notified().await;
        }
    }
}
