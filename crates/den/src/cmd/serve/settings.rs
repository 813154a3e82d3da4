//! What the daemon is told: a file, then the environment, then flags, checked whole.
//!
//! ```text
//! den.toml ──► DEN_… ──► --flags ──► Settings     each overrules those before it
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use den_api::{NetLimitsChange, client::DATA_DEFAULT};
use den_control::{
    BACKUP_EVERY_MIN, BACKUP_KEEP_MAX, BackupPlan, HouseNet,
    limits::{STATES_NEWEST, TRASH_FOR, TRASH_FOR_MAX},
};
use den_e2b::{Domain, NoDomain};
use den_gate::policy::{NetLimits, Posture, PrivateTarget};
use den_model::{Bytes, Cpus, Limits};
use den_server::MetricsSettings;
use serde::Deserialize;

use crate::{cmd::net::limits, find::Global, report::Trouble};

/// How often backups are made where that is not said.
const BACKUP_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Read where it is there and no other is named.
const CONFIG_DEFAULT: &str = "/etc/den/den.toml";
/// Loopback, for a token over plain HTTP is safe nowhere else.
const LISTEN_DEFAULT: &str = "127.0.0.1:7878";
/// Where programs ask for names; resolv.conf(5) knows no other port.
const DNS_PORT: u16 = 53;
/// Where names of E2B's domain are answered for the default data folder. systemd-resolved has 127.0.0.53 and .54.
const DNS_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 5, 3)), DNS_PORT);
/// Husks that are kept ready.
const POOL_DEFAULT: u32 = 8;
/// The program of this process, also once its file was replaced.
const PROGRAM: &str = "/proc/self/exe";
/// The most husks that are kept ready.
const POOL_MAX: u32 = 1024;
/// The most states of one computer that are kept before they are thinned.
const KEEP_STATES_MAX: usize = 10_000;

#[derive(Debug, Args)]
#[command(after_help = "Example: sudo den serve --data /srv/den --listen 127.0.0.1:7900\n\
                        Each flag is a key of the file too (disk_size = \"200G\") and a variable (DEN_DISK_SIZE).\n\
                        DEN_LOG sets what is logged to standard error: warn, info, den_control=debug.")]
