//! What every row stands on: an internet, a house that resolves there, and eyes on both.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use den_testkit::{House, Internet, Options, Ran, Site, eventually};
use serde_json::Value;

/// The attacker's kit, before every script.
const KIT: &str = include_str!("inside.py");
/// A refusal that is not there by then came by a timeout, not by a decision. Machines of a test may
/// be busy; a timeout of the kernel's is longer still.
pub const AT_ONCE_MS: u64 = 2500;
/// A record or a packet is seen by then; what the kernel has dropped is looked at every 5 s.
pub const SOON: Duration = Duration::from_secs(10);

/// An internet and a house.
pub struct World {
    /// The house goes first when this is dropped: computers before their internet.
    pub house: House,
    pub net: Internet,
}

impl World {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With further words for `den serve`.
    pub fn with(args: &[&str]) -> Self {
        Self::on(Internet::new(), args)
    }

    pub fn on(net: Internet, args: &[&str]) -> Self {
        let mut words = vec!["--resolver".to_owned(), net.at(Site::Dns).to_string()];
        words.extend(args.iter().map(|word| (*word).to_owned()));
        let house = House::with(env!("CARGO_BIN_EXE_den"), Options { args: words, ..Options::default() });
        Self { house, net }
    }

    /// A world with one computer, `c`, that is guarded and may do what the rules say.
    pub fn guarded(rules: &[&str]) -> Self {
        let world = Self::new();
        world.add("c", "guarded", rules);
        world
    }

    /// One more computer. `--force` is not given.
    pub fn add(&self, name: &str, posture: &str, rules: &[&str]) {
        let mut words = vec!["new", name, "--memory", "512MiB", "--pids", "512", "--net", posture];
        for rule in rules {
            words.extend(["--allow", rule]);
        }
        self.house.den(&words).ok();
    }

