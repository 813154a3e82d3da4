//! `net`: what a computer may reach, changes of that, and what it did reach.
//!
//! ```text
//! den net NAME                        the policy in force, and what its link carries
//! den net NAME POSTURE|allow|deny|forget|limit …      one PATCH, and the same view
//! den net NAME check TARGET           what would be decided
//! den net log NAME                    the gate's records, a line each
//! ```

pub mod limits;
mod record;

use std::time::Duration;

use clap::Args;
use den_api::{Client, NetChange, NetCheck, NetRequest, NetView, client::NetLogFilter};

use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// How many of the latest records are shown when nobody says.
const SHOWN: u32 = 50;
/// The most that one request asks for.
const PAGE: u32 = 1000;
/// Between two looks for new records.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);
/// What may be said after a name.
const VERBS: &str = "open, guarded, sealed, allow, deny, forget, limit, check, log";

#[derive(Debug, Args)]
#[command(
    override_usage = "den net NAME\n       \
                      den net NAME open|guarded|sealed\n       \
                      den net NAME allow|deny|forget RULE…\n       \
                      den net NAME limit WHAT=AMOUNT,…\n       \
                      den net NAME check HOST[:PORT]\n       \
                      den net log NAME",
    after_help = "Postures: open, the public internet; guarded, what a rule allows; sealed, nothing.\n\
                  Rules: example.com, *.example.com:8443, tcp://db.example.com:5432, 192.0.2.0/24, vm:db:5432.\n\
                  Limits: flows, new (a second), bits (a second, each way), bytes (a day), dns (a second); 0 is none.\n\
                  Example: den net web guarded; den net web allow example.com '*.example.org'; den net log web"
)]
pub struct NetArgs {
    /// Name or id, and what to do
    #[arg(required = true, value_name = "WORD")]
    words: Vec<String>,
    /// Take rules that are wider than anyone should want
    #[arg(long)]
    force: bool,
    /// log: go on as more comes
    #[arg(long, short)]
    follow: bool,
    /// log: only what was refused
    #[arg(long)]
    denied: bool,
    /// log: only open, close, http, dns, limit, drop or gate
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// log: how many of the latest; 0 for all [default: 50]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
}

/// What `new` says of the network.
#[derive(Debug, Args)]
pub struct NewNetArgs {
    /// open, guarded or sealed [default: as the daemon has it]
    #[arg(long, value_name = "POSTURE")]
    net: Option<String>,
    /// What it may reach when guarded; may be given several times
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// What it may not reach; may be given several times
    #[arg(long, value_name = "RULE")]
    deny: Vec<String>,
    /// flows=100,bits=1g: see `den net`
    #[arg(long, value_name = "LIMITS", value_parser = limits::parse)]
    net_limit: Option<den_api::NetLimitsChange>,
    /// Take rules that are wider than anyone should want
    #[arg(long)]
    force: bool,
}

impl NewNetArgs {
    /// As a create says it; nothing where nothing was said.
    pub fn request(self) -> Option<NetRequest> {
        let Self { net, allow, deny, net_limit, force } = self;
        let request = NetRequest { posture: net, allow, deny, limits: net_limit, force };
        (request != NetRequest { force, ..NetRequest::default() }).then_some(request)
    }
}

/// Shows or changes what a computer may reach.
pub async fn run(global: &Global, args: NetArgs) -> Outcome {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let wrong = |text: String| Trouble::usage(text).hint(format_args!("after the name comes one of {VERBS}"));
    // `den net NAME log` and `den net log NAME` are the same; a computer called `log` is meant by the first.
    let (name, verb, rest) = match words[..] {
        [name] => (name, None, &words[1..]),
        ["log", name] if !is_verb(name) => (name, Some("log"), &words[2..]),
        [name, verb, ..] => (name, Some(verb), &words[2..]),
        [] => return Err(wrong("no name is given".to_owned())),
    };
    let verb = verb.unwrap_or("show");
    if verb != "log" && (args.follow || args.denied || args.kind.is_some() || args.lines.is_some()) {
        return Err(Trouble::usage("`--follow`, `--denied`, `--kind` and `--lines` are for `den net log NAME`"));
    }
    let rules = || -> Result<Vec<String>, Trouble> {
        if rest.is_empty() {
            return Err(Trouble::usage(format_args!("`{verb}` wants a rule"))
                .hint(format_args!("den net {name} {verb} example.com")));
        }
        Ok(rest.iter().map(|&rule| rule.to_owned()).collect())
    };
    let alone = |count: usize| match rest.get(count) {
        None => Ok(()),
        Some(word) => Err(Trouble::usage(format_args!("`{word}` is one word too many after `{verb}`"))),
    };
    let mut change = NetChange { force: args.force, ..NetChange::default() };
    match verb {
        "show" => {
            let view = global.client()?.net(name).await?;
            return shown(global, name, &view);
        }
        "open" | "guarded" | "sealed" => {
            alone(0)?;
            change.posture = Some(verb.to_owned());
        }
        "allow" => change.allow_add = rules()?,
        "deny" => change.deny_add = rules()?,
        "forget" => change.remove = rules()?,
        "limit" => {
            if rest.is_empty() {
                return Err(Trouble::usage("`limit` wants amounts")
                    .hint(format_args!("den net {name} limit flows=100,bits=1g")));
            }
            let limits = limits::parse(&rest.join(",")).map_err(|why| {
                Trouble::usage(format_args!("`limit`: {why}"))
                    .hint(format_args!("den net {name} limit flows=100,bits=1g"))
            })?;
            change.limits = Some(limits);
        }
        "check" => {
            let Some(target) = rest.first() else {
                return Err(
                    Trouble::usage("`check` wants a target").hint(format_args!("den net {name} check example.com:443"))
                );
            };
            alone(1)?;
            return check(global, name, target).await;
        }
        "log" => {
            alone(0)?;
            return log(global, &global.client()?, name, &args).await;
        }
        other => return Err(wrong(format!("`{other}` is nothing that can be done with a network"))),
    }
    let view = global.client()?.change_net(name, &change).await?;
    shown(global, name, &view)
}

