//! `cp`: files and trees, in, out, and from computer to computer.
//!
//! ```text
//! a file        GET, PUT                       mode, owner, time in headers and query
//! all else      pack ─tar─► tar_in             trees, links, sparse files
//!               tar_out ─tar─► unpack
//! between       tar_out or GET ──► tar_in or PUT, through this process
//! ```
//!
//! Where it goes, as `cp -a` has it: into DST where DST is a directory, else DST is the new name.
//! `SRC/.` means what SRC holds.
//!
//! Deliberately absent: any decision inside a computer; its agent resolves paths there.

mod pack;
mod place;
mod progress;
pub mod send;
mod source;
#[cfg(test)]
mod tests;
mod transfer;
mod unpack;

use std::{ffi::OsString, path::Path};

use clap::Args;
use den_api::Client;
use serde_json::json;

use self::{place::Place, progress::Progress, unpack::HostOwner};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

#[derive(Debug, Args)]
#[command(
    override_usage = "den cp [OPTIONS] SRC DST\n       (NAME:/PATH on either side, NAME@STATE:/PATH as SRC; - for a stream)",
    after_help = "Example: den cp ./src web:/root/  |  den cp web:/var/log ./logs  |  den cp web@12:/etc/hosts -\n\
                  SRC/. is what SRC holds. On the host setuid bits and devices stay behind."
)]
pub struct CpArgs {
    /// From where
    src: OsString,
    /// To where
    dst: OsString,
    /// Owner of all that is copied: user[:group], names or numbers
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Follow SRC if it is a symbolic link
    #[arg(long, short = 'L')]
    follow: bool,
    /// Make the directories above DST
    #[arg(long, short)]
    parents: bool,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
    /// What `cp` and `scp` need for trees; here they always go whole
    #[arg(short = 'a', short_alias = 'r', hide = true)]
    archive: bool,
}

/// What every copy needs.
struct Copy<'a> {
    client: Client,
    owner: Option<&'a str>,
    follow: bool,
    parents: bool,
    progress: Progress,
}

/// Copies.
pub async fn run(global: &Global, args: CpArgs) -> Outcome {
    let (src, dst) = (Place::parse(&args.src)?, Place::parse(&args.dst)?);
    if !matches!(src, Place::Inside { .. }) && !matches!(dst, Place::Inside { .. }) {
        return Err(Trouble::usage("neither side is in a computer").hint("a path in a computer is NAME:/PATH"));
    }
    if let Place::Inside { name, .. } = &dst {
        source::need_writable(name)?;
    }
    let copy = Copy {
        client: global.client()?,
        owner: args.owner.as_deref(),
        follow: args.follow,
        parents: args.parents,
        progress: Progress::new(!args.quiet && !global.json),
    };
    match (&src, &dst) {
        (Place::Host(src), Place::Inside { name, path }) => copy.upload(src, name, path).await,
        (Place::Inside { name, path }, Place::Host(dst)) => copy.download(name, path, dst).await,
        (Place::Inside { name, path }, Place::Stream) => copy.stream_out(name, path).await,
        (Place::Stream, Place::Inside { name, path }) => copy.stream_in(name, path).await,
        (Place::Inside { name, path }, Place::Inside { name: to, path: dst }) => {
            copy.between(name, path, to, dst).await
        }
        (Place::Host(_) | Place::Stream, Place::Host(_) | Place::Stream) => unreachable!("refused above"),
    }?;
    copy.progress.finish();
    if global.json {
        show::json(&json!({ "bytes": copy.progress.bytes() }))?;
    }
    Ok(0)
}

/// Where something goes inside a computer.
struct Inside {
    /// The directory.
    directory: Vec<u8>,
    /// The name in it; none for what a directory holds.
    name: Option<Vec<u8>>,
}

impl Inside {
    fn path(&self) -> Vec<u8> {
        match &self.name {
            Some(name) => place::join(&self.directory, name),
            None => self.directory.clone(),
        }
    }
}

impl Copy<'_> {
    /// Whether `path` is a directory inside; `None` where there is nothing.
    async fn is_directory(&self, name: &str, path: &[u8]) -> Result<Option<bool>, Trouble> {
        match self.client.stat(name, path, true).await {
            Ok(stat) => Ok(Some(stat.kind == "directory")),
            Err(error) if error.code() == Some("file_not_found") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a source called `base` (none: what a directory holds) goes when `path` was asked for.
    async fn place_inside(
        &self,
        name: &str,
        path: &[u8],
        base: Option<&[u8]>,
        source_is_directory: bool,
    ) -> Result<Inside, Trouble> {
        let slash = path.len() > 1 && path.ends_with(b"/");
        let trimmed = place::trim(path);
        let shown = String::from_utf8_lossy(trimmed);
        let there = self.is_directory(name, trimmed).await?;
        match (there, base) {
            (Some(true), base) => Ok(Inside { directory: trimmed.to_owned(), name: base.map(<[u8]>::to_owned) }),
            (Some(false), _) if source_is_directory || slash => {
                Err(Trouble::new(format_args!("`{name}:{shown}` is no directory")))
            }
            (None, None) => Ok(Inside { directory: trimmed.to_owned(), name: None }),
            (None, Some(_)) if slash && !source_is_directory && !self.parents => {
                Err(Trouble::new(format_args!("`{name}:{shown}` does not exist"))
                    .hint(format_args!("make it with --parents, or: den exec {name} -- mkdir -p {shown}")))
            }
            (None, Some(base)) if slash && !source_is_directory => {
                Ok(Inside { directory: trimmed.to_owned(), name: Some(base.to_owned()) })
            }
            (_, Some(_) | None) => {
                let (directory, last) = place::split(trimmed);
                Ok(Inside { directory: directory.to_owned(), name: Some(last.to_owned()) })
            }
        }
    }

    /// The owner for what goes into a computer: as asked; else, from a user who is not root, root,
    /// for that user's own number means nothing inside.
    fn owner_inside(&self) -> Option<&str> {
        match self.owner {
            Some(owner) => Some(owner),
            None if rustix::process::geteuid().is_root() => None,
            None => Some("0:0"),
        }
    }

    /// The owner for what comes out to the host.
    fn owner_on_host(&self) -> Result<HostOwner, Trouble> {
        match self.owner {
            Some(owner) => HostOwner::parse(owner),
            None if rustix::process::geteuid().is_root() => Ok(HostOwner::Kept),
            None => Ok(HostOwner::Mine),
        }
    }
}

/// The last component of a host path; `.` and `..` are resolved first.
fn host_base(path: &Path) -> Result<OsString, Trouble> {
    if let Some(base) = path.file_name() {
        return Ok(base.to_owned());
    }
    let whole = path.canonicalize().map_err(|error| Trouble::io(path.display(), &error))?;
    Ok(whole.file_name().map_or_else(|| OsString::from("root"), ToOwned::to_owned))
}
