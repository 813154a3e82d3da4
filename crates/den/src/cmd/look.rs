//! `cat`, `ls NAME`, `tree`, `grep`, `stat`: looking into a state of a computer without starting it.
//!
//! Deliberately absent: any resolving of paths; the daemon does it inside the state's own root.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
};

use base64::Engine;
use clap::Args;
use den_api::{
    EntryKind, StateEntry,
    client::{ByteStream, StateGrep},
};
use serde_json::json;

use super::{
    changes, fork,
    state::{StateArg, absolute, one_path, with_path},
};
use crate::{
    find::Global,
    report::{FAILED, Outcome, Trouble},
    show,
};

/// Entries and lines that are shown when nobody says.
const SHOWN: u32 = 1000;
/// The most that one request asks for.
const MOST: u32 = 10_000;
/// How deep a tree is shown when nobody says.
const DEPTH: u32 = 3;
/// How much of a file JSON holds, in bytes.
const JSON_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Args)]
#[command(after_help = "Example: den cat web@12 /etc/hosts  |  den cat web@before:/etc/hosts")]
pub struct CatArgs {
    /// Which computer, or which state of it
    #[arg(value_name = "NAME[@STATE]")]
    state: OsString,
    /// Which files
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

/// What `ls` shows of a state.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// A computer or a state of it, to list files there
    #[arg(value_name = "NAME[@STATE]", conflicts_with_all = ["state", "label", "quiet"])]
    pub target: Option<OsString>,
    /// Which directory there [default: /]
    #[arg(requires = "target")]
    path: Option<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den tree web@12 /etc --depth 2  |  den tree --lineage")]
pub struct TreeArgs {
    /// Which computer, or which state of it
    #[arg(value_name = "NAME[@STATE]", required_unless_present = "lineage")]
    target: Option<OsString>,
    /// Which directory [default: /]
    path: Option<OsString>,
    /// How many levels [default: 3]
    #[arg(long, short, visible_short_alias = 'L', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: Option<u32>,
    /// Who was forked from whom; with a name only its family
    #[arg(long, conflicts_with_all = ["path", "depth"])]
    lineage: bool,
    /// How many entries at most [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    limit: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den grep web@12 'listen +80' /etc\nExit code 1: no line matches.")]
pub struct GrepArgs {
    /// Which computer, or which state of it
    #[arg(value_name = "NAME[@STATE]")]
    target: OsString,
    /// A regular expression
    pattern: String,
    /// Which file or directory [default: /]
    path: Option<OsString>,
    /// Capitals and small letters are the same
    #[arg(long, short)]
    ignore_case: bool,
    /// The pattern is a text
    #[arg(long, short = 'F', visible_alias = "fixed-strings")]
    fixed: bool,
    /// How many lines at most [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    limit: Option<u32>,
    /// What `grep` needs for trees and numbers; here both are always there
    #[arg(short = 'r', short_aliases = ['R', 'n', 'E'], action = clap::ArgAction::Count, hide = true)]
    recursive: u8,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den stat web@12 /etc/hosts")]
pub struct StatArgs {
    /// Which computer, or which state of it
    #[arg(value_name = "NAME[@STATE]")]
    target: OsString,
    /// Which path; a link itself, not where it points
    path: Option<OsString>,
}

/// Writes a stream to standard output; not through `io::stdout`, which looks for line ends.
async fn pour(mut stream: ByteStream) -> Result<(), Trouble> {
    let broken = |error: io::Error| Trouble::io("standard output", &error);
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(broken)?);
    while let Some(bytes) = stream.next().await? {
        out.write_all(&bytes).map_err(broken)?;
    }
    Ok(())
}

/// Prints files.
pub async fn cat(global: &Global, args: CatArgs) -> Outcome {
    let (target, behind) = with_path(&args.state)?;
    let mut paths: Vec<Vec<u8>> = behind.into_iter().collect();
    for path in &args.paths {
        paths.push(absolute(path)?);
    }
    if paths.is_empty() {
        return Err(Trouble::usage("`cat` wants a path").hint(format_args!("den cat {} /etc/hosts", target.text())));
    }
    let client = global.client()?;
    for path in paths {
        let mut stream = client.state_file(&target.name, target.state(), &path).await?;
        if !global.json {
            pour(stream).await?;
            continue;
        }
        let mut bytes = Vec::new();
        let mut truncated = false;
        while let Some(chunk) = stream.next().await? {
            let room = JSON_BYTES_MAX - bytes.len();
            truncated = chunk.len() > room;
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if truncated {
                break;
            }
        }
        let path = String::from_utf8_lossy(&path).into_owned();
        show::json_line(&match String::from_utf8(bytes) {
            Ok(text) => json!({ "path": path, "text": text, "truncated": truncated }),
            Err(error) => {
                let data = base64::engine::general_purpose::STANDARD.encode(error.as_bytes());
                json!({ "path": path, "data_base64": data, "truncated": truncated })
            }
        })?;
    }
    Ok(0)
}

/// Lists a directory of a state.
pub async fn list(global: &Global, target: &OsString, args: &ListArgs) -> Outcome {
    let (target, behind) = with_path(target)?;
    let path = one_path(behind, args.path.as_deref())?.unwrap_or_else(|| b"/".to_vec());
    let list = global.client()?.state_list(&target.name, target.state(), &path, Some(1), Some(MOST)).await?;
    if global.json {
        show::json(&list)?;
        return Ok(0);
    }
    if list.items.is_empty() {
        show::line("nothing in it")?;
        return Ok(0);
    }
    let rows = list.items.iter().map(|entry| {
        let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
        let mut name = changes::entry_path(name, Some(&entry.meta));
        if let Some(to) = &entry.meta.target {
            name.push_str(&format!(" -> {}", show::clean(to)));
        }
        [
            changes::mode(&entry.meta),
            format!("{}:{}", entry.meta.uid, entry.meta.gid),
            if entry.meta.kind == EntryKind::File { show::size(entry.meta.size) } else { "-".to_owned() },
            show::age(entry.meta.mtime),
            name,
        ]
    });
    show::table(["MODE", "OWNER", "SIZE", "AGE", "NAME"], rows)?;
    if list.truncated {
        show::line(&format!("… more than {MOST}: list a directory below it"))?;
    }
    Ok(0)
}

/// Shows a tree of a state, or of who was forked from whom.
pub async fn tree(global: &Global, args: TreeArgs) -> Outcome {
    if args.lineage {
        let name = match &args.target {
            Some(target) => Some(StateArg::parse(&target.to_string_lossy())?.name),
            None => None,
        };
        return fork::lineage(global, name.as_deref()).await;
    }
    let (target, behind) = with_path(args.target.as_ref().expect("clap wants it without --lineage"))?;
    let path = one_path(behind, args.path.as_deref())?.unwrap_or_else(|| b"/".to_vec());
    let (depth, limit) = (args.depth.unwrap_or(DEPTH), args.limit.unwrap_or(SHOWN));
    let list = global.client()?.state_list(&target.name, target.state(), &path, Some(depth), Some(limit)).await?;
    if global.json {
        show::json(&list)?;
        return Ok(0);
    }
    let top = String::from_utf8_lossy(&path).into_owned();
    let mut out = format!("{}\n", show::clean(&top));
    list.items.iter().for_each(|entry| out.push_str(&branch(&top, entry)));
    if list.truncated {
        out.push_str(&format!("… more than {limit}: --limit N, --depth N, or a directory below it\n"));
    }
    show::print(&out)?;
    Ok(0)
}

/// One line of a tree, two spaces a level.
fn branch(top: &str, entry: &StateEntry) -> String {
    let below = entry.path.strip_prefix(top.trim_end_matches('/')).unwrap_or(&entry.path).trim_start_matches('/');
    let depth = below.matches('/').count() + 1;
    let name = changes::entry_path(below.rsplit('/').next().unwrap_or(below), Some(&entry.meta));
    let detail = match (entry.meta.kind, &entry.meta.target) {
        (EntryKind::File, _) => format!("  {}", show::size(entry.meta.size)),
        (_, Some(to)) => format!(" -> {}", show::clean(to)),
        _ => String::new(),
    };
    format!("{:indent$}{name}{detail}\n", "", indent = depth * 2)
}

/// Looks for lines in the files of a state.
pub async fn grep(global: &Global, args: GrepArgs) -> Outcome {
    let (target, behind) = with_path(&args.target)?;
    let path = one_path(behind, args.path.as_deref())?.unwrap_or_else(|| b"/".to_vec());
    let limit = args.limit.unwrap_or(SHOWN);
    let wanted =
        StateGrep { pattern: args.pattern, ignore_case: args.ignore_case, fixed: args.fixed, limit: Some(limit) };
    let hits = global.client()?.state_grep(&target.name, target.state(), &path, &wanted).await?;
    let code = if hits.items.is_empty() { FAILED } else { 0 };
    if global.json {
        show::json(&hits)?;
        return Ok(code);
    }
    let mut out: String = hits
        .items
        .iter()
        .map(|hit| match hit.line {
            0 => format!("{}: binary, matches\n", show::clean(&hit.path)),
            line => format!("{}:{line}:{}\n", show::clean(&hit.path), show::clean(&hit.text)),
        })
        .collect();
    if hits.truncated {
        out.push_str(&format!("… more than {limit}: --limit N, or a path below\n"));
    }
    show::print(&out)?;
    if hits.items.is_empty() {
        eprintln!("no line matches");
    }
    Ok(code)
}

/// Shows what a path of a state is.
pub async fn stat(global: &Global, args: StatArgs) -> Outcome {
    let (target, behind) = with_path(&args.target)?;
    let Some(path) = one_path(behind, args.path.as_deref())? else {
        return Err(Trouble::usage("`stat` wants a path").hint(format_args!("den stat {} /etc/hosts", target.text())));
    };
    let entry = global.client()?.state_stat(&target.name, target.state(), &path).await?;
    if global.json {
        show::json(&entry)?;
        return Ok(0);
    }
    let meta = &entry.meta;
    show::facts(&[
        ("path", show::clean(&entry.path)),
        ("kind", changes::kind(meta.kind).to_owned()),
        ("target", meta.target.as_deref().map(show::clean).unwrap_or_default()),
        ("mode", format!("{:04o} {}", meta.mode, changes::mode(meta))),
        ("owner", format!("{}:{}", meta.uid, meta.gid)),
        (
            "size",
            match (meta.kind, meta.size) {
                (EntryKind::File, size @ 1024..) => format!("{} ({size})", show::size(size)),
                (EntryKind::File, size) => show::size(size),
                _ => String::new(),
            },
        ),
        ("changed", format!("{} ago", show::age(meta.mtime))),
    ])?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use den_api::MetaView;

    use super::*;

    #[test]
    fn a_tree_is_drawn_by_depth() {
        let entry = |path: &str, kind| StateEntry {
            path: path.to_owned(),
            meta: MetaView { kind, mode: 0o644, uid: 0, gid: 0, size: 12, mtime: 0, target: None },
        };
        assert_eq!(branch("/", &entry("/etc", EntryKind::Directory)), "  etc/\n");
        assert_eq!(branch("/etc", &entry("/etc/ssh/sshd", EntryKind::File)), "    sshd  12B\n");
        assert_eq!(branch("/etc/", &entry("/etc/x", EntryKind::File)), "  x  12B\n");
    }
}
