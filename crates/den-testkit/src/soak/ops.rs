//! What a client of a soak does: one thing at a time, chosen by its dice among what its computers allow.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Ask, Client, FOLDER};
use super::model::{Computer, End, MEMORY_MIB, Net, Stands, Step, Undo, merged, text};

/// Computers of one client at most.
const COMPUTERS_MAX: usize = 5;
/// Names that a client gives: fewer than it makes computers, so that names are given again.
const NAMES: usize = 8;
/// Names of files.
const FILES: usize = 6;
/// Named states of one computer at most.
const LABELS_MAX: usize = 3;
/// A service that is asked for is ready by then.
const READY_MAX: Duration = Duration::from_secs(60);
/// Serves the folder over TCP.
const SERVER: &str = "exec python3 -m http.server 8000 --bind 127.0.0.1 --directory /root/soak";

/// A thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Do {
    Create,
    Write,
    Append,
    Delete,
    Fail,
    Put,
    Get,
    Detach,
    Snap,
    Forget,
    Fork,
    Merge,
    Restore,
    Copy,
    Pause,
    Hibernate,
    Resume,
    Resize,
    Stop,
    Start,
    Unplug,
    Replug,
    Serve,
    Unserve,
    Forward,
    Remove,
    RemoveNow,
    Undo,
    Undelete,
    Empty,
    Policy,
    Refused,
}

/// Each with how often it is chosen.
const ALL: [(usize, Do); 32] = [
    (8, Do::Create),
    (14, Do::Write),
    (8, Do::Append),
    (3, Do::Delete),
    (3, Do::Fail),
    (7, Do::Put),
    (4, Do::Get),
    (3, Do::Detach),
    (5, Do::Snap),
    (2, Do::Forget),
    (6, Do::Fork),
    (7, Do::Merge),
    (5, Do::Restore),
    (3, Do::Copy),
    (4, Do::Pause),
    (3, Do::Hibernate),
    (3, Do::Resume),
    (3, Do::Resize),
    (3, Do::Stop),
    (4, Do::Start),
    (2, Do::Unplug),
    (3, Do::Replug),
    (2, Do::Serve),
    (1, Do::Unserve),
    (2, Do::Forward),
    (3, Do::Remove),
    (3, Do::RemoveNow),
    (4, Do::Undo),
    (3, Do::Undelete),
    (1, Do::Empty),
    (4, Do::Policy),
    (4, Do::Refused),
];