pub struct ServeArgs {
    /// Where it listens [default: 127.0.0.1:7878]; port 0 picks a free one
    #[arg(long, env = "DEN_LISTEN", hide_env = true, value_name = "ADDR")]
    listen: Option<String>,
    /// Sockets and cgroup names [default: /run/den, or one that belongs to the data folder]
    #[arg(long, env = "DEN_RUN", hide_env = true, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Images; several daemons may share one [default: images in the data folder]
    #[arg(long, env = "DEN_IMAGES", hide_env = true, value_name = "DIR")]
    images: Option<PathBuf>,
    /// A file with these settings [default: /etc/den/den.toml where there is one]
    #[arg(long, env = "DEN_CONFIG", hide_env = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Husks kept ready for new computers [default: 8]
    #[arg(long, env = "DEN_POOL", hide_env = true, value_name = "N")]
    pool: Option<u32>,
    /// auto: btrfs, in an image file where the data folder is on another; plain: directories [default: auto]
    #[arg(long, env = "DEN_STORAGE", hide_env = true, hide_possible_values = true)]
    storage: Option<Storage>,
    /// How large the btrfs image file may grow [default: what the disk has]
    #[arg(long, env = "DEN_DISK_SIZE", hide_env = true, value_name = "SIZE")]
    disk_size: Option<Bytes>,
    /// States kept after steps, of each computer, before older ones are thinned [default: 100]
    #[arg(long, env = "DEN_KEEP_STATES", hide_env = true, value_name = "N")]
    keep_states: Option<usize>,
    /// How long removed computers lie in the trash; 0: none, they go at once [default: 24h]
    #[arg(long, env = "DEN_TRASH_FOR", hide_env = true, value_name = "DURATION")]
    trash_for: Option<String>,
    /// Answer a command only when all it did survives the end of power; else it does a second later
    #[arg(long, env = "DEN_SYNC_STEPS", hide_env = true)]
    sync_steps: bool,
    /// CRIU 4.2 or newer, for `den pause --to-disk` [default: criu/criu in the data folder, or in PATH]
    #[arg(long, env = "DEN_CRIU", hide_env = true, value_name = "FILE")]
    criu: Option<PathBuf>,
    /// How new computers face the network: open, guarded or sealed [default: open]
    #[arg(long, env = "DEN_NET", hide_env = true, value_name = "POSTURE")]
    net: Option<String>,
    /// A private target that computers may reach, as 10.1.2.3:5432; may be given several times
    #[arg(long, env = "DEN_PRIVATE", hide_env = true, value_name = "ADDR[/N]:PORT", value_delimiter = ',')]
    private: Vec<String>,
    /// Whom to ask for names; may be given several times [default: those of this host]
    #[arg(long, env = "DEN_RESOLVER", hide_env = true, value_name = "IP", value_delimiter = ',')]
    resolver: Vec<IpAddr>,
    /// Limits of new computers' networks: flows=512,new=50,bits=200m,bytes=20g,dns=50
    #[arg(long, env = "DEN_NET_LIMIT", hide_env = true, value_name = "LIMITS")]
    net_limit: Option<String>,
    /// How the log is written: text or json [default: text]
    #[arg(long, env = "DEN_LOG_FORMAT", hide_env = true, hide_possible_values = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Back all of it up there by the clock: a folder, or s3://BUCKET/PREFIX
    #[arg(long, env = "DEN_BACKUP", hide_env = true, value_name = "TO")]
    backup: Option<String>,
    /// How often [default: 6h]
    #[arg(long, env = "DEN_BACKUP_EVERY", hide_env = true, value_name = "DURATION")]
    backup_every: Option<String>,
    /// How many newest backups are kept there [default: all]
    #[arg(long, env = "DEN_BACKUP_KEEP", hide_env = true, value_name = "N")]
    backup_keep: Option<usize>,
    /// A file with lines AWS_…=value, mode 0600 [default: the environment]
    #[arg(long, env = "DEN_BACKUP_CREDENTIALS", hide_env = true, value_name = "FILE")]
    backup_credentials: Option<PathBuf>,
    /// Keys and tokens of the house stay out of them
    #[arg(long, env = "DEN_BACKUP_WITHOUT_SECRETS", hide_env = true)]
    backup_without_secrets: bool,
    /// /metrics needs no token
    #[arg(long, env = "DEN_METRICS_OPEN", hide_env = true)]
    metrics_open: bool,
    /// /metrics tells of each computer too
    #[arg(long, env = "DEN_METRICS_PER_COMPUTER", hide_env = true)]
    metrics_per_computer: bool,
    /// Does not speak to E2B's SDKs
    #[arg(long, env = "DEN_NO_E2B", hide_env = true)]
    no_e2b: bool,
    /// Speaks to them by names too, with TLS and certificates of its own: as e2b.test:8443; port 0 picks a free one
    #[arg(long, env = "DEN_E2B_DOMAIN", hide_env = true, value_name = "DOMAIN:PORT")]
    e2b_domain: Option<String>,
    /// Where it answers for those names, or off [default: 127.0.5.3:53, or one that belongs to the data folder]
    #[arg(long, env = "DEN_E2B_DNS", hide_env = true, value_name = "IP[:PORT]")]
    e2b_dns: Option<String>,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For eyes.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// On what computers' disks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// btrfs.
    #[default]
    Auto,
    /// Directories.
    Plain,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    run: Option<PathBuf>,
    images: Option<PathBuf>,
    listen: Option<String>,
    pool: Option<u32>,
    storage: Option<Storage>,
    disk_size: Option<Bytes>,
    keep_states: Option<usize>,
    trash_for: Option<String>,
    sync_steps: Option<bool>,
    criu: Option<PathBuf>,
    log_format: Option<LogFormat>,
    backup: Option<String>,
    backup_every: Option<String>,
    backup_keep: Option<usize>,
    backup_credentials: Option<PathBuf>,
    backup_without_secrets: Option<bool>,
    metrics_open: Option<bool>,
    metrics_per_computer: Option<bool>,
    no_e2b: Option<bool>,
    e2b_domain: Option<String>,
    e2b_dns: Option<String>,
    net: Option<String>,
    #[serde(default)]
    private: Vec<String>,
    #[serde(default)]
    resolver: Vec<IpAddr>,
    net_limit: Option<String>,
    #[serde(default)]
    defaults: Defaults,
}

