//! `backup` and `restore-backup`: the whole house into another place, and out of it.
//!
//! The daemon makes backups. Listing, verifying and removing them, and making a house of one, need no daemon:
//! they are done here, on a machine that may be another one.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use clap::{Args, Subcommand};
use den_api::{BackUp, BackupEvent, BackupView, ClientError, client::DATA_DEFAULT};
use den_backup::{BackupError, Credentials, Manifest, Place, Progress, Repository};
use den_control::{RestoreBackup, StorageChoice};
use den_model::Bytes;

use super::{progress::Line, serve::Storage};
use crate::{
    find::Global,
    report::{Outcome, Trouble, chain},
    show,
};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Example: den backup /mnt/backup  |  den backup s3://bucket/den --keep 30\n\
                  A second one there reads and stores what has changed. Computers go on meanwhile.\n\
                  S3 takes AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL from the\n\
                  environment of this command, of the daemon, or from a file. By the clock: den serve --backup."
)]
pub struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// A folder of the daemon's host, or s3://BUCKET/PREFIX
    #[arg(required = true, value_name = "TO")]
    to: Option<String>,
    /// Keep only so many newest there
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Leave keys and tokens of the house out
    #[arg(long)]
    without_secrets: bool,
    /// A file of the daemon's host with lines AWS_…=value, mode 0600
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// List the backups in a place
    #[command(visible_alias = "list", after_help = "Example: den backup ls /mnt/backup")]
    Ls(PlaceArgs),
    /// Read everything there, and name what is lost
    #[command(alias = "check", after_help = "Example: den backup verify s3://bucket/den")]
    Verify(PlaceArgs),
    /// Let go of a backup, and of what no other needs
    #[command(alias = "remove", after_help = "Example: den backup rm /mnt/backup 20261122T1558")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// A folder, or s3://BUCKET/PREFIX
    #[arg(value_name = "PLACE")]
    place: String,
    /// A file with lines AWS_…=value, mode 0600 [default: the environment]
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RmArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Its id, or the beginning of it
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: sudo den restore-backup /mnt/backup --data /var/lib/den\n\
                        Every byte is checked. All computers are stopped then: den serve, den start NAME.")]
