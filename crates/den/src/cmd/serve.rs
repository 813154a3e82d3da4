//! `serve`: the daemon.
//!
//! ```text
//! settings ─► root? ─► port bound ─► Control::open (finds what runs) ─► client.json ─► serving
//!                                                                          SIGTERM ─► end; computers go on
//! ```
//!
//! Invariants:
//! - Everything that can be known to be wrong is said before the port is bound.
//! - A client that comes while the daemon still looks for what runs waits; it is not refused.
//! - `client.json` and `token` are there whole or not at all, and only for their owner (0600).

mod names;
mod settings;

use std::{
    fs::Permissions,
    io::{self, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use den_api::client::{ClientFile, DATA_DEFAULT};
use den_control::{Config, Control};
use den_server::Token;
use rustix::process::{Resource, Rlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use self::settings::{LogFormat, Settings};
pub use self::settings::{ServeArgs, Storage, run_folder};
use crate::{
    agent::AGENT,
    find::Global,
    report::{Outcome, Trouble, chain},
    show,
};

/// Runs the daemon until it is told to end.
pub fn run(global: &Global, args: ServeArgs) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(Trouble::new("the daemon makes namespaces, mounts and cgroups, and needs to be root")
            .hint("sudo den serve; what this host can do says: sudo den doctor"));
    }
    let settings = Settings::gather(global, args)?;
    log(settings.log_format)?;
    raise_descriptors();
    // Gate, launcher and agents begin below this thread and are waited for no less.
    if let Err(error) = den_sys::slice::shorten() {
        tracing::debug!(%error, "requests may wait for computers that keep all processors busy");
    }
    let token = token(&settings.data)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .thread_name("den")
        .build()
        .map_err(|error| Trouble::io("cannot start the runtime", &error))?;
    let outcome = runtime.block_on(serve(&settings, token));
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: &Settings, token: Token) -> Outcome {
    let listen_error = |error: io::Error| Trouble::io("cannot listen for signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(listen_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(listen_error)?;
    let listener = TcpListener::bind(settings.listen).await.map_err(|error| {
        let trouble = Trouble::io(format_args!("cannot listen on {}", settings.listen), &error);
        match error.kind() {
            io::ErrorKind::AddrInUse => trouble.hint("another daemon runs there; take another port with --listen"),
            _ => trouble,
        }
    })?;
    let address = listener.local_addr().map_err(|error| Trouble::io("the listening socket", &error))?;
    let names = match &settings.e2b_names {
        Some(wanted) => Some(names::Names::bind(wanted, settings).await?),
        None => None,
    };
    let opened = Control::open(Config {
        data: settings.data.clone(),
        run: settings.run.clone(),
        images: settings.images.clone(),
        pool: settings.pool,
        storage: match settings.storage {
            Storage::Auto => den_control::StorageChoice::Auto,
            Storage::Plain => den_control::StorageChoice::Plain,
        },
        disk_size: settings.disk_size,
        defaults: settings.limits(Config::default_limits()),
        agent: AGENT,
        net: settings.net.clone(),
        keep_states: settings.keep_states,
        trash_for: settings.trash_for,
        sync_steps: settings.sync_steps,
        criu: settings.criu.clone(),
    });
    let control = opened.await.map_err(|error| {
        let hint = error.hint.clone().unwrap_or_else(|| "what this host lacks says: den doctor".to_owned());
        Trouble::new(format_args!("{} ({})", chain(&error), error.code)).hint(hint)
    })?;
    if let Some(plan) = settings.backup.clone() {
        control.schedule_backups(plan).map_err(|error| {
            let hint = error.hint.clone().unwrap_or_default();
            Trouble::new(format_args!("{} ({})", chain(&error), error.code)).hint(hint)
        })?;
    }
    let client = ClientFile { url: format!("http://{}", reachable(address)), token: token.expose().to_owned() };
    let text = serde_json::to_string(&client).expect("two texts");
    write_private(&settings.data, "client.json", &text)?;
    names::publish(settings, names.as_ref())?;
    announce(settings, address, names.as_ref())?;
    notify(b"READY=1");
    let stop = CancellationToken::new();
    let router = den_server::router(control.clone(), token, stop.clone(), settings.metrics);
    let ended = CancellationToken::new();
    let (router, by_name) = match settings.e2b {
        true => {
            let domain = names.as_ref().map(|names| names.domain().clone());
            let e2b = den_e2b::E2b::open(control.clone(), &settings.data, domain).await;
            let e2b = e2b.map_err(|error| Trouble::new(chain(&error)))?;
            let by_name = names.map(|names| tokio::spawn(names.serve(e2b.clone().router_of_domain(), ended.clone())));
            (e2b.router(router), by_name)
        }
        false => (router, None),
    };
    let stopped = stop.clone();
    let ending = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stopped.cancelled() => {}
        }
    };
    let closing = control.clone();
    let ending = async move {
        ending.await;
        closing.end_followers();
        ended.cancel();
    };
    // On the workers, as the connections are: this thread would only pass them on.
    let served = tokio::spawn(den_server::serve(listener, router, ending)).await.unwrap_or_else(|end| Err(end.into()));
    if let Some(by_name) = by_name
        && let Err(error) = by_name.await
    {
        tracing::error!(%error, "the listener of the domain has broken");
    }
    control.close_events().await;
    served.map_err(|error| Trouble::io("cannot serve", &error))?;
    let last = if stop.is_cancelled() {
        names::withdraw(settings);
        "den serve has ended, and all computers with it; their disks stay"
    } else {
        "den serve has ended; the computers go on, and `den serve` finds them again"
    };
    // Whoever started it may have gone, and its standard output too.
    let _ = writeln!(io::stdout(), "{last}");
    Ok(0)
}

