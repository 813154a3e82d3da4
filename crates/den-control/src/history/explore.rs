//! Explorations: one command in several forks of a computer, scored; the best is kept or merged.
//!
//! ```text
//! mark ─► fork × n ─► run in each, DEN_FORK=i ─► score in each ─► best ─► merge ─► mark: who stays ─► the rest goes ─► no mark
//!             └───────── hung up, a failure: all forks go ───────────┘
//! DATA/explore/<id>      the names of the forks that stay, one a line; none until it is known
//! ```
//!
//! Invariants:
//! - Every fork carries the label `den.explore=<id>` from its first moment, and the mark is on the disk before
//!   the first fork is. So what a crash leaves is known to the next start: what the mark does not name goes.
//! - Forks that are on their way are waited for before they are removed, and so is a merge.
//! - What is removed is gone for good: nobody made it by hand.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use den_api::{
    ExecRequest, ExploreEvent, ExploreForks, ExploreKeep, ExploreMerging, ExploreRan, ExploreRequest, ExploreScore,
    ExploreView, ExploredFork, ForkRequest, MergeRequest, MergeView, StepView,
};
use den_model::ComputerId;
use den_sys::failpoint;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::merge::runs;
use crate::{
    Error, Who,
    control::{Control, blocking},
    errors::{chain, too_many},
    handle::Handle,
    limits::{COMMAND_BYTES_MAX, EXPLORATIONS_MAX},
    output::{OutputItem, OutputStream},
    trash::Removal,
};

/// The label that the forks carry.
const LABEL: &str = "den.explore";
/// The folder of the marks, in the data folder.
const FOLDER: &str = "explore";
/// How many forks where nobody says.
const FORKS: u32 = 4;
/// How much of a name goes into the names of its forks, in characters: a label holds 63.
const NAME_CHARS: usize = 48;
/// How much of the end of what a command prints is looked at, in bytes.
const TAIL_BYTES: usize = 64 << 10;
/// How much of the last line is told, in characters.
const LINE_CHARS: usize = 1000;
/// Forks that are removed at the same time.
const REMOVED_AT_ONCE: usize = 16;
/// How often what is left is looked for before it is left to the next start.
const REMOVE_ATTEMPTS: u32 = 3;
/// Events that wait for who reads them.
const EVENTS_MAX: usize = 32;
/// The largest mark that is read, in bytes: all names of the most forks.
const MARK_BYTES_MAX: u64 = 64 << 10;

/// An exploration that goes on. Dropping it ends it, and nothing of it stays.
pub struct Exploration {
    events: mpsc::Receiver<Result<ExploreEvent, Error>>,
    _ends: DropGuard,
}

impl Exploration {
    /// What happens next; nothing after the end.
    pub async fn next(&mut self) -> Option<Result<ExploreEvent, Error>> {
        self.events.recv().await
    }
}

impl Control {
    /// Tries a command in forks of a computer.
    ///
    /// Errors: `computer_not_found`, `bad_request`, `bad_state`, `computer_stopped` where it is to be merged into,
    /// `too_many`. What a fork, a command or the merge refuses comes among the events.
    pub async fn explore(&self, computer: &str, request: ExploreRequest, who: &Who) -> Result<Exploration, Error> {
        self.0.open_for_work()?;
        for (name, text) in [("run", Some(&request.run)), ("score", request.score.as_ref())] {
            match text {
                Some(text) if text.trim().is_empty() => {
                    return Err(Error::bad_request(format!("`{name}`: there is no command")));
                }
                Some(text) if text.len() > COMMAND_BYTES_MAX => {
                    return Err(crate::errors::too_long(&format!("`{name}`"), COMMAND_BYTES_MAX));
                }
                _ => {}
            }
        }
        let handle = self.0.registry.find(computer)?;
        if request.merge {
            drop(runs(&handle).await?);
        }
        let place = Arc::clone(&self.0.history.exploring).try_acquire_owned();
        let place = place.map_err(|_| too_many("explorations", EXPLORATIONS_MAX))?;
        let id = run_id();
        let mark = Mark::new(&self.0.data, &id);
        let made = mark.clone();
        blocking(move || made.write(&[])).await?.map_err(unwritten)?;
        failpoint::hit("explore.mark");
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let ends = CancellationToken::new();
        let run = Run { control: self.clone(), handle, id, request, who: who.clone(), tell, ends: ends.clone(), mark };
        self.0.tasks.spawn(async move {
            run.all().await;
            drop(place);
        });
        Ok(Exploration { events, _ends: ends.drop_guard() })
    }