pub struct RestoreArgs {
    /// A folder, or s3://BUCKET/PREFIX
    #[arg(value_name = "FROM")]
    from: String,
    /// Which backup: its id, or the beginning of it [default: the newest]
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// The image store [default: images in the data folder]
    #[arg(long, env = "DEN_IMAGES", hide_env = true, value_name = "DIR")]
    images: Option<PathBuf>,
    /// auto: btrfs, in an image file where the data folder is on another; plain: directories [default: auto]
    #[arg(long, env = "DEN_STORAGE", hide_env = true, hide_possible_values = true)]
    storage: Option<Storage>,
    /// How large the btrfs image file may grow [default: what the disk has]
    #[arg(long, env = "DEN_DISK_SIZE", hide_env = true, value_name = "SIZE")]
    disk_size: Option<Bytes>,
    /// Go on without what is lost, and name it
    #[arg(long)]
    skip_broken: bool,
    /// A file with lines AWS_…=value, mode 0600 [default: the environment]
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

/// Makes a backup, or looks at those there are.
pub async fn run(global: &Global, args: BackupArgs) -> Outcome {
    match args.command {
        None => back_up(global, args).await,
        Some(command) => {
            let json = global.json;
            // Its own thread: what is read from S3 has a runtime there.
            let done = tokio::task::spawn_blocking(move || match command {
                BackupCommand::Ls(args) => ls(json, &args),
                BackupCommand::Verify(args) => verify(json, &args),
                BackupCommand::Rm(args) => rm(json, &args),
            });
            done.await.map_err(Trouble::new)?
        }
    }
}

async fn back_up(global: &Global, args: BackupArgs) -> Outcome {
    let to = whole(args.to.as_deref().unwrap_or_default())?;
    let file = args.credentials.map(|file| whole(&file.to_string_lossy())).transpose()?;
    let credentials: BTreeMap<String, String> = match to.starts_with("s3://") && file.is_none() {
        true => Credentials::from_env().pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        false => BTreeMap::new(),
    };
    let request =
        BackUp { to, without_secrets: args.without_secrets, keep: args.keep, credentials_file: file, credentials };
    let mut events = global.client()?.back_up(&request).await?;
    let mut line = Line::is_wanted().then(Line::new);
    while let Some(event) = events.next().await? {
        if global.json {
            show::json_line(&event)?;
        }
        match event {
            BackupEvent::Progress { what, read_bytes, stored_bytes } => {
                if let Some(line) = &mut line {
                    let phase = format!("{what}: {} read, {} stored", show::size(read_bytes), show::size(stored_bytes));
                    line.tell(&den_api::ProgressView { phase, done: 0, of: None });
                }
            }
            BackupEvent::Done { backup } => {
                drop(line.take());
                if !global.json {
                    told(&backup)?;
                }
                return Ok(0);
            }
            BackupEvent::Failed { error: detail } => {
                drop(line.take());
                return Err(ClientError::Refused { status: 0, detail }.into());
            }
        }
    }
    Err(Trouble::new("the daemon ended before the backup was done").hint("the same command again goes on where it was"))
}

fn told(backup: &BackupView) -> Result<(), Trouble> {
    show::line(&backup.id)?;
    eprintln!(
        "{} computers, {} states; {} read, {} stored in {:.1} s",
        backup.computers,
        backup.states,
        show::size(backup.read_bytes),
        show::size(backup.stored_bytes),
        backup.time_ms as f64 / 1e3
    );
    for path in &backup.left_out {
        eprintln!("left out: {}", show::clean(path));
    }
    Ok(())
}

/// A folder by its whole path; anything else as it is.
fn whole(text: &str) -> Result<String, Trouble> {
    if text.is_empty() {
        let hint = "name a folder, or s3://BUCKET/PREFIX; `den backup --help` has an example";
        return Err(Trouble::usage("the place of the backup is empty").hint(hint));
    }
    if text.contains("://") || text.starts_with('/') {
        return Ok(text.to_owned());
    }
    let path = std::path::absolute(Path::new(text)).map_err(|error| Trouble::io(text, &error))?;
    path.into_os_string().into_string().map_err(|_| Trouble::usage("the folder's path is no UTF-8"))
}

fn trouble(error: &BackupError) -> Trouble {
    Trouble::new(format_args!("{} ({})", chain(error), error.code())).hint(error.hint())
}

fn credentials(file: Option<&Path>) -> Result<Credentials, Trouble> {
    match file {
        Some(file) => Credentials::from_file(file).map_err(|error| trouble(&error)),
        None => Ok(Credentials::from_env()),
    }
}

fn place(args: &PlaceArgs) -> Result<Place, Trouble> {
    let credentials = credentials(args.credentials.as_deref())?;
    Place::new(&whole(&args.place)?, &credentials).map_err(|error| trouble(&error))
}

fn ls(json: bool, args: &PlaceArgs) -> Outcome {
    let place = place(args)?;
    let mut all = Vec::new();
    for found in Repository::backups(&place).map_err(|error| trouble(&error))? {
        let manifest = Repository::manifest(&place, &found);
        all.push((found.id, manifest));
    }
    if json {
        let view = |(id, manifest): &(String, Result<Manifest, BackupError>)| match manifest {
            Ok(manifest) => serde_json::json!({
                "id": id, "at": manifest.at, "host": manifest.host, "den": manifest.den,
                "secrets": manifest.secrets, "computers": manifest.computers, "took": manifest.took,
            }),
            Err(error) => serde_json::json!({ "id": id, "broken": error.to_string() }),
        };
        show::json(&all.iter().map(view).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let rows = all.iter().map(|(id, manifest)| match manifest {
        Ok(manifest) => [
            id.clone(),
            format!("{} ago", show::age(manifest.at)),
            manifest.host.clone(),
            manifest.computers.len().to_string(),
            manifest.computers.iter().map(|computer| computer.states).sum::<usize>().to_string(),
            show::size(manifest.took.stored_bytes),
        ],
        Err(error) => [id.clone(), error.to_string(), String::new(), String::new(), String::new(), String::new()],
    });
    show::table(["ID", "AGE", "HOST", "COMPUTERS", "STATES", "STORED"], rows)?;
    Ok(0)
}

fn verify(json: bool, args: &PlaceArgs) -> Outcome {
    let shown = Shown::new();
    let found = den_backup::verify(place(args)?, &shown, &AtomicBool::new(false)).map_err(|error| trouble(&error))?;
    shown.clear();
    if json {
        show::json(&found)?;
    } else {
        show::line(&format!(
            "{} backups, {} chunks in {} packs, {}",
            found.backups,
            found.chunks,
            found.packs,
            show::size(found.bytes)
        ))?;
        for lost in &found.lost {
            show::line(&format!("lost: {}: {}", lost.backup, show::clean(&lost.what)))?;
        }
    }
    if let Some(why) = &found.unmarked {
        eprintln!("not marked: {}", show::clean(why));
    }
    match found.lost.len() {
        0 => Ok(0),
        lost => Err(Trouble::new(format_args!("{lost} things are lost (backup_broken)")).hint(match found.unmarked {
            None => "den restore-backup --skip-broken does without them; a new backup stores again what is still there",
            Some(_) => {
                "den restore-backup --skip-broken does without them; verify again where the place can be written, \
                     so that a new backup stores them again"
            }
        })),
    }
}

fn rm(json: bool, args: &RmArgs) -> Outcome {
    let pruned = den_backup::remove(place(&args.place)?, &args.id).map_err(|error| trouble(&error))?;
    if let Some(why) = &pruned.held {
        eprintln!("nothing else is freed: {}", show::clean(why));
    }
    if json {
        show::json(&serde_json::json!({ "removed": pruned.backups, "packs": pruned.packs, "freed": pruned.bytes }))?;
    } else {
        show::line(&format!("{} is gone; {} freed", pruned.backups.join(" "), show::size(pruned.bytes)))?;
    }
    Ok(0)
}

/// Makes a house of a backup.
pub fn restore(global: &Global, args: RestoreArgs) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(Trouble::new("a restore makes mounts and files of every owner, and needs to be root")
            .hint("sudo den restore-backup …"));
    }
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from(DATA_DEFAULT));
    let data = std::path::absolute(&data).map_err(|error| Trouble::io(data.display(), &error))?;
    let shown = Shown::new();
    let request = RestoreBackup {
        from: whole(&args.from)?,
        id: args.id,
        credentials: credentials(args.credentials.as_deref())?,
        images: args.images.unwrap_or_else(|| data.join("images")),
        data: data.clone(),
        storage: match args.storage.unwrap_or_default() {
            Storage::Auto => StorageChoice::Auto,
            Storage::Plain => StorageChoice::Plain,
        },
        disk_size: args.disk_size,
        skip_broken: args.skip_broken,
    };
    let restored = den_control::restore_backup(request, &shown, &AtomicBool::new(false));
    shown.clear();
    let restored = restored.map_err(|error| {
        let trouble = Trouble::new(format_args!("{} ({})", chain(&error), error.code));
        match &error.hint {
            Some(hint) => trouble.hint(hint),
            None => trouble,
        }
    })?;
    if global.json {
        show::json(&restored)?;
        return Ok(0);
    }
    let (computers, states) = (restored.computers, restored.states);
    show::line(&format!("{} of {}: {computers} computers, {states} states", restored.id, restored.host))?;
    for lost in &restored.lost {
        show::line(&format!("lost: {}", show::clean(lost)))?;
    }
    show::line(&format!("next: sudo den serve --data {}", data.display()))?;
    Ok(0)
}

/// How far it is, on a terminal.
struct Shown {
    line: Mutex<(Option<Line>, String, Option<Instant>)>,
    bytes: AtomicU64,
}

impl Shown {
    fn new() -> Self {
        let line = io::stderr().is_terminal().then(Line::new);
        Self { line: Mutex::new((line, String::new(), None)), bytes: AtomicU64::new(0) }
    }

    fn tell(&self, what: Option<&str>) {
        /// Between two looks.
        const EVERY_MS: u128 = 100;
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(what) = what {
            what.clone_into(&mut line.1);
        }
        if line.2.is_some_and(|at| at.elapsed().as_millis() < EVERY_MS) {
            return;
        }
        line.2 = Some(Instant::now());
        let phase = format!("{}: {}", line.1, show::size(self.bytes.load(Ordering::Relaxed)));
        if let Some(line) = &mut line.0 {
            line.tell(&den_api::ProgressView { phase, done: 0, of: None });
        }
    }

    fn clear(&self) {
        drop(self.line.lock().unwrap_or_else(PoisonError::into_inner).0.take());
    }
}

impl Progress for Shown {
    fn begins(&self, what: &str) {
        self.tell(Some(what));
    }

    fn read(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell(None);
    }

    fn stored(&self, _: u64) {}
}
