//! One client of a soak: its own computers, what they must be, and how that is compared with what they are.
//!
//! ```text
//! ask ─► acknowledged ───────────► the model after it ─► look, compare
//!      ├ refused as it should be ─► the model before it
//!      └ broken off (a kill) ─────► look: the model before it or the one after it, and nothing between
//! ```

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Plan;
use super::dice::Dice;
use super::model::{Computer, End, Files, Seen, Stands, text};
use crate::{Api, Reply};

/// Where the files are that the soak knows of.
pub const FOLDER: &str = "/root/soak";
/// What a killed daemon left half done is done or undone by then.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Between two looks at something that is not settled yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How many of its last words a client keeps for a failure.
const SAID_MAX: usize = 60;

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    method: &'static str,
    path: String,
    body: Vec<u8>,
    json: bool,
}

impl Ask {
    /// A request without a body.
    pub fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: Vec::new(), json: false }
    }

    /// A request with JSON.
    pub fn json(method: &'static str, path: impl Into<String>, body: &Value) -> Self {
        Self { method, path: path.into(), body: body.to_string().into_bytes(), json: true }
    }

    /// A request with bytes.
    pub fn bytes(method: &'static str, path: impl Into<String>, body: &str) -> Self {
        Self { method, path: path.into(), body: body.as_bytes().to_vec(), json: false }
    }
}

/// One client.
pub struct Client<'a> {
    /// Its number.
    pub number: usize,
    pub(super) api: Api,
    pub(super) dice: Dice,
    /// Its computers.
    pub computers: Vec<Computer>,
    /// Its computers that lie in the trash.
    pub trash: Vec<Computer>,
    /// What it did last.
    pub said: Vec<String>,
    /// How many things it did.
    pub done: u64,
    /// How many of them were broken off.
    pub broken: u64,
    /// Set while something is killed: what is broken off then is no fault.
    pub(super) shaken: &'a AtomicBool,
    pub(super) made: u64,
    /// Whether memory can be asked for.
    pub(super) has_criu: bool,
}

impl<'a> Client<'a> {
    /// A client without computers.
    pub fn new(number: usize, plan: &Plan, api: Api, shaken: &'a AtomicBool) -> Self {
        Self {
            number,
            api,
            dice: Dice::new(plan.seed, number as u64 + 1),
            has_criu: plan.criu.is_some(),
            computers: Vec::new(),
            trash: Vec::new(),
            said: Vec::new(),
            done: 0,
            broken: 0,
            shaken,
            made: 0,
        }
    }

    /// Notes what is done, to be repeated from a failure.
    pub(super) fn say(&mut self, what: String) {
        if self.said.len() == SAID_MAX {
            self.said.remove(0);
        }
        self.said.push(format!("{}: {what}", self.done));
    }

    pub(super) fn try_ask(&self, ask: &Ask) -> std::io::Result<Reply> {
        let headers: &[(&str, &str)] = if ask.json { &[("content-type", "application/json")] } else { &[] };
        let mut stream = self.api.open(ask.method, &ask.path, headers, &ask.body)?;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        Ok(Reply { status: stream.status, headers: stream.headers, body })
    }

    /// Whether something is being killed.
    pub(super) fn is_shaken(&self) -> bool {
        self.shaken.load(Ordering::SeqCst)
    }

    /// Whether an answer says no more than that something was killed meanwhile.
    pub(super) fn is_broken(&self, reply: &Reply) -> bool {
        self.is_shaken() && (reply.status >= 500 || error(reply)["retryable"] == true)
    }

