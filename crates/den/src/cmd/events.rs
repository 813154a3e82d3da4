//! `events`: what happened, and what happens.

use std::time::Duration;

use clap::Args;
use den_api::{
    ClientError, EventView,
    client::{EventFilter, Told},
};
use serde_json::Value;

use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// Events that are shown where nobody says how many.
const SHOWN: u32 = 100;
/// The most that one answer has.
const PAGE: u32 = 1000;
/// Before a daemon that went away is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is asked again without an answer.
const ATTEMPTS_MAX: u32 = 60;

#[derive(Debug, Args)]
#[command(after_help = "Example: den events --follow\n\
                        den events web --kind failed,oom,limit_reached\n\
                        Columns: number, time (UTC), what, computer, by whom, more. Steps are in `den log`.")]
pub struct EventsArgs {
    /// Only those of this computer; it may be gone
    name: Option<String>,
    /// Only these kinds: created, failed, oom, limit_reached, …
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
    /// From beyond this number on
    #[arg(long, value_name = "NUMBER", conflicts_with = "lines")]
    since: Option<u64>,
    /// How many of the latest; 0: all [default: 100]
    #[arg(long, short = 'n', value_name = "N")]
    lines: Option<u32>,
    /// Go on as more happens; a daemon that is restarted is waited for
    #[arg(long, short)]
    follow: bool,
}

/// Shows events.
pub async fn run(global: &Global, args: EventsArgs) -> Outcome {
    let client = global.client()?;
    let mut filter = EventFilter { computer: args.name.clone(), kinds: args.kind.clone(), ..EventFilter::default() };
    match (args.since, args.lines.unwrap_or(SHOWN)) {
        (Some(since), _) => filter.after = Some(since),
        (None, 0) => filter.limit = Some(PAGE),
        (None, lines) => filter.last = Some(lines.min(PAGE)),
    }
    let mut any = false;
    loop {
        let page = client.events(&filter).await?;
        if page.lost {
            tell_lost();
        }
        for event in &page.events {
            any = true;
            print(global, event)?;
        }
        let is_all = filter.last.take().is_some() || page.events.len() < filter.limit.unwrap_or(100) as usize;
        (filter.after, filter.limit) = (Some(page.next), Some(PAGE));
        if is_all {
            break;
        }
    }
    if !args.follow {
        if !any && !global.json {
            show::line("no events yet")?;
        }
        return Ok(0);
    }
    filter.limit = None;
    let mut failed = 0;
    loop {
        match follow(global, &mut filter, &mut failed).await {
            Ok(()) => {}
            // The daemon ended, or is being started anew: with another port and token, perhaps.
            Err(Broken::Client(ClientError::Unreachable { .. } | ClientError::Broken { .. })) => {}
            Err(Broken::Client(error)) => return Err(error.into()),
            Err(Broken::Told(trouble)) => return Err(trouble),
        }
        failed += 1;
        if failed > ATTEMPTS_MAX {
            eprintln!("the daemon has not come back");
            return Ok(FAILED);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Broken {
    Client(ClientError),
    Told(Trouble),
}

impl From<ClientError> for Broken {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

async fn follow(global: &Global, filter: &mut EventFilter, failed: &mut u32) -> Result<(), Broken> {
    let mut stream = global.client()?.follow_events(filter).await?;
    *failed = 0;
    while let Some(told) = stream.next().await? {
        match told {
            Told::Lost => tell_lost(),
            Told::Event(event) => {
                filter.after = Some(event.number);
                print(global, &event).map_err(Broken::Told)?;
            }
        }
    }
    Ok(())
}

fn tell_lost() {
    eprintln!("events before these are gone: the newest 100,000 are kept");
}

fn print(global: &Global, event: &EventView) -> Result<(), Trouble> {
    if global.json { show::json_line(event) } else { show::line(&line(event)) }
}

/// An event in one line.
fn line(event: &EventView) -> String {
    let name = event.name.as_deref().unwrap_or("-");
    let who = event.who.as_deref().unwrap_or("-");
    let detail: Vec<_> = event.detail.iter().map(|(key, value)| format!("{key}={}", short(value))).collect();
    let text = format!(
        "{:>6}  {}  {:<18} {name:<20} {who:<6} {}",
        event.number,
        show::moment(event.at),
        event.kind,
        detail.join(" ")
    );
    show::clean(text.trim_end())
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_no_control_characters() {
        let event = json!({
            "number": 7, "at": 0, "kind": "failed", "name": "web", "who": "api",
            "detail": { "reason": "it\u{1b}[2J ended", "code": 3, "word": "x" },
        });
        let line = line(&serde_json::from_value(event).unwrap());
        assert!(
            line.starts_with("     7  1970-01-01 00:00:00  failed             web                  api "),
            "{line}"
        );
        assert!(line.contains("code=3") && line.contains("word=x") && line.contains("ended"), "{line}");
        assert!(!line.chars().any(char::is_control), "{line}");
    }
}
