//! Where programs get their surroundings from: variables of /etc/environment by name, and of shells'
//! files only that they changed.

use std::path::{Path, PathBuf};

use den_api::{EntryKind, FactChange};

use super::accounts::homes;
use super::{Fact, Facts, Pair, SETTINGS_BYTES_MAX, bytes, compare, lines, names, whole};
use crate::view::show;

/// Files of `NAME=value` lines whose values are shown.
const VARIABLES: [&str; 3] = ["/etc/environment", "/etc/default/locale", "/etc/locale.conf"];
const FILES: [&str; 8] = [
    "/etc/profile",
    "/etc/bash.bashrc",
    "/etc/bashrc",
    "/etc/zshenv",
    "/etc/zsh/zshenv",
    "/etc/zsh/zshrc",
    "/etc/security/pam_env.conf",
    "/etc/timezone",
];
const FOLDERS: [&str; 2] = ["/etc/profile.d", "/etc/environment.d"];
const HOME_FILES: [&str; 10] = [
    ".profile",
    ".bash_profile",
    ".bash_login",
    ".bashrc",
    ".bash_aliases",
    ".zshenv",
    ".zprofile",
    ".zshrc",
    ".config/fish/config.fish",
    ".pam_environment",
];
/// The homes that are looked at.
const HOMES_MAX: usize = 1_000;
/// The variables of one file that are taken.
const VARIABLES_MAX: usize = 10_000;

pub(super) fn changes(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    for path in VARIABLES.into_iter().filter(|path| pair.touches(path)) {
        let [a, b] = pair.views().map(|view| {
            let text = bytes(view, Path::new(path), SETTINGS_BYTES_MAX).unwrap_or_default();
            variables(&text, if path == VARIABLES[0] { "" } else { path })
        });
        compare("environment", &a, &b, None, changes);
    }
    let mut files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    for view in pair.views() {
        for folder in FOLDERS.into_iter().filter(|folder| pair.touches(folder)) {
            let entries = names(view, Path::new(folder)).into_iter();
            files.extend(entries.filter(|(_, kind)| *kind != EntryKind::Directory).map(|(path, _)| path));
        }
        for home in homes(view).into_iter().take(HOMES_MAX) {
            if pair.touched.by(&home) {
                files.extend(HOME_FILES.iter().map(|name| home.join(name)));
            }
        }
    }
    files.sort_unstable();
    files.dedup();
    files.retain(|path| pair.touches(path));
    let [a, b] = pair.views().map(|view| {
        let mut facts = Facts::default();
        for path in &files {
            if let Some(text) = bytes(view, path, SETTINGS_BYTES_MAX) {
                facts.put(&whole(path), Fact::unseen(&text));
            }
        }
        facts
    });
    compare("environment", &a, &b, None, changes);
}

/// `NAME=value` lines, as pam_env(8) reads them; the last of a name holds.
pub(super) fn variables(text: &[u8], of: &str) -> Facts {
    let mut facts = Facts::default();
    for line in lines(text).take(VARIABLES_MAX) {
        let line = line.strip_prefix(b"export ").unwrap_or(line);
        let Some(equals) = line.iter().position(|&b| b == b'=') else { continue };
        let (name, value) = (line[..equals].trim_ascii(), line[equals + 1..].trim_ascii());
        let value = match value {
            [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
            value => value,
        };
        let name = if of.is_empty() { show(name) } else { format!("{} ({of})", show(name)) };
        // What is cut off counts too.
        facts.0.insert(name, Fact::new(show(value)).and_unseen(value));
    }
    facts
}
