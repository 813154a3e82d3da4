//! Packages of dpkg: the one database, and the folder that images without dpkg itself have.

use std::collections::BTreeMap;
use std::path::Path;

use den_api::{EntryKind, FactChange};

use super::{Fact, Facts, Pair, bytes, compare, names};
use crate::view::View;

const STATUS: &str = "/var/lib/dpkg/status";
const STATUS_FOLDER: &str = "/var/lib/dpkg/status.d";
/// The largest database that is read, in bytes: 100,000 packages.
const STATUS_BYTES_MAX: u64 = 128 << 20;
/// The files of the folder that are read.
const FILES_MAX: usize = 10_000;

pub(super) fn changes(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    if !pair.touches_any(&[STATUS, STATUS_FOLDER]) {
        return;
    }
    let [a, b] = pair.views().map(collect);
    compare("dpkg", &a, &b, None, changes);
}

fn collect(view: &View) -> Facts {
    let mut facts = Facts::default();
    if let Some(status) = bytes(view, Path::new(STATUS), STATUS_BYTES_MAX) {
        parse(&status, &mut facts);
    }
    for (path, kind) in names(view, Path::new(STATUS_FOLDER)).into_iter().take(FILES_MAX) {
        let sums = path.extension().is_some_and(|extension| extension == "md5sums");
        if kind == EntryKind::File && !sums {
            parse(&bytes(view, &path, super::SETTINGS_BYTES_MAX).unwrap_or_default(), &mut facts);
        }
    }
    facts
}

/// Takes the stanzas of deb-control(5). One that has no `Status` is installed, as in the folder.
pub(super) fn parse(status: &[u8], facts: &mut Facts) {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut stanza = Stanza::default();
    for line in status.split(|&b| b == b'\n').chain([&b""[..]]) {
        if line.trim_ascii().is_empty() {
            if let Some((name, version)) = std::mem::take(&mut stanza).end() {
                versions.entry(name).or_default().push(version);
            }
        } else if let Some(colon) = line.iter().position(|&b| b == b':').filter(|_| !line[0].is_ascii_whitespace()) {
            let field = match &line[..colon] {
                b"Package" => &mut stanza.package,
                b"Version" => &mut stanza.version,
                b"Status" => &mut stanza.status,
                b"Architecture" => &mut stanza.architecture,
                _ => continue,
            };
            *field = String::from_utf8_lossy(line[colon + 1..].trim_ascii()).into_owned();
        }
    }
    for (name, mut versions) in versions {
        if versions.len() == 1 {
            // One architecture goes without saying.
            let version = versions[0].split('\0').next().unwrap_or_default().to_owned();
            facts.put(&name, Fact::new(version));
        } else {
            versions.sort();
            for version in versions {
                let (version, architecture) = version.split_once('\0').unwrap_or((&version, ""));
                facts.put(&name, Fact::new(format!("{version} ({architecture})")));
            }
        }
    }
}

#[derive(Default)]
struct Stanza {
    package: String,
    version: String,
    status: String,
    architecture: String,
}

impl Stanza {
    /// The name, and version and architecture with a NUL between; nothing of what is not there any more.
    fn end(self) -> Option<(String, String)> {
        if self.package.is_empty() {
            return None;
        }
        let state = self.status.split(' ').nth(2).unwrap_or("installed");
        let version = match state {
            "installed" => self.version,
            "not-installed" | "config-files" => return None,
            state => format!("{} ({state})", self.version),
        };
        Some((self.package, format!("{}\0{}", version.replace('\0', " "), self.architecture.replace('\0', " "))))
    }
}