/// The file's table `[defaults]`: limits of computers that name none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    cpus: Option<Cpus>,
    memory: Option<Bytes>,
    disk: Option<Bytes>,
    pids: Option<u32>,
}

/// Keys of the file.
const KEYS: [&str; 27] = [
    "data",
    "run",
    "images",
    "listen",
    "pool",
    "storage",
    "disk_size",
    "keep_states",
    "trash_for",
    "sync_steps",
    "criu",
    "log_format",
    "backup",
    "backup_every",
    "backup_keep",
    "backup_credentials",
    "backup_without_secrets",
    "metrics_open",
    "metrics_per_computer",
    "no_e2b",
    "e2b_domain",
    "e2b_dns",
    "net",
    "private",
    "resolver",
    "net_limit",
    "defaults",
];

/// What the daemon is told, made definite.
#[derive(Debug)]
pub struct Settings {
    /// The data folder.
    pub data: PathBuf,
    /// The run folder.
    pub run: PathBuf,
    /// The image store.
    pub images: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Husks that are kept ready.
    pub pool: u32,
    /// On what disks lie.
    pub storage: Storage,
    /// How large the image file may grow.
    pub disk_size: Option<Bytes>,
    /// States kept after steps, of each computer, before older ones are thinned.
    pub keep_states: usize,
    /// How long what is removed lies in the trash; 0: it goes for good at once.
    pub trash_for: Duration,
    /// Whether a step is safe from the end of power before it is answered.
    pub sync_steps: bool,
    /// CRIU, where it is named.
    pub criu: Option<PathBuf>,
    /// Backups by the clock.
    pub backup: Option<BackupPlan>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// Who sees the metrics, and how much of them there is.
    pub metrics: MetricsSettings,
    /// Whether E2B's SDKs are spoken to.
    pub e2b: bool,
    /// By what names.
    pub e2b_names: Option<NamesWanted>,
    /// Limits of computers that name none.
    pub defaults: Defaults,
    /// The network of computers that say nothing of it, and the gate.
    pub net: HouseNet,
}

/// The domain that E2B's SDKs are led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesWanted {
    /// The domain, and where its TLS listens.
    pub domain: Domain,
    /// Where its names are answered; none: they are not.
    pub dns: Option<SocketAddr>,
}

impl Settings {
    /// Gathers them. Makes the data folder, for its canonical path names the run folder.
    ///
    /// Errors: a file that cannot be read or has an unknown key, a value that makes no sense.
    pub fn gather(global: &Global, args: ServeArgs) -> Result<Self, Trouble> {
        let file = match &args.config {
            Some(path) => read(path)?,
            None if Path::new(CONFIG_DEFAULT).exists() => read(Path::new(CONFIG_DEFAULT))?,
            None => File::default(),
        };
        let data = global.data.clone().or(file.data).unwrap_or_else(|| PathBuf::from(DATA_DEFAULT));
        let listen = args.listen.or(file.listen).unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
        let listen = address(&listen)?;
        let pool = args.pool.or(file.pool).unwrap_or(POOL_DEFAULT);
        if pool > POOL_MAX {
            return Err(Trouble::usage(format_args!("`pool`: {pool} is more than {POOL_MAX}")));
        }
        let keep_states = args.keep_states.or(file.keep_states).unwrap_or(STATES_NEWEST);
        if !(1..=KEEP_STATES_MAX).contains(&keep_states) {
            let why = format_args!("`keep_states`: {keep_states} is not from 1 to {KEEP_STATES_MAX}");
            return Err(Trouble::usage(why));
        }
        // Of a flag that may be repeated, the file's values go where any is given.
        let private = if args.private.is_empty() { file.private } else { args.private };
        let net = HouseNet {
            posture: posture(args.net.or(file.net).as_deref())?,
            limits: net_limits(args.net_limit.or(file.net_limit).as_deref())?,
            private: private.iter().map(|text| private_target(text)).collect::<Result<_, _>>()?,
            resolvers: if args.resolver.is_empty() { file.resolver } else { args.resolver },
            program: Some(PathBuf::from(PROGRAM)),
        };
        let wanted = BackupWanted {
            to: args.backup.or(file.backup),
            every: args.backup_every.or(file.backup_every),
            keep: args.backup_keep.or(file.backup_keep),
            credentials: args.backup_credentials.or(file.backup_credentials),
            without_secrets: args.backup_without_secrets || file.backup_without_secrets.unwrap_or(false),
        };
        let e2b = !(args.no_e2b || file.no_e2b.unwrap_or(false));
        let (domain, dns) = (args.e2b_domain.or(file.e2b_domain), args.e2b_dns.or(file.e2b_dns));
        let names = names(e2b, domain.as_deref(), dns.as_deref())?;
        let data = make_data(&data)?;
        Ok(Self {
            backup: wanted.plan()?,
            net,
            run: whole("run", args.run.or(file.run).unwrap_or_else(|| run_folder(&data)))?,
            images: whole("images", args.images.or(file.images).unwrap_or_else(|| data.join("images")))?,
            listen,
            pool,
            storage: args.storage.or(file.storage).unwrap_or_default(),
            disk_size: args.disk_size.or(file.disk_size),
            keep_states,
            trash_for: trash_for(args.trash_for.or(file.trash_for).as_deref())?,
            sync_steps: args.sync_steps || file.sync_steps.unwrap_or(false),
            criu: args.criu.or(file.criu),
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            e2b,
            e2b_names: names.map(|(domain, dns)| NamesWanted { domain, dns: dns.at(&data) }),
            metrics: MetricsSettings {
                open: args.metrics_open || file.metrics_open.unwrap_or(false),
                per_computer: args.metrics_per_computer || file.metrics_per_computer.unwrap_or(false),
            },
            defaults: file.defaults,
            data,
        })
    }