    /// Removes, in the background, what explorations left that a crash cut off.
    pub(crate) fn end_explorations(&self) {
        let folder = self.0.data.join(FOLDER);
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                let _ = std::fs::remove_file(entry.path());
                continue;
            }
            let (control, mark) = (self.clone(), Mark::new(&self.0.data, &name));
            self.0.tasks.spawn(async move {
                tracing::info!(exploration = name, "what an exploration left that was cut off is removed");
                match mark.read() {
                    Ok(kept) => drop(control.end_exploration(&name, &mark, &kept).await),
                    Err(error) => {
                        tracing::error!(exploration = name, %error, "its forks are left: its mark cannot be read")
                    }
                }
            });
        }
    }

    /// Removes the forks of an exploration but those that are kept, and then its mark.
    async fn end_exploration(&self, id: &str, mark: &Mark, kept: &[String]) -> Result<(), Error> {
        let mut last = None;
        for _ in 0..REMOVE_ATTEMPTS {
            let left = |handle: &Arc<Handle>| {
                handle.spec().labels.get(LABEL).is_some_and(|label| label == id)
                    && !kept.contains(&handle.id.to_string())
            };
            let left: Vec<ComputerId> =
                self.0.registry.all().iter().filter(|one| left(one)).map(|one| one.id).collect();
            if left.is_empty() {
                let mark = mark.clone();
                blocking(move || mark.remove()).await?.map_err(unwritten)?;
                return Ok(());
            }
            let who = Who("explore".to_owned());
            let removals = left.into_iter().map(|id| {
                let (control, who) = (self.clone(), who.clone());
                async move { control.remove(&id.to_string(), Removal::ForGood, &who).await }
            });
            let results: Vec<_> = stream::iter(removals).buffer_unordered(REMOVED_AT_ONCE).collect().await;
            last =
                results.into_iter().filter_map(Result::err).find(|error| error.code != "computer_not_found").or(last);
        }
        let error = last.unwrap_or_else(|| Error::internal("forks of an exploration come back"));
        tracing::error!(
            exploration = id,
            error = error.chain(),
            "forks of an exploration are left until the next start"
        );
        Err(error.hint(format!("which there are: den ls --label {LABEL}={id}")))
    }
}

/// One exploration.
struct Run {
    control: Control,
    handle: Arc<Handle>,
    id: String,
    request: ExploreRequest,
    who: Who,
    tell: mpsc::Sender<Result<ExploreEvent, Error>>,
    ends: CancellationToken,
    mark: Mark,
}

impl Run {
    async fn all(self) {
        let explored = match self.forks().await {
            Ok(forks) => self.explored(forks).await,
            Err(error) => Some(Err(error)),
        };
        failpoint::hit("explore.explored");
        let kept: Vec<String> = match &explored {
            Some(Ok(view)) => view.forks.iter().filter(|fork| fork.kept).map(|fork| fork.id.to_string()).collect(),
            _ => Vec::new(),
        };
        let (mark, names) = (self.mark.clone(), kept.clone());
        let written = blocking(move || mark.write(&names)).await.and_then(|written| written.map_err(unwritten));
        failpoint::hit("explore.kept");
        let ended = match written {
            Ok(()) => self.control.end_exploration(&self.id, &self.mark, &kept).await,
            Err(error) => Err(error),
        };
        let last = match (explored, ended) {
            (Some(Ok(_)), Err(error)) => Err(error),
            (Some(Ok(view)), Ok(())) => Ok(ExploreEvent::End(Box::new(view))),
            (Some(Err(error)), _) => Err(error),
            // Nobody listens.
            (None, _) => return,
        };
        let _ = self.tell.send(last).await;
    }

    fn label(&self) -> String {
        format!("{LABEL}={}", self.id)
    }

    /// Makes the forks. They are waited for also when nobody listens any more: then they are there, and can go.
    async fn forks(&self) -> Result<Vec<Fork>, Error> {
        let stem: String = self.handle.name().as_str().chars().take(NAME_CHARS).collect();
        let stem = format!("{}-{}", stem.trim_end_matches('-'), self.id);
        let count = self.request.count.unwrap_or(FORKS);
        let request = ForkRequest {
            state: self.request.state.clone(),
            // One alone would be called by the stem.
            name: Some(if count == 1 { format!("{stem}-1") } else { stem }),
            count: Some(count),
            labels: BTreeMap::from([(LABEL.to_owned(), self.id.clone())]),
            env: BTreeMap::new(),
            pool: None,
            memory: false,
        };
        let forks = self.control.fork(&self.handle.id.to_string(), request, &self.who).await?;
        failpoint::hit("explore.forked");
        let forks: Vec<Fork> =
            (1..).zip(forks.items).map(|(number, fork)| Fork { number, id: fork.id, name: fork.name }).collect();
        let names = forks.iter().map(|fork| fork.name.clone()).collect();
        self.told(ExploreEvent::Forked(ExploreForks { label: self.label(), names })).await;
        Ok(forks)
    }

