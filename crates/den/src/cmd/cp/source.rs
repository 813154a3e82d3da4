//! Where a copy comes from: a computer as it runs, or a state of one that is kept.
//!
//! ```text
//! web:/path          its agent answers
//! web@12:/path       the daemon looks into the state; nothing is started
//! ```

use den_api::{
    EntryKind,
    client::{ByteStream, FileHead},
};

use super::{Copy, place};
use crate::{cmd::state::StateArg, report::Trouble};

/// Links that are followed before they are taken for a circle, as path_resolution(7) has it.
const LINKS_MAX: usize = 40;

/// What the source is.
pub struct Look {
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Whether it is a file that goes best as plain bytes: no holes worth keeping.
    pub is_plain_file: bool,
    /// Where a link points that is not followed; only told of a kept state.
    pub link: Option<String>,
    /// What the bytes of a file of a kept state come with.
    head: Option<FileHead>,
    /// Where it is once links were followed.
    path: Vec<u8>,
}

impl Copy<'_> {
    /// What is at `path` of a source `NAME[@STATE]`.
    pub async fn look(&self, name: &str, path: &[u8], follow: bool) -> Result<Look, Trouble> {
        let source = StateArg::parse(name)?;
        let Some(state) = &source.state else {
            let stat = self.client.stat(name, path, follow).await?;
            return Ok(Look {
                is_directory: stat.kind == "directory",
                is_plain_file: stat.kind == "file" && stat.allocated + (64 << 10) >= stat.size,
                link: None,
                head: None,
                path: path.to_owned(),
            });
        };
        let mut at = path.to_owned();
        for _ in 0..LINKS_MAX {
            let meta = self.client.state_stat(&source.name, state, &at).await?.meta;
            if meta.kind == EntryKind::Symlink
                && let Some(target) = &meta.target
            {
                if !follow {
                    let link = Some(target.clone());
                    return Ok(Look { is_directory: false, is_plain_file: false, link, head: None, path: at });
                }
                at = if target.starts_with('/') {
                    target.clone().into_bytes()
                } else {
                    place::join(place::split(place::trim(&at)).0, target.as_bytes())
                };
                continue;
            }
            let head = FileHead { size: meta.size, mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime };
            return Ok(Look {
                is_directory: meta.kind == EntryKind::Directory,
                is_plain_file: meta.kind == EntryKind::File,
                link: None,
                head: Some(head),
                path: at,
            });
        }
        let shown = String::from_utf8_lossy(path).into_owned();
        Err(Trouble::new(format_args!("`{name}:{shown}` leads through more than {LINKS_MAX} links")))
    }

    /// The bytes of a file that was looked at.
    pub async fn read(&self, name: &str, look: &Look) -> Result<(FileHead, ByteStream), Trouble> {
        let source = StateArg::parse(name)?;
        match (&source.state, look.head) {
            (Some(state), Some(head)) => Ok((head, self.client.state_file(&source.name, state, &look.path).await?)),
            _ => Ok(self.client.read_file(name, &look.path).await?),
        }
    }

    /// A tree as tar. Names in it begin with the path's last component; one that ends in `/.` has
    /// them begin with `.`.
    pub async fn pack(&self, name: &str, path: &[u8], follow: bool) -> Result<ByteStream, Trouble> {
        let source = StateArg::parse(name)?;
        match &source.state {
            Some(state) => Ok(self.client.state_tar(&source.name, state, path).await?),
            None => Ok(self.client.tar_out(name, path, follow).await?),
        }
    }
}

/// Refuses to write into what is kept as it was.
pub fn need_writable(name: &str) -> Result<(), Trouble> {
    let target = StateArg::parse(name)?;
    match target.state {
        Some(state) => Err(Trouble::usage(format_args!("`{name}` is a kept state, which nothing is written into"))
            .hint(format_args!("a computer that starts from it: den fork {}@{state}", target.name))),
        None => Ok(()),
    }
}
