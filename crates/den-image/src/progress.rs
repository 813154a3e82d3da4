//! What a long operation tells while it runs.

use serde::{Deserialize, Serialize};

/// One piece of news. Travels as JSON to whoever waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProgressEvent {
    /// A new stage has begun, such as `reading the manifest`.
    Stage {
        /// What is being done, in a few words.
        text: String,
    },
    /// Bytes of one layer that have been fetched or unpacked.
    Layer {
        /// The first twelve digits of the layer's digest, or its place such as `1`.
        layer: String,
        /// `fetch`, `unpack` or `kept` (we had it).
        action: String,
        /// Bytes so far.
        done_bytes: u64,
        /// Bytes in all, where that is known.
        total_bytes: Option<u64>,
    },
    /// A line that a build's tool printed.
    Line {
        /// The line, without its end.
        text: String,
    },
}

/// Hears the news. Called from several threads; must not block for long.
pub trait Progress: Send + Sync {
    /// Takes one piece.
    fn event(&self, event: ProgressEvent);
}

/// Hears nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _: ProgressEvent) {}
}

impl<F: Fn(ProgressEvent) + Send + Sync> Progress for F {
    fn event(&self, event: ProgressEvent) {
        self(event);
    }
}

/// Says that a stage has begun.
pub(crate) fn stage(progress: &dyn Progress, text: impl Into<String>) {
    progress.event(ProgressEvent::Stage { text: text.into() });
}

/// Passes on every 4 MiB how far one layer is.
pub(crate) struct LayerMeter<'a> {
    progress: &'a dyn Progress,
    layer: String,
    action: &'static str,
    total_bytes: Option<u64>,
    said_bytes: u64,
}

impl<'a> LayerMeter<'a> {
    const STEP_BYTES: u64 = 4 << 20;

    pub fn new(progress: &'a dyn Progress, layer: String, action: &'static str, total_bytes: Option<u64>) -> Self {
        Self { progress, layer, action, total_bytes, said_bytes: 0 }
    }

    /// So many bytes are done in all.
    pub fn at(&mut self, done_bytes: u64) {
        if done_bytes >= self.said_bytes + Self::STEP_BYTES {
            self.say(done_bytes);
        }
    }

    /// The last word.
    pub fn end(&mut self, done_bytes: u64) {
        self.say(done_bytes);
    }

    fn say(&mut self, done_bytes: u64) {
        self.said_bytes = done_bytes;
        self.progress.event(ProgressEvent::Layer {
            layer: self.layer.clone(),
            action: self.action.to_owned(),
            done_bytes,
            total_bytes: self.total_bytes,
        });
    }
}