    /// Tells who listens, if anybody does.
    async fn told(&self, event: ExploreEvent) {
        tokio::select! {
            biased;
            () = self.ends.cancelled() => {}
            _ = self.tell.send(Ok(event)) => {}
        }
    }

    /// Runs, scores and merges; nothing where nobody listens any more.
    async fn explored(&self, forks: Vec<Fork>) -> Option<Result<ExploreView, Error>> {
        let count = forks.len().max(1);
        let tries = stream::iter(forks).map(|fork| self.one(fork)).buffer_unordered(count);
        let tried = tokio::select! {
            biased;
            () = self.ends.cancelled() => return None,
            tried = tries.collect::<Vec<_>>() => tried,
        };
        let mut tried = match tried.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(tried) => tried,
            Err(error) => return Some(Err(error)),
        };
        let ExploreRequest { lowest, merge, keep, .. } = self.request;
        tried.sort_by(|a, b| {
            let better = |x: &ExploredFork, y: &ExploredFork| x.score.beats(y.score, lowest);
            better(b, a).cmp(&better(a, b)).then(a.fork.cmp(&b.fork))
        });
        let best = tried.first().filter(|best| !best.score.is_failure()).map(|best| best.name.clone());
        // What has been begun is waited for.
        let merge = match &best {
            Some(best) if merge => match self.merged(best).await {
                Ok(view) => Some(view),
                Err(error) => return Some(Err(error)),
            },
            _ => None,
        };
        let conflicts = merge.as_ref().is_some_and(|merge| !merge.conflicts.is_empty());
        let keep =
            keep.unwrap_or(if merge.is_some() || self.request.merge { ExploreKeep::None } else { ExploreKeep::Best });
        for fork in &mut tried {
            let is_best = best.as_ref() == Some(&fork.name);
            fork.kept = match keep {
                ExploreKeep::All => true,
                ExploreKeep::Best => is_best,
                // What could not be merged would be lost.
                ExploreKeep::None => is_best && conflicts,
            };
        }
        if self.ends.is_cancelled() {
            return None;
        }
        Some(Ok(ExploreView { label: self.label(), forks: tried, best, merge }))
    }

    async fn merged(&self, best: &str) -> Result<MergeView, Error> {
        self.told(ExploreEvent::Merging(ExploreMerging { name: best.to_owned() })).await;
        let request = MergeRequest { from: best.to_owned(), ..MergeRequest::default() };
        self.control.merge(&self.handle.id.to_string(), request, &self.who).await
    }

    /// Runs and scores in one fork.
    async fn one(&self, fork: Fork) -> Result<ExploredFork, Error> {
        let Fork { number, id, name } = fork;
        let (ran, printed) = self.command(&name, number, &self.request.run).await?;
        let exit_code = exit_code(&ran);
        let (score, last_line) = match &self.request.score {
            // Without a judge of its own a number is only output.
            None => (ExploreScore::Exit { exit_code }, printed.last_line()),
            Some(script) => {
                self.told(ExploreEvent::Ran(ExploreRan { name: name.clone(), fork: number, exit_code })).await;
                let (scored, said) = self.command(&name, number, script).await?;
                let score = match (self::exit_code(&scored), said.number()) {
                    (0, Some(number)) => ExploreScore::Number(number),
                    (exit_code, _) => ExploreScore::Exit { exit_code },
                };
                (score, if score.is_failure() { said.last_line() } else { printed.last_line() })
            }
        };
        let changes = self.control.step(&id.to_string(), ran.number).await?.changes;
        let tried = ExploredFork { name, id, fork: number, score, run: ran, last_line, changes, kept: false };
        self.told(ExploreEvent::Tried(Box::new(tried.clone()))).await;
        Ok(tried)
    }

    async fn command(&self, name: &str, number: u32, script: &str) -> Result<(StepView, Printed), Error> {
        let request = ExecRequest {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: [("DEN_FORK".to_owned(), number.to_string())].into(),
            user: self.request.user.clone(),
            cwd: self.request.cwd.clone(),
            timeout_ms: self.request.timeout_ms,
            ..ExecRequest::default()
        };
        let mut output = self.control.exec(name, request, &self.who).await?.output;
        let mut printed = Printed::default();
        while let Some(item) = output.next().await? {
            match item {
                OutputItem::Data { stream: OutputStream::Stderr, bytes, .. } => tail(&mut printed.stderr, &bytes),
                OutputItem::Data { bytes, .. } => tail(&mut printed.stdout, &bytes),
                OutputItem::Cut { .. } => {}
                OutputItem::End(step) => return Ok((*step, printed)),
            }
        }
        Err(Error::internal("a reader that follows ended before its step did"))
    }
}

