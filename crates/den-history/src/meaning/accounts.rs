//! Users and groups: passwd(5), group(5); shadow(5) only as changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use den_api::FactChange;

use super::{Fact, Facts, Pair, bytes, compare, names};
use crate::view::{View, show};

/// The largest of these files that is read, in bytes.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// The users and groups that are taken.
const LINES_MAX: usize = 100_000;

pub(super) fn users(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    if !pair.touches_any(&["/etc/passwd", "/etc/shadow"]) {
        return;
    }
    let [a, b] = pair.views().map(|view| {
        let passwd = bytes(view, Path::new("/etc/passwd"), FILE_BYTES_MAX).unwrap_or_default();
        let shadow = bytes(view, Path::new("/etc/shadow"), FILE_BYTES_MAX).unwrap_or_default();
        passwd_facts(&passwd, &shadow)
    });
    compare("user", &a, &b, Some("password changed"), changes);
}

pub(super) fn groups(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    if !pair.touches("/etc/group") {
        return;
    }
    let [a, b] =
        pair.views().map(|view| group_facts(&bytes(view, Path::new("/etc/group"), FILE_BYTES_MAX).unwrap_or_default()));
    compare("group", &a, &b, Some("password changed"), changes);
}

/// Home directories of a state's users, and what else lies in /home, each once.
pub(super) fn homes(view: &View) -> Vec<PathBuf> {
    let passwd = bytes(view, Path::new("/etc/passwd"), FILE_BYTES_MAX).unwrap_or_default();
    let mut homes: Vec<PathBuf> = fields(&passwd).filter_map(|fields| home(&fields)).collect();
    homes.push(PathBuf::from("/root"));
    homes.extend(names(view, Path::new("/home")).into_iter().map(|(home, _)| home));
    homes.sort_unstable();
    homes.dedup();
    homes
}

fn home(fields: &[&[u8]]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let home = PathBuf::from(std::ffi::OsStr::from_bytes(fields.get(5)?));
    // `/` and `/nonexistent` of system users hold no settings of theirs.
    (home.is_absolute() && home.components().count() > 2 || home == Path::new("/root")).then_some(home)
}

fn fields(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    super::lines(text).take(LINES_MAX).map(|line| line.splitn(8, |&b| b == b':').collect())
}

pub(super) fn passwd_facts(passwd: &[u8], shadow: &[u8]) -> Facts {
    let mut secrets: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for line in super::lines(shadow).take(LINES_MAX) {
        let name = line.split(|&b| b == b':').next().unwrap_or_default();
        secrets.insert(name, line);
    }
    let mut facts = Facts::default();
    for user in fields(passwd) {
        let [name, password, uid, gid, _, home, shell, ..] = user[..] else { continue };
        let shell = if shell.is_empty() { b"/bin/sh" } else { shell };
        let text = format!("uid {}, gid {}, home {}, shell {}", show(uid), show(gid), show(home), show(shell));
        let secret = [password, b"\n", secrets.get(name).copied().unwrap_or_default()].concat();
        facts.put(&show(name), Fact::new(text).and_unseen(&secret));
    }
    facts
}

pub(super) fn group_facts(group: &[u8]) -> Facts {
    let mut facts = Facts::default();
    for line in fields(group) {
        let [name, password, gid, members, ..] = line[..] else { continue };
        let mut members: Vec<String> =
            members.split(|&b| b == b',').filter(|member| !member.is_empty()).map(show).collect();
        members.sort();
        let text = match members.len() {
            0 => format!("gid {}", show(gid)),
            _ => format!("gid {}, members {}", show(gid), members.join(" ")),
        };
        // What of a long list is not shown counts too.
        let hidden = [password, b"\n", members.join(" ").as_bytes()].concat();
        facts.put(&show(name), Fact::new(text).and_unseen(&hidden));
    }
    facts
}