fn is_verb(word: &str) -> bool {
    VERBS.split(", ").any(|verb| verb == word)
}

fn shown(global: &Global, name: &str, view: &NetView) -> Outcome {
    if global.json {
        show::json(view)?;
        return Ok(0);
    }
    let meaning = match (view.posture.as_str(), view.allow.is_empty()) {
        ("open", _) => "the public internet, but for what is denied; nothing private",
        ("guarded", true) => "nothing yet: no rule allows anything",
        ("guarded", false) => "what the rules allow, and nothing else",
        _ => "nothing leaves it, names are not answered",
    };
    let gate = match (view.gate.as_str(), &view.gate_reason) {
        ("up", _) => "up".to_owned(),
        (state, Some(why)) => format!("{state}: {why}; nothing leaves any computer"),
        (state, None) => format!("{state}; nothing leaves any computer"),
    };
    let unused = if view.posture == "guarded" || view.allow.iter().all(|rule| rule.starts_with("vm:")) {
        ""
    } else {
        "  (when guarded)"
    };
    // The longest key of what follows: further rules stand below the first.
    let width = if view.status.is_some() { "since boot".len() } else { "posture".len() };
    let lines = |rules: &[String]| rules.join(&format!("\n{:1$}", "", width + 2));
    let mut facts = vec![
        ("posture", format!("{}: {meaning}", view.posture)),
        ("because", view.sealed_because.clone().unwrap_or_default()),
        ("allow", if view.allow.is_empty() { String::new() } else { lines(&view.allow) + unused }),
        ("deny", lines(&view.deny)),
        ("private", view.private.join(" ")),
        ("limits", limits::shown(&view.limits)),
        ("gate", gate),
        ("address", view.address.clone()),
    ];
    if let Some(status) = &view.status {
        facts.push((
            "since boot",
            format!(
                "{} flows open, {} allowed, {} denied, {} times a limit",
                status.flows, status.allowed, status.denied, status.limited
            ),
        ));
        facts.push((
            "bytes",
            format!(
                "{} out, {} in, {} today",
                show::size(status.up_bytes),
                show::size(status.down_bytes),
                show::size(status.day_bytes)
            ),
        ));
    }
    if let Some(change) = view.changes.first() {
        facts.push(("changed", format!("{} ago by {}", show::age(change.at), change.who)));
    }
    debug_assert_eq!(facts.iter().map(|(key, _)| key.len()).max(), Some(width), "rules are aligned");
    show::facts(&facts)?;
    if view.posture == "guarded" && view.allow.is_empty() {
        eprintln!("hint: den net {name} allow example.com");
    }
    Ok(0)
}

/// Ends with 1 where it would be denied, for scripts.
async fn check(global: &Global, name: &str, target: &str) -> Outcome {
    let decision = global.client()?.check_net(name, &NetCheck { target: target.to_owned() }).await?;
    if global.json {
        show::json(&decision)?;
    } else {
        let rule = decision.rule.as_ref().map_or_else(String::new, |rule| format!("  by `{rule}`"));
        show::line(&format!("{}  {}  {}{rule}", decision.verdict, decision.target, decision.why))?;
        for condition in &decision.provided {
            show::line(&format!("       provided: {condition}"))?;
        }
    }
    Ok(if decision.verdict == "allow" { 0 } else { FAILED })
}

async fn log(global: &Global, client: &Client, name: &str, args: &NetArgs) -> Outcome {
    let lines = args.lines.unwrap_or(SHOWN);
    let mut filter = NetLogFilter { kind: args.kind.clone(), denied: args.denied, ..NetLogFilter::default() };
    match lines {
        0 => filter.limit = Some(PAGE),
        lines => filter.last = Some(lines.min(PAGE)),
    }
    let mut any = false;
    loop {
        let page = client.net_log(name, &filter).await?;
        if page.lost {
            eprintln!("records before these are gone: the gate keeps the newest");
        }
        for record in &page.records {
            any = true;
            if global.json { show::json_line(record)? } else { show::line(&record::line(record))? }
        }
        let is_latest = filter.last.take().is_some() || page.records.len() < PAGE as usize;
        (filter.cursor, filter.limit) = (Some(page.next), Some(PAGE));
        if is_latest {
            if !args.follow {
                break;
            }
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
    }
    if !any && !global.json {
        show::line("no records yet")?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_create_that_says_nothing_of_the_network_sends_nothing() {
        let args = NewNetArgs { net: None, allow: vec![], deny: vec![], net_limit: None, force: true };
        assert_eq!(args.request(), None);
        let args =
            NewNetArgs { net: None, allow: vec!["a.example".into()], deny: vec![], net_limit: None, force: false };
        assert_eq!(args.request().map(|request| request.allow), Some(vec!["a.example".to_owned()]));
    }
}
