//! `image`: what computers start from.

use std::{
    collections::HashMap,
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use clap::{Args, Subcommand};
use den_api::{BuildImage, Client, ClientError, ImageView, JobEvent, PullImage, client::Lines};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::cp::send;
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "list", after_help = "Example: den image ls --json")]
    Ls,
    /// Fetch one from a registry
    Pull(PullArgs),
    /// Take one from a file, a folder or a stream
    Import(ImportArgs),
    /// Make one from Debian packages
    Build(BuildArgs),
    /// Remove images
    #[command(visible_alias = "delete", alias = "remove")]
    Rm(RmArgs),
    /// One image
    #[command(alias = "inspect", alias = "show")]
    Info(InfoArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den image pull debian:bookworm")]
pub struct PullArgs {
    /// debian:bookworm, host/path:tag, …@sha256:…
    reference: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den image import rootfs.tar.zst mine  |  docker save app | den image import - app")]
pub struct ImportArgs {
    /// A tar of a root, an OCI layout or archive, what docker save gave, a folder; - for a stream
    source: OsString,
    /// Its name [default: from the file's]
    name: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: den image build  |  den image build small --from debian:bookworm --packages curl,jq\n\
                        Without a name it builds `base`, the image that den new takes."
)]
pub struct BuildArgs {
    /// Its name
    #[arg(default_value = "base")]
    name: String,
    /// The distribution: debian:bookworm
    #[arg(long, value_name = "DISTRIBUTION")]
    from: Option<String>,
    /// Packages to put in, with commas or again and again
    #[arg(long, short, value_name = "PACKAGE", value_delimiter = ',', num_args = 1..)]
    packages: Vec<String>,
    /// A mirror in place of the host's own
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den image rm debian:bookworm")]
pub struct RmArgs {
    /// Which
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den image info base")]
pub struct InfoArgs {
    /// Which
    #[arg(value_name = "IMAGE")]
    name: String,
}

/// Does what is asked with images.
pub async fn run(global: &Global, command: ImageCommand) -> Outcome {
    let client = global.client()?;
    match command {
        ImageCommand::Ls => ls(global, &client).await,
        ImageCommand::Pull(args) => {
            follow(global, client.pull_image(&PullImage { reference: args.reference }).await?).await
        }
        ImageCommand::Import(args) => import(global, &client, args).await,
        ImageCommand::Build(args) => {
            let packages = args.packages.into_iter().filter(|package| !package.is_empty()).collect();
            let build = BuildImage { name: args.name, from: args.from, packages, mirror: args.mirror };
            follow(global, client.build_image(&build).await?).await
        }
        ImageCommand::Rm(args) => {
            for name in args.names {
                client.remove_image(&name).await?;
                if global.json {
                    show::json_line(&serde_json::json!({ "removed": name }))?;
                }
            }
            Ok(0)
        }
        ImageCommand::Info(args) => {
            let image = client.image(&args.name).await?;
            if global.json {
                show::json(&image)?
            } else {
                show_image(&image)?
            }
            Ok(0)
        }
    }
}

async fn ls(global: &Global, client: &Client) -> Outcome {
    let images = client.images().await?;
    if global.json {
        show::json(&images)?;
    } else if images.is_empty() {
        show::line("no images; make the default one with: den image build")?;
    } else {
        show::table(
            ["NAME", "SIZE", "LAYERS", "AGE", "USED BY", "SOURCE"],
            images.iter().map(|image| {
                [
                    image.name.clone(),
                    show::size(image.size),
                    image.layers.to_string(),
                    show::age(image.created_at),
                    image.used_by.len().to_string(),
                    image.source.clone(),
                ]
            }),
        )?;
    }
    Ok(0)
}

fn show_image(image: &ImageView) -> Result<(), Trouble> {
    show::facts(&[
        ("name", image.name.clone()),
        ("digest", image.digest.clone()),
        ("size", show::size(image.size)),
        ("layers", image.layers.to_string()),
        ("source", image.source.clone()),
        ("made", format!("{} ago", show::age(image.created_at))),
        ("command", show::command(&image.command, 200)),
        ("user", image.user.clone().unwrap_or_default()),
        ("directory", image.working_dir.clone().unwrap_or_default()),
        ("env", image.env.join(" ")),
        ("used by", image.used_by.join(" ")),
    ])
}

/// `app` for `/x/app.tar.zst`.
fn name_of(source: &Path) -> Option<String> {
    let name = source.file_name()?.to_str()?;
    let name = [".gz", ".zst", ".zstd", ".tgz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let name = [".tar", ".oci"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    (!name.is_empty()).then(|| name.to_owned())
}

async fn import(global: &Global, client: &Client, args: ImportArgs) -> Outcome {
    let source = Path::new(&args.source);
    let is_stream = args.source.as_bytes() == b"-";
    let name = match args.name {
        Some(name) => name,
        None => (!is_stream)
            .then(|| source.canonicalize().ok().as_deref().and_then(name_of))
            .flatten()
            .ok_or_else(|| Trouble::usage("the image needs a name").hint("den image import SOURCE NAME"))?,
    };
    if !is_stream && source.is_dir() {
        let whole = source.canonicalize().map_err(|error| Trouble::io(source.display(), &error))?;
        if client.is_local() {
            let path = whole.as_os_str().as_bytes();
            return follow(global, client.import_image_path(&name, path).await?).await;
        }
        let (body, sending) = send::tree(whole);
        let lines = send::both(client.import_image(&name, body).await, sending).await?;
        return follow(global, lines).await;
    }
    // The answer begins before the whole body is there, so the body is not waited for here.
    let (body, _sending) = send::stream((!is_stream).then_some(source))?;
    follow(global, client.import_image(&name, body).await?).await
}

/// Shows how far a job is until it is done.
async fn follow(global: &Global, mut events: Lines<JobEvent>) -> Outcome {
    let mut shown = Shown::new();
    while let Some(event) = events.next().await? {
        if global.json {
            show::json_line(&event)?;
        }
        match event {
            JobEvent::Progress { stage, part, done, total } if !global.json => {
                shown.progress(stage, part, done, total);
            }
            JobEvent::Line { text } if !global.json => shown.line(&text),
            JobEvent::Progress { .. } | JobEvent::Line { .. } => {}
            JobEvent::Done { image } => {
                shown.clear();
                if !global.json {
                    show::line(&image.name)?;
                }
                return Ok(0);
            }
            JobEvent::Failed { error: detail } => {
                shown.clear();
                return Err(ClientError::Refused { status: 0, detail }.into());
            }
        }
    }
    shown.clear();
    Err(Trouble::new("the daemon ended before the image was done").hint("the same command again goes on where it can"))
}

/// Bars on a terminal, else a line when something begins.
struct Shown {
    bars: MultiProgress,
    is_terminal: bool,
    known: HashMap<(String, Option<String>), ProgressBar>,
}

impl Shown {
    fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), is_terminal, known: HashMap::new() }
    }

    fn progress(&mut self, stage: String, part: Option<String>, done: u64, total: Option<u64>) {
        let what = part.as_ref().map_or_else(|| stage.clone(), |part| format!("{stage} {part}"));
        let (bars, is_terminal) = (&self.bars, self.is_terminal);
        let bar = self.known.entry((stage, part)).or_insert_with(|| {
            if !is_terminal {
                eprintln!("{what}");
            }
            let bar = bars.add(ProgressBar::no_length());
            let template = "{msg} {wide_bar} {bytes}/{total_bytes}";
            bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
            bar.set_message(what);
            bar
        });
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
        if total == Some(done) {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        if self.is_terminal {
            let _ = self.bars.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    fn clear(&self) {
        let _ = self.bars.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_files() {
        let check = |path: &str, expected: Option<&str>| assert_eq!(name_of(Path::new(path)).as_deref(), expected);
        check("/x/app.tar.zst", Some("app"));
        check("/x/app.tar", Some("app"));
        check("/x/app", Some("app"));
        check("/", None);
    }
}