    /// Limits of computers that name none: the file's, else those that fit the host.
    pub fn limits(&self, host: Limits) -> Limits {
        Limits {
            cpus: self.defaults.cpus.unwrap_or(host.cpus),
            memory: self.defaults.memory.unwrap_or(host.memory).max(Limits::MEMORY_MIN),
            disk: self.defaults.disk.unwrap_or(host.disk).max(Limits::DISK_MIN),
            pids: self.defaults.pids.unwrap_or(host.pids).max(Limits::PIDS_MIN),
        }
    }
}

/// A folder by its whole path, for the launcher and the gate work in another one.
fn whole(name: &str, folder: PathBuf) -> Result<PathBuf, Trouble> {
    std::path::absolute(folder).map_err(|error| Trouble::usage(format_args!("`{name}`: {error}")))
}

/// The run folder that belongs to a data folder: `/run/den` for the default one.
pub fn run_folder(data: &Path) -> PathBuf {
    if data == Path::new(DATA_DEFAULT) {
        return PathBuf::from("/run/den");
    }
    use std::os::unix::ffi::OsStrExt;
    let canonical = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    if canonical == Path::new(DATA_DEFAULT) {
        return PathBuf::from("/run/den");
    }
    let digest = blake3::hash(canonical.as_os_str().as_bytes()).to_hex();
    PathBuf::from(format!("/run/den-{}", &digest[..8]))
}

/// What is said of where names are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dns {
    Off,
    At(SocketAddr),
    OfData,
}

impl Dns {
    /// Where that is, for the house whose data lie in `data`: each house has an address of its own.
    fn at(self, data: &Path) -> Option<SocketAddr> {
        use std::os::unix::ffi::OsStrExt;
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
            Self::OfData if data == Path::new(DATA_DEFAULT) => Some(DNS_DEFAULT),
            Self::OfData => {
                let digest = blake3::hash(data.as_os_str().as_bytes());
                let [first, second, ..] = *digest.as_bytes();
                Some(SocketAddr::new(IpAddr::from([127, 5, first, second]), DNS_PORT))
            }
        }
    }
}

fn names(e2b: bool, domain: Option<&str>, dns: Option<&str>) -> Result<Option<(Domain, Dns)>, Trouble> {
    let Some(text) = domain else {
        return match dns {
            Some(_) => Err(Trouble::usage("`e2b_dns` says nothing without `e2b_domain`")),
            None => Ok(None),
        };
    };
    if !e2b {
        let hint = "leave out one of --no-e2b and --e2b-domain";
        return Err(Trouble::usage("`e2b_domain` is for E2B's SDKs, which `no_e2b` turns away").hint(hint));
    }
    let domain: Domain = text.parse().map_err(|error: NoDomain| {
        Trouble::usage(format_args!("`e2b_domain`: `{text}`: {error}")).hint(error.hint())
    })?;
    let dns = match dns {
        None => Dns::OfData,
        Some("off") => Dns::Off,
        Some(text) => {
            let address: Option<SocketAddr> = text.parse().ok();
            let address = address.or_else(|| Some(SocketAddr::new(text.parse().ok()?, DNS_PORT)));
            let hint = "an address of this host, for example 127.0.5.3, or off";
            match address {
                Some(address) if !address.ip().is_unspecified() => Dns::At(address),
                Some(_) => {
                    let why = format_args!("`e2b_dns`: `{text}` is every address, and it needs one of its own");
                    return Err(Trouble::usage(why).hint(hint));
                }
                None => return Err(Trouble::usage(format_args!("`e2b_dns`: `{text}` is no address")).hint(hint)),
            }
        }
    };
    Ok(Some((domain, dns)))
}

