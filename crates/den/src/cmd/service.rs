//! `service`: commands that a computer keeps running, and their output.
//!
//! ```text
//! logs -f: the output of the newest start ─ ended ─► the output of the next one ─ … ─► it is not wanted any more
//! ```

use std::{
    collections::VecDeque,
    ffi::OsString,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use den_api::{
    Client, ClientError,
    output::OutputKind,
    service::{AddService, SERVICE_WAIT_MS_MAX, ServiceView},
};
use den_model::{Bytes as Size, parse_duration};
use serde_json::json;

use super::{
    computers::pair,
    stream::{Follow, Followed, Interrupt, RECONNECT_MAX, Signals, Sink, Source},
};
use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// How long one question waits for a service to change.
const WAIT: Duration = Duration::from_millis(SERVICE_WAIT_MS_MAX);
/// A service without a check that ran for so long is taken to have come up.
const UP_AFTER: Duration = Duration::from_secs(1);
/// Between two attempts to find a daemon that is gone.
const FIND_INTERVAL: Duration = Duration::from_millis(200);
/// How many lines are shown of a service that did not come up.
const LINES_SHOWN: usize = 10;
/// Where the search for the beginning of the last lines begins, and where it ends, in bytes from the end.
const TAIL_BYTES: [u64; 3] = [64 << 10, 1 << 20, 16 << 20];
/// How much of a command and of a reason is shown in a line, in characters.
const COMMAND_CHARS: usize = 60;
const REASON_CHARS: usize = 60;

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// A new service: started now, at each start of the computer, and whenever it ends
    #[command(visible_alias = "new", alias = "create")]
    Add(AddArgs),
    /// The services of a computer, or one in full
    #[command(visible_alias = "list", alias = "ps", alias = "status")]
    Ls(LsArgs),
    /// What a service printed since its newest start
    #[command(visible_alias = "log")]
    Logs(LogsArgs),
    /// End a service and start it
    Restart(OneArgs),
    /// End a service until it is started again
    Stop(StopArgs),
    /// Have a service run
    Start(OneArgs),
    /// End services and forget them; their steps stay
    #[command(visible_alias = "delete", alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: den service add web app --run 'python3 -m http.server 8000' --ready port:8000 --wait\n\
                        Each start is a step: den log web. An image's own systemd keeps its own services."
)]
pub struct AddArgs {
    /// Name or id of the computer
    name: String,
    /// What to call the service
    service: String,
    /// A command line for sh
    #[arg(long, value_name = "CMD", required_unless_present = "command", conflicts_with = "command")]
    run: Option<String>,
    /// When it is started again: always, on-failure, no [default: always]
    #[arg(long, value_name = "WHEN")]
    restart: Option<String>,
    /// What it is ready by: port:8000, or exec:CMD that ends with 0
    #[arg(long, value_name = "CHECK")]
    ready: Option<String>,
    /// How long it may take to be ready [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "ready")]
    ready_within: Option<Duration>,
    /// As whom: name or number, with :group [default: the image's, else root]
    #[arg(long, short)]
    user: Option<String>,
    /// Environment over the computer's
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Where [default: the image's working directory, else the home]
    #[arg(long, short = 'w', visible_alias = "workdir", value_name = "DIR")]
    cwd: Option<String>,
    /// How much of the output of each start is kept [default: 64M]
    #[arg(long, value_name = "SIZE")]
    keep: Option<Size>,
    /// Return once it is ready; fail with its last lines where it does not come up
    #[arg(long)]
    wait: bool,
    /// Or the command and its arguments, as they are
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den service ls web  |  den service ls web app\n\
                        States: starting, ready (its check held), running (it has no check), backing_off, stopped, failed.")]
pub struct LsArgs {
    /// Name or id of the computer
    name: String,
    /// Only this one, in full
    service: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den service logs web app -f\n\
                        -f goes on with the next start when one has ended. Earlier ones: den log web, then --step.")]
pub struct LogsArgs {
    /// Name or id of the computer
    name: String,
    /// Which service; may be left out where there is one
    service: Option<String>,
    /// Go on as more comes
    #[arg(long, short)]
    follow: bool,
    /// Of this start
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Only the last lines
    #[arg(long, short = 'n', visible_alias = "lines", value_name = "N")]
    tail: Option<usize>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den service restart web app --wait")]
pub struct OneArgs {
    /// Name or id of the computer
    name: String,
    /// Which service; may be left out where there is one
    service: Option<String>,
    /// Return once it is ready; fail with its last lines where it does not come up
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den service stop web app\nIt stays stopped over starts of the computer.")]
pub struct StopArgs {
    /// Name or id of the computer
    name: String,
    /// Which service; may be left out where there is one
    service: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den service rm web app")]
pub struct RmArgs {
    /// Name or id of the computer
    name: String,
    /// Which services
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Does what the words say.
pub async fn run(global: &Global, command: ServiceCommand) -> Outcome {
    let client = global.client()?;
    match command {
        ServiceCommand::Add(args) => add(global, &client, args).await,
        ServiceCommand::Ls(args) => ls(global, &client, args).await,
        ServiceCommand::Logs(args) => logs(global, client, args).await,
        ServiceCommand::Restart(args) => {
            let service = only(&client, &args.name, args.service).await?;
            let view = client.restart_service(&args.name, &service).await?;
            came_up(global, &client, &args.name, view, args.wait).await
        }
        ServiceCommand::Start(args) => {
            let service = only(&client, &args.name, args.service).await?;
            let view = client.start_service(&args.name, &service).await?;
            came_up(global, &client, &args.name, view, args.wait).await
        }
        ServiceCommand::Stop(args) => {
            let service = only(&client, &args.name, args.service).await?;
            let view = client.stop_service(&args.name, &service).await?;
            came_up(global, &client, &args.name, view, false).await
        }
        ServiceCommand::Rm(args) => {
            for service in &args.services {
                client.remove_service(&args.name, service).await?;
                if global.json {
                    show::json_line(&json!({ "removed": service }))?;
                }
            }
            Ok(0)
        }
    }
}

/// The service that is meant: the one that is named, or the only one there is.
async fn only(client: &Client, name: &str, service: Option<String>) -> Result<String, Trouble> {
    if let Some(service) = service {
        return Ok(service);
    }
    let mut services = client.services(name).await?;
    match services.len() {
        0 => Err(Trouble::new(format_args!("`{name}` has no services")).hint("den service add makes one")),
        1 => Ok(services.remove(0).name),
        _ => {
            let names: Vec<_> = services.into_iter().map(|service| service.name).collect();
            Err(Trouble::usage(format_args!("which service of `{name}`? There is {}", names.join(", "))))
        }
    }
}

async fn add(global: &Global, client: &Client, args: AddArgs) -> Outcome {
    let run = match args.run {
        // An empty line would be started again and again; as no command it is refused.
        Some(line) if line.trim().is_empty() => Vec::new(),
        Some(line) => ["sh", "-c", &line].map(str::to_owned).to_vec(),
        None => args
            .command
            .into_iter()
            .map(|word| {
                word.into_string()
                    .map_err(|word| Trouble::usage(format_args!("the argument {} is no UTF-8", word.display())))
            })
            .collect::<Result<_, _>>()?,
    };
    let request = AddService {
        name: args.service,
        run,
        restart: args.restart,
        ready: args.ready,
        ready_within_ms: args.ready_within.map(|within| within.as_millis() as u64),
        user: args.user,
        cwd: args.cwd,
        env: args.env.into_iter().collect(),
        keep_bytes: args.keep.map(|keep| keep.0),
    };
    let view = client.add_service(&args.name, &request).await?;
    came_up(global, client, &args.name, view, args.wait).await
}

/// Shows a service, with `wait` once it has come up; with its last lines where it does not.
async fn came_up(global: &Global, client: &Client, name: &str, view: ServiceView, wait: bool) -> Outcome {
    let (view, up) = if wait { settled(client, name, view).await? } else { (view, true) };
    if global.json {
        show::json(&view)?;
    } else {
        show::line(&format!("{}: {}", view.name, told(&view)))?;
    }
    if up {
        return Ok(0);
    }
    if let Some(step) = view.step.filter(|_| !global.json) {
        let from = last_lines(client, name, step, LINES_SHOWN).await?;
        let mut output = client.output(name, step, from, false).await?;
        while let Some(frame) = output.next().await? {
            if matches!(frame.kind, OutputKind::Stdout | OutputKind::Stderr) {
                eprint!("{}", String::from_utf8_lossy(&frame.payload));
            }
        }
        eprintln!("hint: all of it: den service logs {name} {} --step {step}", view.name);
    }
    Ok(FAILED)
}

/// Waits until a service has come up or has not; says which.
async fn settled(client: &Client, name: &str, mut view: ServiceView) -> Result<(ServiceView, bool), ClientError> {
    loop {
        let wait = match view.state.as_str() {
            // It ended before anyone saw it do so.
            _ if view.restarts > 0 => return Ok((view, false)),
            "ready" => return Ok((view, true)),
            "failed" | "backing_off" => return Ok((view, false)),
            "stopped" => {
                let done = view.wanted && view.last_end.as_ref().is_some_and(|end| end.exit_code == 0);
                return Ok((view, done));
            }
            "running" => UP_AFTER,
            _ => WAIT,
        };
        let next = client.service_changed(name, &view.name, view.revision, wait).await?;
        if next.revision == view.revision && next.state == "running" {
            return Ok((next, true));
        }
        view = next;
    }
}

/// A state with its reason.
fn told(view: &ServiceView) -> String {
    match &view.reason {
        Some(reason) => format!("{}, {}", view.state, show::clean(reason)),
        None => view.state.clone(),
    }
}

async fn ls(global: &Global, client: &Client, args: LsArgs) -> Outcome {
    if let Some(service) = &args.service {
        let view = client.service(&args.name, service).await?;
        if global.json {
            show::json(&view)?;
        } else {
            one(&view)?;
        }
        return Ok(0);
    }
    let services = client.services(&args.name).await?;
    if global.json {
        show::json(&services)?;
    } else if services.is_empty() {
        show::line("no services; den service add makes one")?;
    } else {
        let rows = services.iter().map(|view| {
            let reason: String = view.reason.as_deref().unwrap_or("-").chars().take(REASON_CHARS).collect();
            [
                view.name.clone(),
                view.state.clone(),
                show::age(view.since),
                view.restarts.to_string(),
                view.step.map_or_else(|| "-".to_owned(), |step| step.to_string()),
                view.last_end.as_ref().map_or_else(|| "-".to_owned(), |end| end.exit_code.to_string()),
                show::clean(&reason),
                command(view),
            ]
        });
        show::table(["SERVICE", "STATE", "SINCE", "RESTARTS", "STEP", "EXIT", "WHY", "COMMAND"], rows)?;
    }
    Ok(0)
}

/// The command as it was typed: of a line for sh only that.
fn command(view: &ServiceView) -> String {
    match &view.run[..] {
        [sh, flag, line] if sh == "sh" && flag == "-c" => {
            let line: String = line.chars().take(COMMAND_CHARS).collect();
            show::clean(&line)
        }
        run => show::command(run, COMMAND_CHARS),
    }
}

fn one(view: &ServiceView) -> Result<(), Trouble> {
    let env: Vec<_> = view.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let last = view.last_end.as_ref().map(|end| {
        let ago = view.last_ended_at.map(show::age).unwrap_or_default();
        format!("{} {}, {ago} ago", end.how, end.exit_code)
    });
    let ready =
        view.ready.as_ref().map(|ready| format!("{ready}, within {}", show::took(view.ready_within_ms as i64 * 1000)));
    show::facts(&[
        ("service", view.name.clone()),
        ("state", told(view)),
        ("since", show::age(view.since)),
        ("wanted", if view.wanted { "yes" } else { "no" }.to_owned()),
        ("command", show::command(&view.run, usize::MAX)),
        ("restart", view.restart.clone()),
        ("restarts", view.restarts.to_string()),
        ("ready by", show::clean(&ready.unwrap_or_default())),
        ("step", view.step.map(|step| step.to_string()).unwrap_or_default()),
        ("last end", last.unwrap_or_default()),
        ("user", show::clean(view.user.as_deref().unwrap_or_default())),
        ("cwd", show::clean(view.cwd.as_deref().unwrap_or_default())),
        ("env", show::clean(&env.join(" "))),
        ("keeps", show::size(view.keep_bytes)),
    ])
}

async fn logs(global: &Global, client: Client, args: LogsArgs) -> Outcome {
    let service = only(&client, &args.name, args.service.clone()).await?;
    let view = client.service(&args.name, &service).await?;
    let Some(mut step) = args.step.or(view.step) else {
        if !args.follow {
            return Err(Trouble::new(format_args!("`{service}` of `{}` was never started", args.name))
                .hint(format_args!("den service start {} {service}", args.name)));
        }
        return follow_on(global, client, &args, &service, 0).await;
    };
    if args.step.is_some() {
        let wanted = client.step(&args.name, step).await?;
        if wanted.who != format!("service:{service}") {
            return Err(Trouble::new(format_args!("step {step} of `{}` is no start of `{service}`", args.name))
                .hint(format_args!("den log {} --grep lists steps by their command", args.name)));
        }
        step = wanted.number;
    }
    let from = match args.tail {
        Some(lines) => last_lines(&client, &args.name, step, lines).await?,
        None => 0,
    };
    if !shown(global, client.clone(), &args, step, from).await? || !args.follow || args.step.is_some() {
        return Ok(0);
    }
    follow_on(global, client, &args, &service, step).await
}

/// Shows the output of the starts after `step`, until there will be none.
async fn follow_on(global: &Global, mut client: Client, args: &LogsArgs, service: &str, mut step: u64) -> Outcome {
    let mut signals = Signals::listen().map_err(|error| Trouble::io("cannot listen for signals", &error))?;
    let mut lost = None;
    let mut seen = None;
    loop {
        let asked = async {
            match seen {
                Some(seen) => client.service_changed(&args.name, service, seen, WAIT).await,
                None => client.service(&args.name, service).await,
            }
        };
        let view = tokio::select! {
            number = signals.next() => return if number == 2 { Ok(0) } else { Err(Trouble::quiet(128 + number)) },
            view = asked => view,
        };
        let view = match view {
            Ok(view) => view,
            Err(error) if error.is_lost() && lost.get_or_insert_with(Instant::now).elapsed() < RECONNECT_MAX => {
                tokio::time::sleep(FIND_INTERVAL).await;
                (client, seen) = (global.client().unwrap_or(client), None);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        (lost, seen) = (None, Some(view.revision));
        if let Some(next) = view.step.filter(|&next| next > step) {
            step = next;
            if !shown(global, client.clone(), args, step, 0).await? {
                return Ok(0);
            }
            seen = None;
        } else if !view.wanted || view.state == "failed" || view.state == "stopped" && step > 0 {
            eprintln!("den: {}: {}", view.name, told(&view));
            return Ok(0);
        }
    }
}

/// Shows the output of a start; whether it was read to its end.
async fn shown(global: &Global, client: Client, args: &LogsArgs, step: u64, from: u64) -> Result<bool, Trouble> {
    let stream = client.output(&args.name, step, from, args.follow).await?;
    let mut follow = Follow {
        global,
        client,
        name: &args.name,
        step: Some(step),
        next: from,
        interrupt: Interrupt::Detach,
        follow: args.follow,
        sink: if global.json { Sink::Lines } else { Sink::Standard },
        patience: RECONNECT_MAX,
        input: false,
    };
    Ok(!matches!(follow.run(Source::Stream(stream), &mut drop).await?, Followed::Detached))
}

/// Where in a step's output its last lines begin, of those that are looked at.
async fn last_lines(client: &Client, name: &str, step: u64, lines: usize) -> Result<u64, ClientError> {
    let total = client.step(name, step).await?.output_bytes;
    let mut begin = total;
    for window in TAIL_BYTES {
        begin = total.saturating_sub(window);
        // Where each line begins, the last of them and the end of the output.
        let mut starts: VecDeque<u64> = (begin == 0).then_some(0).into_iter().collect();
        let mut end = begin;
        let mut output = client.output(name, step, begin, false).await?;
        while let Some(frame) = output.next().await? {
            if !matches!(frame.kind, OutputKind::Stdout | OutputKind::Stderr | OutputKind::Terminal) {
                continue;
            }
            end = frame.offset + frame.payload.len() as u64;
            for (place, _) in frame.payload.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
                starts.push_back(frame.offset + place as u64 + 1);
                if starts.len() > lines.saturating_add(1) {
                    starts.pop_front();
                }
            }
        }
        // An unfinished line is one too.
        if starts.back().is_some_and(|&last| last == end) {
            starts.pop_back();
        } else if starts.len() > lines {
            starts.pop_front();
        }
        if starts.len() >= lines || begin == 0 {
            return Ok(if lines == 0 { end } else { starts.front().copied().unwrap_or(end) });
        }
    }
    Ok(begin)
}
