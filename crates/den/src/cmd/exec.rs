//! `exec`, `sh`, `attach`: a step with its streams.
//!
//! ```text
//! no input    POST …/steps, binary stream        (one request, the fast path)
//! -i, -t      WebSocket: frames back, input forth by a task of its own, so that a full pipe inside
//!             never keeps the output from being read
//! -d          POST …/steps with detach
//! ```

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use den_api::{
    Client, ExecRequest, PtySize,
    client::{Session, SessionInput},
};
use den_model::{Bytes as Size, parse_duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    computers::pair,
    stream::{Follow, Followed, Interrupt, RECONNECT_MAX, Sink, Source, exit_code, stdin_chunks},
};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show, term,
};

/// What a shell shows for a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(after_help = "Example: den exec web -- python3 -c 'print(6*7)'\n\
                        Ctrl-C goes to the command; a second one lets go of it. Exit code: the command's; 124 timed out.")]
pub struct ExecArgs {
    /// Name or id
    name: String,
    /// Pass standard input on
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal; on a terminal with -i
    #[arg(long, short)]
    tty: bool,
    /// Only start it; prints the step's number
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Where [default: the image's working directory, else the home]
    #[arg(long, short = 'w', visible_alias = "workdir", value_name = "DIR")]
    cwd: Option<String>,
    /// As whom: name or number, with :group [default: the image's, else root]
    #[arg(long, short)]
    user: Option<String>,
    /// Environment over the computer's
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    env: Vec<(String, String)>,
    /// End it after this long: 30s, 5m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// How much of its output is kept: 64M
    #[arg(long, value_name = "SIZE")]
    keep: Option<Size>,
    /// How long a daemon that went away is waited for [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    reconnect: Option<Duration>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den sh web --user user\nWithout a terminal it reads commands from standard input.")]
pub struct ShArgs {
    /// Name or id
    name: String,
    /// As whom
    #[arg(long, short)]
    user: Option<String>,
    /// Where
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// Environment over the computer's
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    env: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den attach web 12\nCtrl-C lets go of the step; it goes on. Exit code: the step's.")]
pub struct AttachArgs {
    /// Name or id
    name: String,
    /// The step's number
    step: u64,
    /// From this byte of its output
    #[arg(long, value_name = "BYTE", default_value_t = 0, hide_default_value = true)]
    from: u64,
    /// Pass standard input on
    #[arg(long, short)]
    interactive: bool,
    /// How long a daemon that went away is waited for [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    reconnect: Option<Duration>,
}

#[cfg(test)]
impl ExecArgs {
    /// The command and its arguments.
    pub fn command(&self) -> &[OsString] {
        &self.command
    }
}

fn text(words: Vec<OsString>) -> Result<Vec<String>, Trouble> {
    words
        .into_iter()
        .map(|word| {
            word.into_string()
                .map_err(|word| Trouble::usage(format_args!("the argument {} is no UTF-8", word.display())))
        })
        .collect()
}

fn pty_size() -> PtySize {
    let (rows, cols) = term::size().unwrap_or((24, 80));
    PtySize { rows, cols, term: std::env::var("TERM").ok().filter(|term| !term.is_empty()) }
}

/// Runs a command.
pub async fn exec(global: &Global, args: ExecArgs) -> Outcome {
    let interactive = args.interactive || args.tty && io::stdin().is_terminal();
    let request = ExecRequest {
        argv: text(args.command)?,
        cwd: args.cwd,
        env: args.env.into_iter().collect(),
        user: args.user,
        stream_stdin: interactive,
        pty: args.tty.then(pty_size),
        timeout_ms: args.timeout.map(|timeout| timeout.as_millis() as u64),
        detach: args.detach,
        keep_bytes: args.keep.map(|keep| keep.0),
        ..ExecRequest::default()
    };
    let client = global.client()?;
    if args.detach {
        let step = client.exec_detached(&args.name, &request).await?;
        if global.json {
            show::json(&step)?
        } else {
            show::line(&step.number.to_string())?
        }
        return Ok(0);
    }
    run(global, client, &args.name, &request, interactive, args.reconnect).await
}

/// Runs a shell.
pub async fn sh(global: &Global, args: ShArgs) -> Outcome {
    // bash where there is one, else sh; a login shell, so that profiles are read.
    const SHELL: &str = "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l";
    let request = ExecRequest {
        argv: ["sh", "-c", SHELL].map(str::to_owned).to_vec(),
        cwd: args.cwd,
        env: args.env.into_iter().collect(),
        user: args.user,
        stream_stdin: true,
        pty: io::stdin().is_terminal().then(pty_size),
        ..ExecRequest::default()
    };
    let client = global.client()?;
    run(global, client, &args.name, &request, true, None).await
}

async fn run(
    global: &Global,
    client: Client,
    name: &str,
    request: &ExecRequest,
    interactive: bool,
    reconnect: Option<Duration>,
) -> Outcome {
    let pty = request.pty.is_some();
    let raw = if pty && interactive { enter_raw()? } else { None };
    let mut follow = Follow {
        global,
        client: client.clone(),
        name,
        step: None,
        next: 0,
        interrupt: if raw.is_some() { Interrupt::Byte } else { Interrupt::Forward },
        follow: true,
        sink: if global.json { Sink::kept() } else { Sink::Standard },
        patience: reconnect.unwrap_or(RECONNECT_MAX),
        input: interactive,
    };
    let followed = if interactive || pty {
        let Session { output, input } = client.exec_session(name, request).await?;
        let sessions = forward(input, interactive, pty)?;
        follow.run(Source::Session(output), &mut |input| drop(sessions.try_send(input))).await
    } else {
        let stream = client.exec_stream(name, request).await?;
        follow.run(Source::Stream(stream), &mut drop).await
    };
    drop(raw);
    finish(follow, followed?)
}

/// Back to a step.
pub async fn attach(global: &Global, args: AttachArgs) -> Outcome {
    let client = global.client()?;
    let step = client.step(&args.name, args.step).await?;
    let live = args.interactive && step.end.is_none();
    let raw = if live && step.pty { enter_raw()? } else { None };
    let mut follow = Follow {
        global,
        client: client.clone(),
        name: &args.name,
        step: Some(args.step),
        next: args.from,
        interrupt: if raw.is_some() { Interrupt::Byte } else { Interrupt::Detach },
        follow: true,
        sink: if global.json { Sink::Lines } else { Sink::Standard },
        patience: args.reconnect.unwrap_or(RECONNECT_MAX),
        input: live,
    };
    let followed = if live {
        let Session { output, input } = client.attach(&args.name, args.step, args.from).await?;
        let sessions = forward(input, true, step.pty)?;
        follow.run(Source::Session(output), &mut |input| drop(sessions.try_send(input))).await
    } else {
        let stream = client.output(&args.name, args.step, args.from, true).await?;
        follow.run(Source::Stream(stream), &mut drop).await
    };
    drop(raw);
    finish(follow, followed?)
}

fn enter_raw() -> Result<Option<term::Raw>, Trouble> {
    term::Raw::enter().map_err(|error| Trouble::io("the terminal", &error))
}

/// The exit code, and what is still to be said.
fn finish(follow: Follow<'_>, followed: Followed) -> Outcome {
    match followed {
        Followed::Ended(step) => {
            let code = exit_code(&step);
            if let Some(result) = follow.sink.result(*step) {
                show::json(&result)?;
            }
            Ok(code)
        }
        Followed::Read => Ok(0),
        Followed::Detached => {
            if let Some(step) = follow.step {
                eprintln!(
                    "hint: step {step} goes on; back to it: den attach {} {step} --from {}",
                    follow.name, follow.next
                );
            }
            Ok(INTERRUPTED)
        }
    }
}

/// Passes standard input and the terminal's size on, in a task of its own. Later sessions, after a
/// lost daemon, come through the channel.
fn forward(first: SessionInput, stdin: bool, pty: bool) -> Result<mpsc::Sender<SessionInput>, Trouble> {
    let (sessions, mut later) = mpsc::channel::<SessionInput>(1);
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Trouble::io("cannot listen for signals", &error))?;
    tokio::spawn(async move {
        let mut input = first;
        let mut chunks = stdin.then(stdin_chunks);
        if chunks.is_none() && !pty {
            let _ = input.close_stdin().await;
        }
        loop {
            let sent = tokio::select! {
                session = later.recv() => match session {
                    Some(session) => {
                        input = session;
                        // The window may have changed while the daemon was gone.
                        match term::size() {
                            Some((rows, cols)) if pty => input.resize(rows, cols).await,
                            _ => Ok(()),
                        }
                    }
                    None => return,
                },
                chunk = async { chunks.as_mut().expect("guarded").recv().await }, if chunks.is_some() => match chunk {
                    Some(bytes) => input.stdin(bytes).await,
                    None => {
                        chunks = None;
                        input.close_stdin().await
                    }
                },
                _ = resized.recv(), if pty => match term::size() {
                    Some((rows, cols)) => input.resize(rows, cols).await,
                    None => Ok(()),
                },
            };
            if sent.is_err() {
                // The one who reads the output notices too, and finds the daemon again.
                match later.recv().await {
                    Some(session) => input = session,
                    None => return,
                }
            }
        }
    });
    Ok(sessions)
}