/// Half of the processors, for computers have use for the rest. What a worker passes on to another one has to
/// wake it, which takes longer than most of the work.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2))
}

/// Three lines: where it listens, where its data is, what to type next; one more with a domain.
fn announce(settings: &Settings, address: SocketAddr, names: Option<&names::Names>) -> Result<(), Trouble> {
    let data = settings.data.display();
    let named = if settings.data == Path::new(DATA_DEFAULT) { String::new() } else { format!("--data {data} ") };
    let next = match has_images(&settings.images) {
        true => format!("den {named}new web"),
        false => format!("den {named}image build; den {named}new web"),
    };
    let names = names.map(|names| format!("{names}: den {named}e2b env --tls\n")).unwrap_or_default();
    show::print(&format!("listening on http://{address}\n{names}data in {data}\nnext: {next}\n"))?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "listening beyond this host over plain HTTP: the token can be read on the way");
    }
    Ok(())
}

/// Tells a supervisor that asked for it: sd_notify(3).
fn notify(state: &[u8]) {
    use std::os::{linux::net::SocketAddrExt, unix::net};
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let place = place.as_encoded_bytes();
    let address = match place.strip_prefix(b"@") {
        Some(name) => net::SocketAddr::from_abstract_name(name),
        None => net::SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(place))),
    };
    let sent = address.and_then(|address| net::UnixDatagram::unbound()?.send_to_addr(state, &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "whoever started this daemon is not told that it is up");
    }
}

/// Whether the image store has anything in it yet: names are what a user knows images by.
fn has_images(images: &Path) -> bool {
    images.join("names").read_dir().is_ok_and(|mut names| names.next().is_some())
}

/// An address that clients on this host can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Logs to standard error: on a terminal only what a person should look at, unless `DEN_LOG` says more.
fn log(format: LogFormat) -> Result<(), Trouble> {
    let is_terminal = io::stderr().is_terminal();
    let wanted = std::env::var("DEN_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().unwrap_or(if is_terminal { "warn" } else { "info" });
    let filter = EnvFilter::try_new(wanted)
        .map_err(|error| Trouble::usage(format_args!("`DEN_LOG`: {error}")).hint("for example DEN_LOG=info"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if format == LogFormat::Json {
        builder.json().init()
    } else {
        builder.with_ansi(is_terminal).init()
    }
    Ok(())
}

/// Every computer, step and client takes descriptors; the usual 1,024 are few.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on descriptors stays where it is");
    }
}

/// The daemon's token: drawn at its first start, kept since.
fn token(data: &Path) -> Result<Token, Trouble> {
    let path = data.join("token");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(Token::new(text.trim())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Trouble::io(path.display(), &error)),
    }
    let token = Token::generate().map_err(|error| Trouble::io("/dev/urandom", &error))?;
    write_private(data, "token", token.expose())?;
    Ok(token)
}

/// Writes a file that only its owner reads, and puts it in its place whole.
fn write_private(directory: &Path, name: &str, text: &str) -> Result<(), Trouble> {
    let path = directory.join(name);
    let written = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    };
    written().map_err(|error| Trouble::io(path.display(), &error))
}