    /// Runs a script of Python inside, after the kit; what it said, line by line.
    pub fn run(&self, name: &str, script: &str) -> Vec<Value> {
        let ran = self.try_run(name, script);
        let out = ran.ok();
        out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Likewise, however it ends.
    pub fn try_run(&self, name: &str, script: &str) -> Ran {
        let whole = format!("{KIT}{}", self.fill(script));
        self.house.den_with(&["exec", "-i", name, "--", "python3", "-"], whole.as_bytes())
    }

    /// Likewise in the background; wait for it by joining.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        name: &'static str,
        script: &str,
    ) -> std::thread::ScopedJoinHandle<'scope, Vec<Value>> {
        let script = script.to_owned();
        scope.spawn(move || self.run(name, &script))
    }

    /// Puts addresses of the internet in place of `{good}` and so on.
    fn fill(&self, script: &str) -> String {
        let mut text = script.to_owned();
        for (word, site) in [
            ("{dns}", Site::Dns),
            ("{good}", Site::Good),
            ("{echo}", Site::Echo),
            ("{evil}", Site::Evil),
            ("{cdn}", Site::Cdn),
            ("{mirror}", Site::Mirror),
            ("{gone}", Site::Gone),
        ] {
            text = text.replace(word, &self.net.at(site).to_string());
        }
        text.replace("{private}", &self.net.private().to_string())
            .replace("{shared}", &self.net.carrier_grade().to_string())
            .replace("{host}", &self.net.host().to_string())
    }

    /// What `den net log` says, oldest first.
    pub fn records(&self, name: &str) -> Vec<Value> {
        let out = self.house.den(&["net", "log", name, "-n", "0", "--json"]).ok();
        if let Ok(Value::Array(all)) = serde_json::from_str(&out) {
            return all;
        }
        out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Waits for a record; panics with all of them where there is none.
    pub fn record(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let all = self.records(name);
            if let Some(found) = all.iter().find(|record| is(record)) {
                return found.clone();
            }
            assert!(since.elapsed() < SOON, "no record of {what} among:\n{}", lines(&all));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A refusal was written down: its kind, why, and a word of its target or name.
    pub fn denied(&self, name: &str, kind: &str, why: &str, about: &str) -> Value {
        let about = self.fill(about);
        self.record(name, &format!("{kind} deny {why} {about}"), |record| {
            record["kind"] == kind && record["verdict"] == "deny" && record["why"] == why && mentions(record, &about)
        })
    }

    /// A flow or query was let through, and written down.
    pub fn allowed(&self, name: &str, kind: &str, about: &str) -> Value {
        let about = self.fill(about);
        self.record(name, &format!("{kind} allow {about}"), |record| {
            record["kind"] == kind && record["verdict"] == "allow" && mentions(record, &about)
        })
    }

    /// The kernel has dropped packets of the computer, and that was written down.
    pub fn dropped(&self, name: &str, why: &str) {
        self.record(name, &format!("dropped packets: {why}"), |record| {
            record["kind"] == "drop" && record["why"] == why && record["count"].as_u64().is_some_and(|count| count > 0)
        });
    }

    /// Nothing of the canary arrived where it must not.
    pub fn no_leak(&self, canary: &str) {
        // What is under way gets there first.
        std::thread::sleep(Duration::from_millis(100));
        if let Some(place) = self.net.where_leaked(canary) {
            panic!("the canary arrived: {place}");
        }
    }

    /// The detector itself works: this canary is seen.
    pub fn leaks(&self, canary: &str) {
        eventually(SOON, "the witness sees what is allowed", || self.net.leaked(canary));
    }

    /// Not one packet arrived for a site.
    pub fn untouched(&self, site: Site) {
        std::thread::sleep(Duration::from_millis(100));
        let packets = self.net.packets_to(self.net.at(site));
        assert!(packets.is_empty(), "{site:?} was touched: {:?}", packets.first());
    }
}

/// Letters that occur nowhere else.
pub fn canary() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("canary{:x}{:x}x{}", std::process::id(), since.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// It was refused, at once: by a reset, or, where a plain request was made, by the gate's own answer.
pub fn refused(seen: &Value) {
    let (end, got) = (seen["end"].as_str().unwrap_or_default(), seen["got"].as_str().unwrap_or_default());
    let told =
        ["403", "421"].iter().any(|code| got.starts_with(&format!("HTTP/1.1 {code}"))) && got.contains("\"error\"");
    assert!(["refused", "reset"].contains(&end) && got.is_empty() || told, "wanted a refusal: {seen}");
    assert!(seen["ms"].as_u64().is_some_and(|ms| ms < AT_ONCE_MS), "a refusal, but late: {seen}");
}

/// A web site answered with 200.
pub fn answered(seen: &Value) {
    assert!(seen["got"].as_str().is_some_and(|got| got.starts_with("HTTP/1.1 200")), "wanted an answer: {seen}");
}

/// An answer of this status.
pub fn status(seen: &Value, code: u16) {
    let got = seen["got"].as_str().unwrap_or_default();
    assert!(got.starts_with(&format!("HTTP/1.1 {code}")), "wanted {code}: {seen}");
}

/// A DNS query was refused with the extended error "blocked".
pub fn blocked(seen: &Value) {
    assert_eq!((&seen["code"], &seen["ede"]), (&Value::from(5), &Value::from(15)), "wanted REFUSED and EDE 15: {seen}");
    assert!(seen["ms"].as_u64().is_some_and(|ms| ms < AT_ONCE_MS), "{seen}");
}

fn mentions(record: &Value, about: &str) -> bool {
    ["target", "name", "detail", "rule", "dialled"]
        .iter()
        .any(|field| record[*field].as_str().is_some_and(|text| text.contains(about)))
        || about.is_empty()
}

fn lines(all: &[Value]) -> String {
    let tail = &all[all.len().saturating_sub(40)..];
    tail.iter().map(|record| format!("{record}\n")).collect()
}
