//! Explorations: one command in several forks of a computer, scored; the best is kept or merged.
//!
//! `POST /v1/computers/{c}/explore` answers with [`ExploreView`] when all is done, or as
//! `text/event-stream` with an event for each [`ExploreEvent`] as it happens. Whoever hangs up ends it, and
//! nothing of it stays.

use den_model::ComputerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ChangeCount, MergeView, StepView};

/// `POST /v1/computers/{c}/explore`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExploreRequest {
    /// From which state; `now` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// How many forks, 1 to 100; 4 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// What to run in each, by `sh`. `DEN_FORK` is 1, 2, ….
    #[schema(example = "./try.sh $DEN_FORK")]
    pub run: String,
    /// What tells how good it is, by `sh`: the number on the last line of its output; without one its exit
    /// code, 0 is best. Without `score` it is the exit code of `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<String>,
    /// The lowest score is best.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lowest: bool,
    /// Which forks stay; `best` without, and with `merge` `none`. One that is best and cannot be merged stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<ExploreKeep>,
    /// Merges the best into the computer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merge: bool,
    /// As whom: name or number, with `:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Each command ends after this long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Which forks of an exploration stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExploreKeep {
    /// The best one.
    Best,
    /// All.
    All,
    /// None.
    None,
}

/// What a fork is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ExploreScore {
    /// It succeeded and said a number.
    Number(f64),
    /// It said none, or failed.
    Exit {
        /// The code that a shell would show.
        exit_code: i32,
    },
}

impl ExploreScore {
    /// Whether it is better than another: a number before success, success before failure.
    pub fn beats(self, other: Self, lowest: bool) -> bool {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) if lowest => a < b,
            (Self::Number(a), Self::Number(b)) => a > b,
            // A higher code is no better or worse than a lower one, but orders them.
            (Self::Exit { exit_code: a }, Self::Exit { exit_code: b }) if a != 0 && b != 0 => a < b,
            (a, b) => a.class() > b.class(),
        }
    }

    /// Whether what it is the score of failed.
    pub fn is_failure(self) -> bool {
        self.class() == 0
    }

    fn class(self) -> u8 {
        match self {
            Self::Exit { exit_code: 0 } => 1,
            Self::Exit { .. } => 0,
            Self::Number(_) => 2,
        }
    }
}

/// One fork and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExploredFork {
    /// Its name.
    pub name: String,
    /// Its id.
    #[schema(value_type = String)]
    pub id: ComputerId,
    /// What it found in `DEN_FORK`.
    pub fork: u32,
    /// What it is judged by.
    pub score: ExploreScore,
    /// How its command ended.
    pub run: StepView,
    /// The last line that its command printed; where the score failed, the score's.
    pub last_line: String,
    /// How many paths the command changed, where that is known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangeCount>,
    /// Whether it stays.
    pub kept: bool,
}

/// What came of an exploration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExploreView {
    /// The label of its forks, as a list of computers takes it.
    #[schema(example = "den.explore=x3k9a0zq")]
    pub label: String,
    /// The best first.
    pub forks: Vec<ExploredFork>,
    /// The best one, if any succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// What the merge did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<MergeView>,
}

/// What happens in an exploration. The event's name is the variant's, its data the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExploreEvent {
    /// The forks run, and the commands in them begin.
    Forked(ExploreForks),
    /// A command has ended, and its score is asked for.
    Ran(ExploreRan),
    /// A fork has its score.
    Tried(Box<ExploredFork>),
    /// The best one is being merged.
    Merging(ExploreMerging),
    /// It is over: nothing follows.
    End(Box<ExploreView>),
}

/// The forks of an exploration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExploreForks {
    /// See [`ExploreView::label`].
    pub label: String,
    /// Their names, by number.
    pub names: Vec<String>,
}

/// A command in a fork has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExploreRan {
    /// In which one.
    pub name: String,
    /// Its number.
    pub fork: u32,
    /// The code that a shell would show.
    pub exit_code: i32,
}

/// A fork is being merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExploreMerging {
    /// Which.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_highest_number_then_who_succeeded() {
        let (failed, done) = (ExploreScore::Exit { exit_code: 1 }, ExploreScore::Exit { exit_code: 0 });
        let number = ExploreScore::Number;
        assert!(number(2.0).beats(number(1.0), false));
        assert!(number(1.0).beats(number(2.0), true));
        assert!(number(-5.0).beats(done, false) && done.beats(failed, false));
        assert!(failed.beats(ExploreScore::Exit { exit_code: 2 }, false));
        assert!(!done.beats(done, false) && !failed.beats(failed, false));
        assert!(failed.is_failure() && !done.is_failure() && !number(0.0).is_failure());
    }

    #[test]
    fn a_score_travels_as_a_number_or_a_code() {
        for (score, text) in
            [(ExploreScore::Number(0.5), "0.5"), (ExploreScore::Exit { exit_code: 3 }, r#"{"exit_code":3}"#)]
        {
            assert_eq!(serde_json::to_string(&score).unwrap(), text);
            assert_eq!(serde_json::from_str::<ExploreScore>(text).unwrap(), score);
        }
        assert_eq!(serde_json::from_str::<ExploreScore>("7").unwrap(), ExploreScore::Number(7.0));
    }
}