/// A fork of an exploration.
struct Fork {
    number: u32,
    id: ComputerId,
    name: String,
}

fn exit_code(step: &StepView) -> i32 {
    step.end.as_ref().map_or(-1, |end| end.exit_code)
}

/// The end of what a command printed.
#[derive(Default)]
struct Printed {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Printed {
    fn last(bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().take(LINE_CHARS).collect()
    }

    fn last_line(&self) -> String {
        let line = Self::last(&self.stdout);
        if line.is_empty() { Self::last(&self.stderr) } else { line }
    }

    fn number(&self) -> Option<f64> {
        Self::last(&self.stdout).parse().ok().filter(|number: &f64| number.is_finite())
    }
}

fn tail(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
    // Seldom: what is cut off is moved.
    if kept.len() > 2 * TAIL_BYTES {
        kept.drain(..kept.len() - TAIL_BYTES);
    }
}

/// The mark of an exploration on the disk.
#[derive(Debug, Clone)]
struct Mark {
    folder: PathBuf,
    id: String,
}

impl Mark {
    fn new(data: &Path, id: &str) -> Self {
        Self { folder: data.join(FOLDER), id: id.to_owned() }
    }

    /// Says who stays. It is there whole, and survives the host, when this returns.
    fn write(&self, kept: &[String]) -> io::Result<()> {
        match std::fs::create_dir(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let making = self.folder.join(format!(".{}", self.id));
        let mut file = std::fs::File::create(&making)?;
        for id in kept {
            writeln!(file, "{id}")?;
        }
        file.sync_all()?;
        std::fs::rename(making, self.folder.join(&self.id))?;
        std::fs::File::open(&self.folder)?.sync_all()
    }

    fn read(&self) -> io::Result<Vec<String>> {
        let path = self.folder.join(&self.id);
        if std::fs::symlink_metadata(&path)?.len() > MARK_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(std::fs::read_to_string(path)?.lines().map(str::to_owned).collect())
    }

    fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(self.folder.join(&self.id))
    }
}

fn unwritten(error: io::Error) -> Error {
    tracing::error!(error = chain(&error), "the mark of an exploration is not written");
    Error::internal("the mark of an exploration is not written").because(error)
}

/// Short, and part of a name: 40 random bits in base 36.
fn run_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut number = Uuid::now_v7().as_u64_pair().1;
    let mut text = String::from("x");
    for _ in 0..7 {
        text.push(char::from(DIGITS[(number % 36) as usize]));
        number /= 36;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_part_of_a_name() {
        let id = run_id();
        assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
        assert_ne!(id, run_id());
    }

    #[test]
    fn the_last_line_says_the_number() {
        let mut printed = Printed::default();
        assert_eq!((printed.last_line().as_str(), printed.number()), ("", None));
        tail(&mut printed.stderr, b"trouble\n");
        assert_eq!(printed.last_line(), "trouble");
        tail(&mut printed.stdout, &vec![b'x'; 3 * TAIL_BYTES]);
        tail(&mut printed.stdout, b"\n 4.5 \n\n");
        assert_eq!((printed.last_line().as_str(), printed.number()), ("4.5", Some(4.5)));
        assert!(printed.stdout.len() <= 2 * TAIL_BYTES);
        tail(&mut printed.stdout, b"NaN\n");
        assert_eq!(printed.number(), None);
    }

    #[test]
    fn a_mark_names_who_stays() {
        let data = tempfile::tempdir().expect("a folder");
        let mark = Mark::new(data.path(), "x1");
        mark.write(&[]).expect("written");
        assert_eq!(mark.read().expect("read"), Vec::<String>::new());
        mark.write(&["a".to_owned(), "b".to_owned()]).expect("written");
        assert_eq!(Mark::new(data.path(), "x1").read().expect("read"), ["a", "b"]);
        mark.remove().expect("removed");
        assert!(mark.read().is_err());
    }
}