/// Makes the data folder, its owner's alone: the store in it has every command that was run.
fn make_data(data: &Path) -> Result<PathBuf, Trouble> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if !data.exists() {
        if let Some(above) = data.parent() {
            fs_err::create_dir_all(above).map_err(Trouble::new)?;
        }
        std::fs::DirBuilder::new().mode(0o700).create(data).map_err(|error| Trouble::io(data.display(), &error))?;
        // Whatever the umask was.
        fs_err::set_permissions(data, std::fs::Permissions::from_mode(0o700)).map_err(Trouble::new)?;
    }
    data.canonicalize().map_err(|error| Trouble::io(data.display(), &error))
}

fn read(path: &Path) -> Result<File, Trouble> {
    let text = fs_err::read_to_string(path).map_err(Trouble::new)?;
    parse(&text).map_err(|trouble| trouble.within(path.display()))
}

fn parse(text: &str) -> Result<File, Trouble> {
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| Trouble::usage(error.to_string().trim_end()))?;
    if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let nearest = KEYS.into_iter().min_by_key(|key| distance(key, unknown)).unwrap_or("data");
        let trouble = Trouble::usage(format_args!("the key `{unknown}` is not known"));
        return Err(match distance(nearest, unknown) {
            0..=3 => trouble.hint(format_args!("is `{nearest}` meant?")),
            _ => trouble.hint(format_args!("the keys are {}", KEYS.join(", "))),
        });
    }
    table.try_into().map_err(|error: toml::de::Error| Trouble::usage(error.to_string().trim_end()))
}

/// How many letters one would have to change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// What is said of backups.
#[derive(Debug, Default)]
struct BackupWanted {
    to: Option<String>,
    every: Option<String>,
    keep: Option<usize>,
    credentials: Option<PathBuf>,
    without_secrets: bool,
}

impl BackupWanted {
    fn plan(self) -> Result<Option<BackupPlan>, Trouble> {
        let Self { to, every, keep, credentials, without_secrets } = self;
        let Some(to) = to else {
            let alone = [("backup_every", every.is_some()), ("backup_keep", keep.is_some())];
            return match alone.iter().find(|(_, is)| *is) {
                Some((name, _)) => Err(Trouble::usage(format_args!("`{name}` says nothing without `backup`"))),
                None => Ok(None),
            };
        };
        let every = match every {
            None => BACKUP_EVERY,
            Some(text) => den_model::parse_duration(&text)
                .map_err(|error| Trouble::usage(format_args!("`backup_every`: {error}")).hint("for example 6h"))?,
        };
        if every < BACKUP_EVERY_MIN {
            return Err(Trouble::usage("`backup_every`: less than a minute"));
        }
        if keep.is_some_and(|keep| !(1..=BACKUP_KEEP_MAX).contains(&keep)) {
            return Err(Trouble::usage(format_args!("`backup_keep`: not from 1 to {BACKUP_KEEP_MAX}")));
        }
        if !to.starts_with('/') && !to.contains("://") {
            let hint = "a place is a folder by its whole path, or s3://BUCKET/PREFIX";
            return Err(Trouble::usage(format_args!("`backup`: `{to}` is no whole path")).hint(hint));
        }
        Ok(Some(BackupPlan { to, every, keep, without_secrets, credentials_file: credentials }))
    }
}

