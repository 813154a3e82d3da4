//! Packages of Python and of Node.js, by the folders that their installers leave.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use den_api::{EntryKind, FactChange};

use super::accounts::homes;
use super::{Fact, Facts, Pair, SETTINGS_BYTES_MAX, bytes, compare, last, names, whole};
use crate::view::{View, show};

/// The places that are looked through, of each kind.
const ROOTS_MAX: usize = 1_000;
/// The users' homes that are looked through.
const HOMES_MAX: usize = 1_000;
/// The heads of a METADATA file that are looked through.
const METADATA_LINES_MAX: usize = 1_000;

pub(super) fn pip(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    for root in roots(pair, python_roots, &[b"site-packages", b"dist-packages"]) {
        // What is of the same name on both sides is the same version, for its name says it.
        let [a, b] = pair.views().map(|view| python_entries(view, &root));
        let both: BTreeSet<&PathBuf> = a.intersection(&b).collect();
        let prefix = python_prefix(&root);
        let [a, b] = [(pair.a, &a), (pair.b, &b)].map(|(view, entries)| {
            let mut facts = Facts::default();
            for entry in entries.iter().filter(|entry| !both.contains(entry) || pair.touched.by(entry)) {
                if let Some((name, version)) = distribution(view, entry) {
                    let name = if prefix.is_empty() { name } else { format!("{name} ({prefix})") };
                    facts.put(&name, Fact::new(version));
                }
            }
            facts
        });
        compare("pip", &a, &b, None, changes);
    }
}

/// The folders in which packages of Python lie in the usual places of a state.
fn python_roots(view: &View) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    let mut bases: Vec<PathBuf> = vec!["/usr/lib".into(), "/usr/local/lib".into()];
    bases.extend(homes(view).into_iter().take(HOMES_MAX).map(|home| home.join(".local/lib")));
    for base in bases {
        for (python, _) in names(view, &base) {
            if last(&python).starts_with("python") {
                roots.push(python.join("site-packages"));
                roots.push(python.join("dist-packages"));
            }
        }
    }
    roots
}

/// The usual folders and those of changed paths that differ; `components` are what they are called.
fn roots(pair: &Pair<'_>, usual: fn(&View) -> Vec<PathBuf>, components: &[&[u8]]) -> BTreeSet<PathBuf> {
    let mut roots: BTreeSet<PathBuf> = BTreeSet::new();
    for view in pair.views() {
        roots.extend(usual(view).into_iter().filter(|root| pair.touches(root)));
    }
    for path in pair.touched.paths() {
        let at = path.components().position(|component| match component {
            Component::Normal(name) => components.contains(&name.as_bytes()),
            _ => false,
        });
        if let Some(at) = at {
            roots.insert(path.components().take(at + 1).collect());
        }
        if roots.len() >= ROOTS_MAX {
            break;
        }
    }
    roots
}

fn python_entries(view: &View, root: &Path) -> BTreeSet<PathBuf> {
    let is_distribution = |name: &OsStr| {
        let name = name.as_bytes();
        name.ends_with(b".dist-info") || name.ends_with(b".egg-info")
    };
    let entries = names(view, root).into_iter().map(|(path, _)| path);
    entries.filter(|path| path.file_name().is_some_and(is_distribution)).collect()
}

/// Where packages go to, said for those that are not the whole system's: `/srv/app/venv`.
fn python_prefix(root: &Path) -> String {
    let prefix = match root.parent().and_then(Path::parent) {
        Some(lib) if lib.file_name() == Some(OsStr::new("lib")) => lib.parent().unwrap_or(lib),
        _ => root,
    };
    match prefix.as_os_str().as_bytes() {
        b"/usr" | b"/usr/local" => String::new(),
        prefix => show(prefix),
    }
}

fn distribution(view: &View, entry: &Path) -> Option<(String, String)> {
    let heads = ["METADATA", "PKG-INFO", ""].into_iter().find_map(|name| {
        let path = if name.is_empty() { entry.to_owned() } else { entry.join(name) };
        bytes(view, &path, SETTINGS_BYTES_MAX)
    });
    heads.as_deref().and_then(metadata).or_else(|| {
        // A folder without its file still says in its name what it is of.
        let name = last(entry);
        let (name, version) = name.rsplit_once('.')?.0.split_once('-')?;
        Some((name.to_owned(), version.to_owned()))
    })
}

/// `Name` and `Version` among the heads of core metadata, which end at the first empty line.
pub(super) fn metadata(text: &[u8]) -> Option<(String, String)> {
    let (mut name, mut version) = (None, None);
    for line in text.split(|&b| b == b'\n').take(METADATA_LINES_MAX) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        let value = |key: &[u8]| {
            let value = line.strip_prefix(key)?.strip_prefix(b":")?;
            Some(show(value.trim_ascii()))
        };
        name = name.or_else(|| value(b"Name"));
        version = version.or_else(|| value(b"Version"));
    }
    name.filter(|name| !name.is_empty()).zip(version)
}

pub(super) fn npm(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    for root in roots(pair, node_roots, &[b"node_modules"]) {
        // Of a project rather than of the system: a lock file and a diff say more of it.
        if root.parent().and_then(Path::file_name) != Some(OsStr::new("lib")) {
            continue;
        }
        let [a, b] = pair.views().map(|view| {
            let mut facts = Facts::default();
            let mut entries = names(view, &root);
            let scopes: Vec<PathBuf> =
                entries.iter().filter(|(path, _)| last(path).starts_with('@')).map(|(path, _)| path.clone()).collect();
            scopes.iter().for_each(|scope| entries.extend(names(view, scope)));
            let prefix = match root.as_os_str().as_bytes() {
                b"/usr/lib/node_modules" | b"/usr/local/lib/node_modules" => String::new(),
                _ => format!(" ({})", whole(root.parent().and_then(Path::parent).unwrap_or(&root))),
            };
            for (path, kind) in entries {
                let differs = pair.touches(&path);
                if !differs || !matches!(kind, EntryKind::Directory | EntryKind::Symlink) {
                    continue;
                }
                let text = bytes(view, &path.join("package.json"), SETTINGS_BYTES_MAX);
                if let Some((name, version)) = text.as_deref().and_then(package_json) {
                    facts.put(&format!("{name}{prefix}"), Fact::new(version));
                }
            }
            facts
        });
        compare("npm", &a, &b, None, changes);
    }
}

fn node_roots(view: &View) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = vec!["/usr/lib/node_modules".into(), "/usr/local/lib/node_modules".into()];
    for home in homes(view).into_iter().take(HOMES_MAX) {
        for (version, _) in names(view, &home.join(".nvm/versions/node")) {
            roots.push(version.join("lib/node_modules"));
        }
    }
    roots
}

/// `name` and `version` of a package.json.
pub(super) fn package_json(text: &[u8]) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_slice(text).ok()?;
    let field = |key: &str| value.get(key).and_then(serde_json::Value::as_str);
    Some((field("name").filter(|name| !name.is_empty())?.to_owned(), field("version").unwrap_or("?").to_owned()))
}