impl Client<'_> {
    /// Does one thing, and compares. Errors: what is wrong, in words.
    pub fn step(&mut self) -> Result<(), String> {
        let what = if self.computers.is_empty() { Do::Create } else { self.dice.weighted(&ALL) };
        self.done += 1;
        if what == Do::Create {
            return self.create();
        }
        let at = self.dice.below(self.computers.len());
        let (name, stands) = (self.computers[at].name.clone(), self.computers[at].stands.clone());
        self.say(format!("{what:?} {name} ({})", stands.text()));
        let takes_use = matches!(stands, Stands::Running | Stands::Paused);
        let is_cut = matches!(stands, Stands::Unplugged(_));
        match what {
            Do::Write | Do::Append | Do::Delete | Do::Fail if takes_use => self.exec(at, what),
            Do::Put if takes_use => self.put(at),
            Do::Get => self.read(at),
            Do::Detach if takes_use => self.detach(at),
            Do::Snap if !is_cut && self.computers[at].labels.len() < LABELS_MAX => self.snap(at),
            Do::Forget if !is_cut => self.forget(at),
            Do::Fork if !is_cut && self.computers.len() < COMPUTERS_MAX => self.fork(at),
            Do::Copy if takes_use && self.has_criu && self.computers.len() < COMPUTERS_MAX => self.copy(at),
            Do::Merge if takes_use => self.merge(at),
            Do::Restore if !is_cut => self.restore(at),
            Do::Pause if stands == Stands::Running => self.stand(at, "pause", Stands::Paused),
            Do::Hibernate if takes_use && self.has_criu => self.stand(at, "pause to_disk", Stands::Paused),
            Do::Resize if !is_cut => self.resize(at),
            Do::Resume if stands == Stands::Paused => self.stand(at, "resume", Stands::Running),
            Do::Stop if takes_use => self.stand(at, "stop", Stands::Stopped),
            Do::Start if matches!(stands, Stands::Stopped | Stands::Failed) => self.stand(at, "start", Stands::Running),
            Do::Unplug if !is_cut => self.stand(at, "unplug", Stands::Unplugged(Box::new(stands))),
            Do::Replug if is_cut => match stands {
                Stands::Unplugged(before) => self.stand(at, "replug", *before),
                _ => Ok(()),
            },
            Do::Serve if takes_use => self.serve(at),
            Do::Unserve if takes_use => self.unserve(at),
            Do::Forward if takes_use => self.forward(at),
            Do::Remove => self.remove(at, false),
            Do::RemoveNow => self.remove(at, true),
            Do::Undo if !is_cut => self.undo(at),
            Do::Undelete => self.bring_back(),
            Do::Empty => self.empty(),
            Do::Policy if !is_cut => self.policy(at),
            Do::Refused => self.wrong(at),
            _ => Ok(()),
        }
    }

    /// A name that none of its living computers has, or one that is taken.
    fn name(&mut self) -> (String, bool) {
        let name = format!("c{}-{}", self.number, self.dice.below(NAMES));
        let taken = self.computers.iter().any(|computer| computer.name == name);
        (name, taken)
    }

    fn create(&mut self) -> Result<(), String> {
        let (name, taken) = self.name();
        self.say(format!("Create {name}"));
        let body = json!({"name": name, "memory": format!("{MEMORY_MIB}MiB"), "pids": 256, "disk": "1GiB"});
        let ask = Ask::json("POST", "/v1/computers", &body);
        if taken {
            return self.refused(None, &ask, &["name_taken"]);
        }
        if self.computers.len() >= COMPUTERS_MAX {
            return Ok(());
        }
        let many = self.computers.len();
        self.make(&ask, Computer::new(&name))?;
        match self.computers.len() > many && self.computers[many].stands == Stands::Running {
            // The folder is there in all that fork from it, so that no merge is about it.
            true => self.script(many, &format!("mkdir -p {FOLDER}"), 0, "", |_| {}),
            false => Ok(()),
        }
    }

    /// Runs a script that prints `output` and ends with `code`; `learn` does to the model what it does.
    fn script(
        &mut self,
        at: usize,
        script: &str,
        code: i32,
        output: &str,
        learn: impl FnOnce(&mut Computer),
    ) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        next.stands = Stands::Running;
        learn(&mut next);
        let files = (!next.is_busy()).then(|| next.files.clone());
        let step = Step { end: End::Code(code), output: Some(output.to_owned()), files };
        let ask = exec(&next.id, &["sh", "-c", script], false);
        self.change(at, &ask, &[], next, |computer, answer| {
            computer.steps.insert(answer["step"]["number"].as_u64().unwrap_or_default(), step);
        })
    }

    /// Text that no other file of this soak has.
    fn line(&mut self) -> String {
        self.made += 1;
        format!("{}.{}.{}", self.number, self.made, self.dice.below(1_000_000))
    }

    fn file(&mut self) -> String {
        format!("f{}", self.dice.below(FILES))
    }

    fn exec(&mut self, at: usize, what: Do) -> Result<(), String> {
        let (file, line) = (self.file(), self.line());
        let path = format!("{FOLDER}/{file}");
        match what {
            Do::Write => self.script(
                at,
                &format!("mkdir -p {FOLDER}; echo {line} > {path}; echo {line}"),
                0,
                &format!("{line}\n"),
                |c| {
                    c.files.insert(file, format!("{line}\n"));
                },
            ),
            Do::Append => self.script(at, &format!("mkdir -p {FOLDER}; echo {line} >> {path}"), 0, "", |c| {
                let content = c.files.entry(file).or_default();
                content.push_str(&line);
                content.push('\n');
            }),
            Do::Delete => self.script(at, &format!("rm -f {path}"), 0, "", |c| {
                c.files.remove(&file);
            }),
            _ => self.script(at, &format!("echo {line}; exit 9"), 9, &format!("{line}\n"), |_| {}),
        }
    }

    fn put(&mut self, at: usize) -> Result<(), String> {
        let (file, line) = (self.file(), self.line());
        let mut next = self.computers[at].clone();
        next.stands = Stands::Running;
        next.files.insert(file.clone(), format!("{line}\n"));
        let path = format!("/v1/computers/{}/files?path={FOLDER}/{file}&parents=true", next.id);
        self.change(at, &Ask::bytes("PUT", path, &format!("{line}\n")), &["files"], next, |_, _| {})
    }

    /// Reads a file of the computer itself, which wakes it, or is refused.
    fn read(&mut self, at: usize) -> Result<(), String> {
        let file = self.file();
        let computer = &self.computers[at];
        let path = format!("/v1/computers/{}/files?path={FOLDER}/{file}", computer.id);
        let wanted = match (&computer.stands, computer.files.get(&file)) {
            (Stands::Stopped | Stands::Failed, _) => {
                return self.refused(Some(at), &Ask::new("GET", path), &["computer_stopped"]);
            }
            (Stands::Unplugged(_), _) => return self.refused(Some(at), &Ask::new("GET", path), &["unplugged"]),
            (_, None) => (404, None),
            (_, Some(content)) => (200, Some(content.clone())),
        };
        let reply = self.look(&path)?;
        let found = (reply.status, (reply.status == 200).then(|| reply.text()));
        if found != wanted {
            return Err(format!("GET {path}: wanted {wanted:?}, found {found:?}"));
        }
        self.computers[at].stands = Stands::Running;
        self.check(at, &[])
    }

    /// A step that goes on while other things are done.
    fn detach(&mut self, at: usize) -> Result<(), String> {
        let lines = 5 + self.dice.below(60);
        let mut next = self.computers[at].clone();
        next.stands = Stands::Running;
        let script = "i=0; while [ $i -lt $1 ]; do i=$((i+1)); echo $i; sleep 0.05; done";
        let ask = exec(&next.id, &["sh", "-c", script, "soak-long", &lines.to_string()], true);
        self.change(at, &ask, &[], next, |computer, answer| {
            let number = answer["number"].as_u64().or(answer["step"]["number"].as_u64()).unwrap_or_default();
            let output = (1..=lines).map(|line| format!("{line}\n")).collect();
            computer.steps.insert(number, Step { end: End::Going, output: Some(output), files: None });
        })
    }

    fn snap(&mut self, at: usize) -> Result<(), String> {
        let label = format!("s{}", self.dice.below(1000));
        let mut next = self.computers[at].clone();
        let ask = Ask::json("POST", format!("/v1/computers/{}/snapshots", next.id), &json!({"label": label}));
        if next.labels.contains_key(&label) {
            return Ok(());
        }
        next.labels.insert(label, next.files.clone());
        self.change(at, &ask, &[], next, |_, _| {})
    }

    fn forget(&mut self, at: usize) -> Result<(), String> {
        let labels: Vec<String> = self.computers[at].labels.keys().cloned().collect();
        let Some(label) = self.dice.one(&labels) else { return Ok(()) };
        let mut next = self.computers[at].clone();
        next.labels.remove(label);
        let ask = Ask::new("DELETE", format!("/v1/computers/{}/snapshots/{label}", next.id));
        self.change(at, &ask, &[], next, |_, _| {})
    }

    /// A state of a computer that is still kept, and the files in it.
    fn old_state(&mut self, at: usize) -> Option<(String, super::model::Files)> {
        let labels: Vec<_> = self.computers[at].labels.iter().map(|(l, f)| (l.clone(), f.clone())).collect();
        self.dice.one(&labels).cloned()
    }

    fn fork(&mut self, at: usize) -> Result<(), String> {
        let (name, taken) = self.name();
        let parent = self.computers[at].clone();
        let old = if self.dice.below(3) == 0 { self.old_state(at) } else { None };
        let (state, files) = old.unwrap_or_else(|| ("now".to_owned(), parent.files.clone()));
        let path = format!("/v1/computers/{}/fork", parent.id);
        let ask = Ask::json("POST", path, &json!({"name": name, "state": state}));
        if taken {
            return self.refused(Some(at), &ask, &["name_taken"]);
        }
        let mut fork = parent.forked(&name, files);
        if state != "now" {
            fork.origin = None;
        }
        self.make(&ask, fork)?;
        self.check(at, &[])
    }

    /// A fork in which goes on what runs.
    fn copy(&mut self, at: usize) -> Result<(), String> {
        let (name, taken) = self.name();
        let parent = self.computers[at].clone();
        let ask =
            Ask::json("POST", format!("/v1/computers/{}/fork", parent.id), &json!({"name": name, "memory": true}));
        if taken {
            return self.refused(Some(at), &ask, &["name_taken"]);
        }
        self.make(&ask, parent.copied(&name))?;
        match self.is_shaken() {
            // One that was paused may have been woken for it.
            true => self.settle(at, parent),
            false => self.check(at, &[]),
        }
    }

    fn resize(&mut self, at: usize) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        let before = next.memory_mib;
        next.memory_mib = *self.dice.one(&[MEMORY_MIB, 640, 768]).unwrap_or(&MEMORY_MIB);
        // Memory that lies on the disk has to fit when it comes back: less is refused.
        if next.memory_mib == before || (next.stands == Stands::Paused && next.memory_mib < before) {
            return Ok(());
        }
        let body = json!({"memory": format!("{}MiB", next.memory_mib)});
        let ask = Ask::json("PATCH", format!("/v1/computers/{}", next.id), &body);
        let mut told = false;
        self.change(at, &ask, &[], next, |computer, _| {
            told = true;
            computer.undo.push(Undo::Memory(before));
        })?;
        if !told {
            self.computers[at].undo.clear();
        }
        Ok(())
    }

    /// A fork into the computer it was made from.
    fn merge(&mut self, at: usize) -> Result<(), String> {
        let (into, files) = (self.computers[at].id.clone(), self.computers[at].files.clone());
        let forks = self.computers.iter().filter_map(|fork| {
            let (parent, base) = fork.origin.as_ref()?;
            (*parent == into).then(|| (fork.id.clone(), merged(base, &files, &fork.files)))
        });
        let forks: Vec<_> = forks.collect();
        let Some((from, result)) = self.dice.one(&forks) else { return Ok(()) };
        let mut next = self.computers[at].clone();
        next.stands = Stands::Running;
        let before = next.files.clone();
        if let Some(result) = result {
            next.files.clone_from(result);
        }
        let changes = next.files != before;
        let ask = Ask::json("POST", format!("/v1/computers/{into}/merge"), &json!({"from": from}));
        let mut conflicts = None;
        self.change(at, &ask, &["merge"], next, |computer, answer| {
            conflicts = answer["conflicts"].as_array().map(Vec::len);
            if answer["step"].is_u64() {
                computer.undo.push(Undo::Disk(before));
            }
        })?;
        match (conflicts, result) {
            (Some(0), None) => Err(format!("a merge of {from} into {into} should have met a conflict")),
            (Some(1..), Some(_)) => Err(format!("a merge of {from} into {into} met a conflict, changes: {changes}")),
            // Broken off, it may be done: what can be taken back is not known any more.
            (None, _) => {
                self.computers[at].undo.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn restore(&mut self, at: usize) -> Result<(), String> {
        let Some((state, files)) = self.old_state(at) else { return Ok(()) };
        let mut next = self.computers[at].clone();
        next.stands = booted(&next.stands);
        let before = std::mem::take(&mut next.files);
        next.back_to(files);
        let ask = Ask::json("POST", format!("/v1/computers/{}/restore", next.id), &json!({"state": state}));
        let id = next.id.clone();
        let mut told = false;
        self.change(at, &ask, &["restore"], next, |computer, _| {
            told = true;
            computer.undo.push(Undo::Disk(before));
        })?;
        self.is_back(at, &id, told);
        Ok(())
    }

    /// A disk went back: nothing that was forked from it has a common past with it that the model knows.
    fn is_back(&mut self, at: usize, id: &str, told: bool) {
        for fork in self.computers.iter_mut().chain(&mut self.trash) {
            if fork.origin.as_ref().is_some_and(|(parent, _)| parent == id) {
                fork.origin = None;
            }
        }
        self.computers[at].origin = None;
        if !told {
            self.computers[at].undo.clear();
        }
    }

    /// One of the requests that have it stand otherwise.
    fn stand(&mut self, at: usize, word: &str, then: Stands) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        next.stands = then;
        let (word, body) = match word {
            "stop" => {
                next.cut();
                (word, json!({"grace_ms": 200}))
            }
            "pause to_disk" => ("pause", json!({"to_disk": true})),
            _ => (word, json!({})),
        };
        let path = format!("/v1/computers/{}/{word}", next.id);
        self.change(at, &Ask::json("POST", path, &body), &[], next, |_, _| {})
    }

    fn serve(&mut self, at: usize) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        let body = json!({"name": "web", "run": ["sh", "-c", SERVER], "ready": "port:8000"});
        let ask = Ask::json("POST", format!("/v1/computers/{}/services", next.id), &body);
        if next.services.contains("web") {
            return self.refused(None, &ask, &["service_exists", "name_taken", "service_taken"]);
        }
        next.stands = Stands::Running;
        next.services.insert("web".to_owned());
        // Whether adding wakes a paused one is for another test.
        if self.computers[at].stands == Stands::Paused {
            return Ok(());
        }
        self.change(at, &ask, &[], next, |_, _| {})
    }

    fn unserve(&mut self, at: usize) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        if next.stands == Stands::Paused || !next.services.remove("web") {
            return Ok(());
        }
        let ask = Ask::new("DELETE", format!("/v1/computers/{}/services/web", next.id));
        self.change(at, &ask, &[], next, |_, _| {})
    }

    /// A connection to the service inside, which serves the files of the model.
    fn forward(&mut self, at: usize) -> Result<(), String> {
        let computer = &self.computers[at];
        let Some((file, content)) = computer.files.iter().next() else { return Ok(()) };
        if !computer.services.contains("web") {
            return Ok(());
        }
        let (file, content) = (file.clone(), content.clone());
        let head = format!(
            "GET /v1/computers/{}/ports/8000/connect HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             connection: upgrade\r\nupgrade: den-tcp\r\n\r\n",
            computer.id, self.api.addr, self.api.token
        );
        let since = Instant::now();
        loop {
            match self.fetch(&head, &file) {
                Ok(answer) if answer.ends_with(&format!("\r\n\r\n{content}")) => break,
                // It is being started, or its computer is.
                other if since.elapsed() > READY_MAX => {
                    return Err(format!("/{file} over port 8000: wanted {content:?}, found {other:?}"));
                }
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.computers[at].stands = Stands::Running;
        self.check(at, &[])
    }

    fn fetch(&self, head: &str, file: &str) -> std::io::Result<String> {
        let mut tcp = TcpStream::connect(self.api.addr)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        tcp.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            tcp.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"HTTP/1.1 101") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        tcp.write_all(format!("GET /{file} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        tcp.read_to_string(&mut text)?;
        Ok(text)
    }

    fn undo(&mut self, at: usize) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        let Some(last) = next.undo.pop() else { return Ok(()) };
        let id = next.id.clone();
        if matches!(last, Undo::Memory(_)) && next.stands == Stands::Paused {
            return Ok(());
        }
        let is_disk = matches!(last, Undo::Disk(_));
        match last {
            Undo::Disk(files) => {
                next.stands = booted(&next.stands);
                next.back_to(files);
            }
            Undo::Net(net) => next.net = net,
            Undo::Memory(before) => next.memory_mib = before,
        }
        let mut told = false;
        let ask = Ask::json("POST", "/v1/undo", &json!({"computer": id}));
        self.change(at, &ask, &["restore"], next, |_, _| told = true)?;
        if is_disk {
            self.is_back(at, &id, told);
        } else if !told {
            self.computers[at].undo.clear();
        }
        Ok(())
    }

    fn bring_back(&mut self) -> Result<(), String> {
        if self.trash.is_empty() || self.computers.len() >= COMPUTERS_MAX {
            return Ok(());
        }
        let at = self.dice.below(self.trash.len());
        let (name, taken) = self.name();
        let mut after = self.trash[at].clone();
        self.say(format!("Undelete {} as {name}", after.name));
        if taken {
            let ask = Ask::json("POST", "/v1/undo", &json!({"computer": after.id, "as": name}));
            return self.refused(None, &ask, &["name_taken"]);
        }
        after.name = name;
        after.stands = match after.stands {
            Stands::Running => Stands::Running,
            // Nothing of it runs any more.
            Stands::Unplugged(_) => Stands::Unplugged(Box::new(Stands::Stopped)),
            Stands::Failed => Stands::Failed,
            Stands::Paused | Stands::Stopped => Stands::Stopped,
        };
        self.undelete(at, after)
    }

    /// One of the trash goes for good.
    fn empty(&mut self) -> Result<(), String> {
        if self.trash.is_empty() {
            return Ok(());
        }
        let at = self.dice.below(self.trash.len());
        let id = self.trash[at].id.clone();
        let ask = Ask::new("DELETE", format!("/v1/trash/{id}"));
        let gone = match self.try_ask(&ask) {
            Ok(reply) if reply.status == 200 => true,
            Ok(reply) if !self.is_broken(&reply) => return Err(format!("DELETE /v1/trash/{id}: {}", reply.text())),
            Err(error) if !self.is_shaken() => return Err(format!("DELETE /v1/trash/{id}: {error}")),
            _ => self.look(&format!("/v1/computers/{id}"))?.status == 404,
        };
        if gone {
            self.trash.remove(at);
            let path = format!("/v1/computers/{id}");
            let reply = self.look(&path)?;
            if reply.status != 404 {
                return Err(format!("{path} after its removal: {} {}", reply.status, reply.text()));
            }
        }
        Ok(())
    }

    fn policy(&mut self, at: usize) -> Result<(), String> {
        let mut next = self.computers[at].clone();
        let before: Net = next.net.clone();
        let posture = *self.dice.one(&["open", "guarded", "sealed"]).unwrap_or(&"open");
        let rule = format!("h{}.example.com", self.dice.below(20));
        next.net.posture = posture.to_owned();
        let mut body = json!({"posture": posture});
        if before.allow.contains(&rule) {
            next.net.allow.remove(&rule);
            body["remove"] = json!([rule]);
        } else {
            next.net.allow.insert(rule.clone());
            body["allow_add"] = json!([rule]);
        }
        let ask = Ask::json("PATCH", format!("/v1/computers/{}/net", next.id), &body);
        let mut told = false;
        self.change(at, &ask, &[], next, |computer, _| {
            told = true;
            computer.undo.push(Undo::Net(before));
        })?;
        if !told {
            self.computers[at].undo.clear();
        }
        Ok(())
    }

    /// Something that where it stands does not allow.
    fn wrong(&mut self, at: usize) -> Result<(), String> {
        let computer = &self.computers[at];
        let path = |word: &str| format!("/v1/computers/{}/{word}", computer.id);
        let post = |word: &str| Ask::json("POST", path(word), &json!({}));
        let (ask, codes): (Ask, &[&str]) = match &computer.stands {
            Stands::Running => (post("resume"), &["wrong_state"]),
            Stands::Paused => (post("start"), &["wrong_state"]),
            Stands::Stopped | Stands::Failed => (exec(&computer.id, &["true"], false), &["computer_stopped"]),
            Stands::Unplugged(_) => (exec(&computer.id, &["true"], false), &["unplugged"]),
        };
        self.refused(Some(at), &ask, codes)?;
        let gone = "/v1/computers/cmp_00000000-0000-0000-0000-000000000000";
        self.refused(None, &Ask::new("DELETE", gone), &["computer_not_found", "bad_name"])
    }

    /// Compares all that it has.
    pub fn check_all(&mut self) -> Result<(), String> {
        for at in 0..self.computers.len() {
            self.compare(at)?;
        }
        for gone in self.trash.clone() {
            let info = self.get(&format!("/v1/computers/{}", gone.id))?;
            let files = self.files(&gone.id, "now")?;
            if text(&info, "state") != "trashed" || files.as_ref() != Some(&gone.files) {
                return Err(format!("`{}` in the trash: wanted {:?}, found {files:?}, {info}", gone.name, gone.files));
            }
        }
        Ok(())
    }

    /// Removes all that it has, for good.
    pub fn clear(&mut self) -> Result<(), String> {
        while !self.computers.is_empty() {
            self.say(format!("clear {}", self.computers[0].name));
            self.remove(0, true)?;
        }
        for gone in std::mem::take(&mut self.trash) {
            let ask = Ask::new("DELETE", format!("/v1/trash/{}", gone.id));
            match self.try_ask(&ask) {
                Ok(reply) if reply.status == 200 => {}
                other => return Err(format!("`{}` does not go from the trash: {other:?}", gone.name)),
            }
        }
        Ok(())
    }
}

/// Where a computer stands once its disk has gone back.
fn booted(before: &Stands) -> Stands {
    match before {
        Stands::Running | Stands::Paused => Stands::Running,
        Stands::Stopped | Stands::Failed | Stands::Unplugged(_) => Stands::Stopped,
    }
}

/// A command.
fn exec(id: &str, argv: &[&str], detach: bool) -> Ask {
    let body: Value = json!({"argv": argv, "detach": detach});
    Ask::json("POST", format!("/v1/computers/{id}/steps"), &body)
}