/// `0` is no trash.
fn trash_for(text: Option<&str>) -> Result<Duration, Trouble> {
    let Some(text) = text else { return Ok(TRASH_FOR) };
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let time = den_model::parse_duration(text).map_err(|error| {
        Trouble::usage(format_args!("`trash_for`: {error}")).hint("for example 24h; 0 for no trash")
    })?;
    match time > TRASH_FOR_MAX {
        true => Err(Trouble::usage(format_args!("`trash_for`: `{text}` is more than ten years"))),
        false => Ok(time),
    }
}

fn posture(text: Option<&str>) -> Result<Posture, Trouble> {
    let Some(text) = text else { return Ok(Posture::default()) };
    text.parse().map_err(|_| {
        Trouble::usage(format_args!("`net`: `{text}` is no posture")).hint("the postures are open, guarded and sealed")
    })
}

fn private_target(text: &str) -> Result<PrivateTarget, Trouble> {
    text.parse().map_err(|error| {
        Trouble::usage(format_args!("`private`: {error}")).hint("a target looks like 10.1.2.3:5432 or 10.1.2.0/24:443")
    })
}

fn net_limits(text: Option<&str>) -> Result<NetLimits, Trouble> {
    let base = NetLimits::default();
    let Some(text) = text else { return Ok(base) };
    let NetLimitsChange { flows, new_per_s, bits_per_s, bytes_per_day, dns_per_s } =
        limits::parse(text).map_err(|why| Trouble::usage(format_args!("`net_limit`: {why}")))?;
    Ok(NetLimits {
        flows: flows.unwrap_or(base.flows),
        new_per_s: new_per_s.unwrap_or(base.new_per_s),
        bits_per_s: bits_per_s.unwrap_or(base.bits_per_s),
        bytes_per_day: bytes_per_day.unwrap_or(base.bytes_per_day),
        dns_per_s: dns_per_s.unwrap_or(base.dns_per_s),
    })
}

