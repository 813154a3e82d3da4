//! What a build says: in memory while it goes on, then in a file beside the others.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Build, Status};
use crate::time;

/// The most lines of one build, and characters of a line.
const ENTRIES_MAX: usize = 2000;
const LINE_CHARS_MAX: usize = 1000;

/// Lines at the end that are kept for how it ended.
const ENTRIES_LAST: usize = 50;

/// The most lines of one answer.
pub(super) const PAGE_MAX: usize = 100;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warn,
            "error" => Self::Error,
            _ => return None,
        })
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub at: i64,
    pub level: Level,
    pub message: String,
    #[serde(default)]
    pub step: Option<String>,
}

impl Entry {
    pub(super) fn view(&self) -> Value {
        let mut view = json!({ "timestamp": time::text(self.at), "message": self.message, "level": self.level });
        if let Some(step) = &self.step {
            view["step"] = step.as_str().into();
        }
        view
    }
}

impl Build {
    /// Says a line; those of a step beyond the limit are only in the step's own log.
    pub(super) fn say(&self, level: Level, step: Option<&str>, message: &str) {
        let mut state = self.state();
        let Some(said) = &mut state.said else { return };
        let most = if level == Level::Error { ENTRIES_MAX } else { ENTRIES_MAX - ENTRIES_LAST };
        let message = match said.len() {
            there if there > most || there >= ENTRIES_MAX => return,
            there if there == most => "what else it says is in the log of its steps: `den log`".to_owned(),
            _ => message.chars().filter(|one| !one.is_control() || *one == '\t').take(LINE_CHARS_MAX).collect(),
        };
        said.push(Entry { at: time::now(), level, message, step: step.map(str::to_owned) });
    }

    /// Writes down what was said, once it ends; then it is said no more.
    pub(super) async fn write_log(&self, folder: &Path) {
        let said = self.state().said.clone().unwrap_or_default();
        if let Err(error) = write(folder, &self.id, &said).await {
            tracing::warn!(build = self.id, %error, "the log of a build is lost");
        }
    }

    /// All that it has said.
    pub(super) async fn said(&self, folder: &Path) -> Vec<Entry> {
        if let Some(said) = &self.state().said {
            return said.clone();
        }
        match tokio::fs::read(folder.join(&self.id)).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// The last lines of a step.
    pub(super) async fn last_of(&self, folder: &Path, step: &str) -> Vec<Value> {
        let said = self.said(folder).await;
        let of: Vec<_> = said.iter().filter(|entry| entry.step.as_deref() == Some(step)).collect();
        of[of.len().saturating_sub(ENTRIES_LAST)..].iter().map(|entry| entry.view()).collect()
    }

    pub(super) fn status(&self) -> Status {
        self.state().facts.status
    }
}

async fn write(folder: &Path, id: &str, said: &[Entry]) -> io::Result<()> {
    let beside = folder.join(format!(".{id}"));
    tokio::fs::write(&beside, serde_json::to_vec(said)?).await?;
    tokio::fs::rename(&beside, folder.join(id)).await
}