    /// A request that changes nothing, repeated while the daemon is away.
    pub(super) fn look(&self, path: &str) -> Result<Reply, String> {
        let since = Instant::now();
        loop {
            let answer = self.try_ask(&Ask::new("GET", path));
            match answer {
                Ok(reply) if !self.is_broken(&reply) => return Ok(reply),
                Err(error) if !self.is_shaken() => return Err(format!("GET {path}: {error}")),
                other if since.elapsed() > SETTLE_MAX => return Err(format!("GET {path}: {other:?}")),
                _ => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// What a request that changes nothing finds.
    pub(super) fn get(&self, path: &str) -> Result<Value, String> {
        let reply = self.look(path)?;
        if reply.status == 200 {
            Ok(reply.json())
        } else {
            Err(format!("GET {path}: {} {}", reply.status, reply.text()))
        }
    }

    /// The files of a state; `None` where there is no such state.
    pub(super) fn files(&self, id: &str, state: &str) -> Result<Option<Files>, String> {
        let base = format!("/v1/computers/{id}/states/{state}");
        let reply = self.look(&format!("{base}/list?path={FOLDER}&depth=1"))?;
        match (reply.status, text(&error(&reply), "code")) {
            (200, _) => {}
            (404, "no_such_path") => return Ok(Some(Files::new())),
            (404, "state_not_found") => return Ok(None),
            _ => return Err(format!("{base}/list: {} {}", reply.status, reply.text())),
        }
        let list = reply.json();
        let hits = self.get(&format!("{base}/grep?path={FOLDER}&pattern=.&limit=10000"))?;
        let mut files = Files::new();
        for entry in list["items"].as_array().into_iter().flatten() {
            files.insert(base_name(text(entry, "path")), String::new());
        }
        for hit in hits["items"].as_array().into_iter().flatten() {
            let file = files.entry(base_name(text(hit, "path"))).or_default();
            file.push_str(text(hit, "text"));
            file.push('\n');
        }
        for entry in list["items"].as_array().into_iter().flatten() {
            let (path, size) = (text(entry, "path"), entry["size"].as_u64().unwrap_or_default());
            let read = files.get(&base_name(path)).map_or(0, String::len) as u64;
            if size != read {
                return Err(format!("{base}: {path} has {size} bytes, of which {read} can be read"));
            }
        }
        Ok(Some(files))
    }

    /// All that the daemon says of a computer, once nothing of it is under way; `None` where it is not there.
    fn seen(&self, id: &str) -> Result<Option<Seen>, String> {
        let base = format!("/v1/computers/{id}");
        let since = Instant::now();
        let (info, steps) = loop {
            let reply = self.look(&base)?;
            if reply.status == 404 {
                return Ok(None);
            }
            let info = reply.json();
            let steps = self.get(&format!("{base}/steps?limit=1000&order=asc"))?;
            let steps = steps["items"].as_array().cloned().unwrap_or_default();
            let on_its_way = ["creating", "starting", "stopping", "removing"].contains(&text(&info, "state"));
            let waits = text(&info, "state") == "running"
                && steps.iter().any(|step| step["status"] == "running" && step["kind"] != "service" && !is_long(step));
            if !on_its_way && !waits {
                break (info, steps);
            }
            if since.elapsed() > SETTLE_MAX {
                return Err(format!("{base} does not settle: {info}"));
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        let files = self.files(id, "now")?.ok_or("there is no state `now`")?;
        let net = self.get(&format!("{base}/net"))?;
        let list = |path: &str| -> Result<Vec<Value>, String> {
            Ok(self.get(&format!("{base}/{path}"))?["items"].as_array().cloned().unwrap_or_default())
        };
        let states = list("snapshots")?;
        let services = list("services")?;
        Ok(Some(Seen { info, steps, files, net, states, services }))
    }

    /// Compares a computer with its model; steps of the kinds in `unknown` may have come. While something is killed
    /// most is compared later, so that a kill meets requests that change something.
    pub(super) fn check(&mut self, at: usize, unknown: &[&'static str]) -> Result<(), String> {
        self.computers[at].unknown.extend(unknown);
        match self.is_shaken() && self.dice.below(8) > 0 {
            true => Ok(()),
            false => self.compare(at),
        }
    }

    /// Compares a computer with its model.
    pub(super) fn compare(&mut self, at: usize) -> Result<(), String> {
        let id = self.computers[at].id.clone();
        let name = self.computers[at].name.clone();
        let seen = self.seen(&id)?.ok_or_else(|| format!("`{name}` is lost"))?;
        self.computers[at].differs(&seen, &[]).map_err(|why| format!("`{name}`: {why}\n{}", seen.brief()))?;
        self.computers[at].adopt(&seen);
        self.computers[at].ended(&seen);
        self.check_old(at, &seen)?;
        self.check_output(at)
    }

    /// An older state, of a step or with a name, is what it was.
    fn check_old(&mut self, at: usize, seen: &Seen) -> Result<(), String> {
        let computer = &self.computers[at];
        let has_state = |number: u64| seen.steps.iter().any(|s| s["number"] == number && s["snapshot"].is_u64());
        let of_steps = computer.steps.iter().filter_map(|(number, step)| Some((*number, step.files.as_ref()?)));
        let mut known: Vec<(String, Files)> = of_steps
            .filter(|(number, _)| has_state(*number))
            .map(|(number, files)| (number.to_string(), files.clone()))
            .collect();
        known.extend(computer.labels.iter().map(|(label, files)| (label.clone(), files.clone())));
        let (id, name) = (computer.id.clone(), computer.name.clone());
        let Some((state, wanted)) = self.dice.one(&known) else { return Ok(()) };
        match self.files(&id, state)? {
            // A state after a step may have been thinned out since the list was read; a named one is kept.
            None if state.parse::<u64>().is_ok() => Ok(()),
            Some(found) if found == *wanted => Ok(()),
            found => Err(format!("`{name}@{state}`: wanted {wanted:?}, found {found:?}\n{}", seen.brief())),
        }
    }

    /// The output of an older step is whole.
    fn check_output(&mut self, at: usize) -> Result<(), String> {
        let computer = &self.computers[at];
        let ended = computer.steps.iter().filter(|(_, step)| matches!(step.end, End::Code(_)));
        let known: Vec<(u64, String)> =
            ended.filter_map(|(number, step)| Some((*number, step.output.clone()?))).collect();
        let (id, name) = (computer.id.clone(), computer.name.clone());
        let Some((number, wanted)) = self.dice.one(&known) else { return Ok(()) };
        let found = self.get(&format!("/v1/computers/{id}/steps/{number}/output"))?;
        match text(&found, "text") == wanted {
            true => Ok(()),
            false => Err(format!("output of step {number} of `{name}`: wanted {wanted:?}, found {found}")),
        }
    }

    /// Asks for a change of a computer: afterwards it is `next`, to which `learn` adds what the answer tells.
    pub(super) fn change(
        &mut self,
        at: usize,
        ask: &Ask,
        unknown: &[&'static str],
        next: Computer,
        learn: impl FnOnce(&mut Computer, &Value),
    ) -> Result<(), String> {
        match self.try_ask(ask) {
            Ok(reply) if reply.status < 300 => {
                self.computers[at] = next;
                let answer = if reply.body.is_empty() { Value::Null } else { reply.json() };
                learn(&mut self.computers[at], &answer);
                self.check(at, unknown)
            }
            Ok(reply) if !self.is_broken(&reply) => {
                Err(format!("{} {}: {} {}", ask.method, ask.path, reply.status, reply.text()))
            }
            Err(error) if !self.is_shaken() => Err(format!("{} {}: {error}", ask.method, ask.path)),
            _ => self.settle(at, next),
        }
    }

    /// A request was broken off: it is done, or it is not.
    pub(super) fn settle(&mut self, at: usize, next: Computer) -> Result<(), String> {
        const ALL: [&str; 5] = ["exec", "files", "restore", "merge", "entrypoint"];
        self.broken += 1;
        let before = self.computers[at].clone();
        let name = before.name.clone();
        let seen = self.seen(&before.id)?.ok_or_else(|| format!("`{name}` is lost"))?;
        let mut why = Vec::new();
        let ended = [&next, &before].map(|one| died(one, Stands::Failed));
        let cut = died(&next, Stands::Stopped);
        let ways = [next, before.clone(), woken(&before), died(&before, Stands::Stopped)];
        // What was copied is there and has not gone on yet.
        let asleep = before.inherited.is_some().then(|| Computer { stands: Stands::Paused, ..before.clone() });
        for mut candidate in ways.into_iter().chain([cut]).chain(ended).chain(asleep) {
            match candidate.differs(&seen, &ALL) {
                Ok(()) => {
                    candidate.adopt(&seen);
                    self.computers[at] = candidate;
                    return Ok(());
                }
                Err(one) => why.push(one),
            }
        }
        Err(format!(
            "`{name}` after a request that was broken off is neither as before nor as after: {why:?}\n{}",
            seen.brief()
        ))
    }

    /// Asks for something that must be refused with one of these codes, and changes nothing.
    pub(super) fn refused(&mut self, at: Option<usize>, ask: &Ask, codes: &[&str]) -> Result<(), String> {
        match self.try_ask(ask) {
            Ok(reply) if codes.contains(&text(&error(&reply), "code")) => {}
            Ok(reply) if self.is_broken(&reply) => {}
            Err(_) if self.is_shaken() => {}
            other => return Err(format!("{} {}: wanted {codes:?}, found {other:?}", ask.method, ask.path)),
        }
        at.map_or(Ok(()), |at| self.check(at, &[]))
    }

    /// Asks for a new computer, which then is `made`.
    pub(super) fn make(&mut self, ask: &Ask, mut made: Computer) -> Result<(), String> {
        let by_name = format!("/v1/computers/{}", made.name);
        match self.try_ask(ask) {
            Ok(reply) if reply.status == 201 => {
                let view = reply.json();
                let view = if view["items"].is_array() { view["items"][0].clone() } else { view };
                made.id = text(&view, "id").to_owned();
            }
            Ok(reply) if !self.is_broken(&reply) => {
                return Err(format!("{} {}: {} {}", ask.method, ask.path, reply.status, reply.text()));
            }
            Err(error) if !self.is_shaken() => {
                return Err(format!("{} {}: {error}", ask.method, ask.path));
            }
            _ => {
                self.broken += 1;
                let Some(id) = self.alive(&by_name)? else { return Ok(()) };
                made.id = id;
                self.computers.push(made);
                let at = self.computers.len() - 1;
                return self.settle(at, self.computers[at].clone());
            }
        }
        self.computers.push(made);
        self.check(self.computers.len() - 1, &[])
    }

    /// The id of what has a name; `None` where it is not there, or is in the trash.
    fn alive(&self, path: &str) -> Result<Option<String>, String> {
        let since = Instant::now();
        loop {
            let reply = self.look(path)?;
            if reply.status != 200 {
                return Ok(None);
            }
            let info = reply.json();
            match text(&info, "state") {
                "trashed" => return Ok(None),
                "removing" if since.elapsed() < SETTLE_MAX => std::thread::sleep(LOOK_AGAIN),
                _ => return Ok(Some(text(&info, "id").to_owned())),
            }
        }
    }

    /// Removes a computer, for good or into the trash.
    pub(super) fn remove(&mut self, at: usize, now: bool) -> Result<(), String> {
        let path = format!("/v1/computers/{}", self.computers[at].id);
        let ask = Ask::new("DELETE", format!("{path}{}", if now { "?now=true" } else { "" }));
        match self.try_ask(&ask) {
            Ok(reply) if reply.status == 204 => {}
            Ok(reply) if !self.is_broken(&reply) => {
                return Err(format!("DELETE {path}: {} {}", reply.status, reply.text()));
            }
            Err(error) if !self.is_shaken() => return Err(format!("DELETE {path}: {error}")),
            _ => {
                self.broken += 1;
                if self.alive(&path)?.is_some() {
                    return self.settle(at, self.computers[at].clone());
                }
            }
        }
        let mut gone = self.computers.remove(at);
        gone.cut();
        let reply = self.look(&path)?;
        match reply.status {
            404 if now => Ok(()),
            200 if !now && text(&reply.json(), "state") == "trashed" => {
                let found = self.files(&gone.id, "now")?;
                if found.as_ref() != Some(&gone.files) {
                    return Err(format!("`{}` in the trash: wanted {:?}, found {found:?}", gone.name, gone.files));
                }
                self.trash.push(gone);
                Ok(())
            }
            _ => Err(format!("{path} after its removal: {} {}", reply.status, reply.text())),
        }
    }

    /// Takes a computer out of the trash again; `after` is what it then is.
    pub(super) fn undelete(&mut self, at: usize, after: Computer) -> Result<(), String> {
        let id = after.id.clone();
        let ask = Ask::json("POST", "/v1/undo", &json!({"computer": id, "as": after.name}));
        match self.try_ask(&ask) {
            Ok(reply) if reply.status == 200 => {
                self.trash.remove(at);
                self.computers.push(after);
                self.check(self.computers.len() - 1, &[])
            }
            Ok(reply) if !self.is_broken(&reply) => Err(format!("undo of rm: {} {}", reply.status, reply.text())),
            Err(error) if !self.is_shaken() => Err(format!("undo of rm: {error}")),
            _ => {
                self.broken += 1;
                if self.alive(&format!("/v1/computers/{id}"))?.is_none() {
                    return Ok(());
                }
                self.trash.remove(at);
                let mut stopped = after.clone();
                if after.stands == Stands::Running {
                    stopped.stands = Stands::Stopped;
                }
                self.computers.push(stopped);
                self.settle(self.computers.len() - 1, after)
            }
        }
    }
}

/// A paused one that a broken request has woken.
fn woken(before: &Computer) -> Computer {
    let mut woken = before.clone();
    if woken.stands == Stands::Paused {
        woken.stands = Stands::Running;
    }
    woken
}

/// One whose processes a broken request has ended.
fn died(before: &Computer, stands: Stands) -> Computer {
    let mut died = before.clone();
    died.stands = stands;
    died.cut();
    died
}

/// A step that goes on by itself.
fn is_long(step: &Value) -> bool {
    step["argv"].as_array().is_some_and(|words| words.iter().any(|word| word == "soak-long"))
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The `error` of an answer.
pub(super) fn error(reply: &Reply) -> Value {
    serde_json::from_slice::<Value>(&reply.body).map(|body| body["error"].clone()).unwrap_or_default()
}