fn address(text: &str) -> Result<SocketAddr, Trouble> {
    let wrong = || {
        Trouble::usage(format_args!("`listen`: `{text}` is no address with a port"))
            .hint("an address looks like 127.0.0.1:7878")
    };
    text.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_gets_a_suggestion() {
        let check = |text: &str, expected: &str| {
            let trouble = parse(text).expect_err("refused");
            assert!(trouble.shown().contains(expected), "{}", trouble.shown());
        };
        check("disksize = 1", "the key `disksize` is not known\nhint: is `disk_size` meant?");
        check("colour = 1", "the keys are data, run");
        check("pool = \"x\"", "pool");
        check("disk_size = \"10ZB\"", "10ZB");
        check("storage = \"zfs\"", "zfs");
        check("pool = ", "pool");
    }

    #[test]
    fn folders_are_whole_paths() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(whole("run", "h/run".into()).unwrap(), here.join("h/run"));
        assert_eq!(whole("run", "/run/x".into()).unwrap(), Path::new("/run/x"));
        assert!(whole("run", PathBuf::new()).expect_err("refused").shown().contains("`run`: "));
    }

    #[test]
    fn a_file_reads() {
        let file =
            parse("data = \"/x\"\npool = 3\nstorage = \"plain\"\ndisk_size = \"20G\"\n[defaults]\nmemory = \"1G\"")
                .unwrap();
        assert_eq!(file.defaults.memory, Some(Bytes::gib(1)));
        assert_eq!(file.pool, Some(3));
        assert_eq!(file.storage, Some(Storage::Plain));
        assert_eq!(file.disk_size, Some(Bytes::gib(20)));
    }

    #[test]
    fn what_is_said_of_the_network_is_checked() {
        let file = parse("net = \"guarded\"\nprivate = [\"10.1.2.3:5432\"]\nresolver = [\"192.0.2.53\"]").unwrap();
        assert_eq!(file.resolver, [IpAddr::from([192, 0, 2, 53])]);
        assert_eq!(posture(file.net.as_deref()).unwrap(), Posture::Guarded);
        assert_eq!(private_target(&file.private[0]).unwrap().port, 5432);
        assert!(posture(Some("shut")).unwrap_err().shown().contains("open, guarded and sealed"));
        for wrong in ["10.1.2.3", "example.com:80", "10.1.2.3:0", "10.1.2.0/33:80", ""] {
            assert!(private_target(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            net_limits(Some("bits=1g")).unwrap(),
            NetLimits { bits_per_s: 1_000_000_000, ..NetLimits::default() }
        );
        assert!(net_limits(Some("speed=1")).unwrap_err().shown().contains("net_limit"));
    }

    #[test]
    fn a_house_has_a_trash_unless_it_wants_none() {
        assert_eq!(trash_for(None).unwrap(), Duration::from_secs(86_400));
        assert_eq!(trash_for(Some("0")).unwrap(), Duration::ZERO);
        assert_eq!(trash_for(Some("90m")).unwrap(), Duration::from_secs(5400));
        for wrong in ["", "soon", "-1h", "4000d", "0s"] {
            assert!(trash_for(Some(wrong)).unwrap_err().shown().contains("trash_for"), "{wrong}");
        }
        assert_eq!(parse("trash_for = \"7d\"").unwrap().trash_for.as_deref(), Some("7d"));
    }

    #[test]
    fn names_are_asked_for_whole() {
        let at = |domain, dns| {
            let (domain, dns) = names(true, Some(domain), dns).unwrap().expect("a domain");
            (domain.to_string(), dns.at(Path::new("/x")).map(|at| at.to_string()))
        };
        assert_eq!(names(true, None, None).unwrap(), None);
        assert_eq!(
            at("E2b.test:8443", Some("127.0.0.9")),
            ("e2b.test:8443".to_owned(), Some("127.0.0.9:53".to_owned()))
        );
        assert_eq!(at("e2b.test:1", Some("[::1]:5353")).1.as_deref(), Some("[::1]:5353"));
        assert_eq!(at("e2b.test:1", Some("::1")).1.as_deref(), Some("[::1]:53"));
        assert_eq!(at("e2b.test:1", Some("off")).1, None);
        let own = at("e2b.test:1", None).1.unwrap();
        assert!(own.starts_with("127.5.") && own.ends_with(":53"), "{own}");
        assert_ne!(Dns::OfData.at(Path::new("/y")).unwrap().to_string(), own, "each house has its own");
        assert_eq!(Dns::OfData.at(Path::new(DATA_DEFAULT)), Some(DNS_DEFAULT));
        for (e2b, domain, dns, words) in [
            (true, None, Some("127.0.0.9"), "says nothing without `e2b_domain`"),
            (false, Some("e2b.test:1"), None, "leave out one of --no-e2b and --e2b-domain"),
            (true, Some("e2b.test"), None, "hint: for example e2b.test:8443"),
            (true, Some("test:8443"), None, "hint: put a name before it, for example e2b.test:8443"),
            (true, Some("https://e2b.test"), None, "`https://e2b.test`: it is a URL"),
            (true, Some("e2b.test:1"), Some("0.0.0.0"), "one of its own"),
            (true, Some("e2b.test:1"), Some("dns.test"), "`dns.test` is no address"),
        ] {
            let trouble = names(e2b, domain, dns).expect_err(words);
            assert!(trouble.shown().contains(words) && trouble.code() == crate::report::USAGE, "{}", trouble.shown());
        }
        assert_eq!(parse("e2b_domain = \"e2b.test:1\"").unwrap().e2b_domain.as_deref(), Some("e2b.test:1"));
    }

    #[test]
    fn backups_are_asked_for_whole() {
        let wanted = |to: &str, every: &str| BackupWanted {
            to: Some(to.to_owned()).filter(|to| !to.is_empty()),
            every: Some(every.to_owned()),
            ..BackupWanted::default()
        };
        assert!(BackupWanted::default().plan().unwrap().is_none());
        assert_eq!(wanted("/mnt/x", "90m").plan().unwrap().unwrap().every, Duration::from_secs(5400));
        for (to, every, word) in [("", "6h", "without `backup`"), ("/x", "1s", "a minute"), ("x", "6h", "whole path")] {
            assert!(wanted(to, every).plan().unwrap_err().shown().contains(word), "{to} {every}");
        }
    }

    #[test]
    fn each_data_folder_has_its_run_folder() {
        assert_eq!(run_folder(Path::new("/var/lib/den")), Path::new("/run/den"));
        let other = run_folder(Path::new("/nowhere/den"));
        assert!(other.to_str().unwrap().starts_with("/run/den-") && other.as_os_str().len() == "/run/den-".len() + 8);
    }

    #[test]
    fn addresses() {
        assert!(address("127.0.0.1:0").is_ok());
        assert!(address("[::1]:80").is_ok());
        for bad in ["", "7878", "127.0.0.1", "127.0.0.1:99999"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
