//! What starts by itself: units of systemd, scripts of init.d, tables of cron.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use den_api::{EntryKind, FactChange};

use super::{Fact, Facts, Pair, SETTINGS_BYTES_MAX, bytes, compare, last, lines, names, whole};
use crate::view::{View, show};

const UNIT_FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/etc/systemd/user", "/usr/lib/systemd/system", "/usr/local/lib/systemd/system"];
const UNIT_KINDS: [&str; 6] = [".service", ".socket", ".timer", ".path", ".mount", ".target"];
const RUN_LEVELS: [char; 8] = ['S', '0', '1', '2', '3', '4', '5', '6'];
/// The units and scripts that are taken.
const UNITS_MAX: usize = 20_000;
/// The tables of cron that are read.
const TABLES_MAX: usize = 2_000;

pub(super) fn services(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    let unit_folders = UNIT_FOLDERS.iter().chain(&["/lib/systemd/system"]);
    if unit_folders.into_iter().any(|folder| pair.touches(folder)) {
        let [a, b] = pair.views().map(|view| units(view, pair));
        compare("service", &a, &b, Some("its unit file changed"), changes);
    }
    let levels = RUN_LEVELS.map(|level| format!("/etc/rc{level}.d"));
    if pair.touches("/etc/init.d") || levels.iter().any(|level| pair.touches(level)) {
        let [a, b] = pair.views().map(|view| scripts(view, pair));
        compare("service", &a, &b, Some("its script changed"), changes);
    }
}

/// Units with where they are enabled; of changed ones also whether the file is the same.
fn units(view: &View, pair: &Pair<'_>) -> Facts {
    let is_unit = |name: &str| UNIT_KINDS.iter().any(|kind| name.ends_with(kind));
    // By name: what wants it, or that it is masked.
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut digests: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    // /lib is a link to usr/lib, or it is not and has units of its own.
    let split = view.follow(Path::new("/lib")).is_ok_and(|real| real == Path::new("/lib"));
    for folder in UNIT_FOLDERS.iter().chain(split.then_some(&"/lib/systemd/system")) {
        for (path, kind) in names(view, Path::new(folder)) {
            if known.len() >= UNITS_MAX {
                break;
            }
            let name = last(&path);
            let wants = name.strip_suffix(".wants").or_else(|| name.strip_suffix(".requires"));
            match (kind, wants) {
                (EntryKind::Directory, Some(target)) if folder.starts_with("/etc/") => {
                    for (wanted, _) in names(view, &path).into_iter().take(UNITS_MAX) {
                        known.entry(last(&wanted)).or_default().insert(target.to_owned());
                    }
                }
                (EntryKind::Directory, None) if name.ends_with(".d") && pair.touches(&path) => {
                    let unit = name.trim_end_matches(".d").to_owned();
                    for (drop_in, _) in names(view, &path).into_iter().take(UNITS_MAX) {
                        let text = bytes(view, &drop_in, SETTINGS_BYTES_MAX).unwrap_or_default();
                        let digest = blake3::hash(&text);
                        digests.entry(unit.clone()).or_default().extend_from_slice(digest.as_bytes());
                    }
                }
                (EntryKind::Symlink, _) if is_unit(&name) && folder.starts_with("/etc/") => {
                    let target = view.lstat(&path).ok().flatten().and_then(|meta| meta.target).unwrap_or_default();
                    let what = if target == b"/dev/null" {
                        "masked".to_owned()
                    } else {
                        format!("as {}", last(Path::new(&*String::from_utf8_lossy(&target))))
                    };
                    known.entry(name).or_default().insert(what);
                }
                (EntryKind::File, _) if is_unit(&name) => {
                    if pair.touches(&path) {
                        let text = bytes(view, &path, SETTINGS_BYTES_MAX).unwrap_or_default();
                        digests.entry(name.clone()).or_default().extend_from_slice(blake3::hash(&text).as_bytes());
                    }
                    known.entry(name).or_default();
                }
                _ => {}
            }
        }
    }
    let mut facts = Facts::default();
    for (name, enabled) in known {
        let text = match enabled.len() {
            0 => "not enabled".to_owned(),
            _ if enabled.contains("masked") => "masked".to_owned(),
            _ => format!("enabled ({})", enabled.into_iter().collect::<Vec<_>>().join(", ")),
        };
        facts.put(&name, Fact::new(text).and_unseen(digests.get(&name).map_or(&[], Vec::as_slice)));
    }
    facts
}

/// Scripts with the levels in which they start.
fn scripts(view: &View, pair: &Pair<'_>) -> Facts {
    let mut starts: BTreeMap<String, String> = BTreeMap::new();
    for level in RUN_LEVELS {
        for (path, _) in names(view, Path::new(&format!("/etc/rc{level}.d"))).into_iter().take(UNITS_MAX) {
            let name = last(&path);
            // S01name starts, K01name stops.
            let script = name.strip_prefix('S').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
            if let Some(script) = script.filter(|script| !script.is_empty()) {
                starts.entry(script.to_owned()).or_default().push(level);
            }
        }
    }
    let mut facts = Facts::default();
    for (path, _) in names(view, Path::new("/etc/init.d")).into_iter().take(UNITS_MAX) {
        let name = last(&path);
        let text = match starts.remove(&name) {
            Some(levels) => format!("starts in {levels}"),
            None => "not enabled".to_owned(),
        };
        let script = if pair.touches(&path) { bytes(view, &path, SETTINGS_BYTES_MAX) } else { None };
        facts.put(&format!("{name} (init.d)"), Fact::new(text).and_unseen(&script.unwrap_or_default()));
    }
    for (name, levels) in starts {
        facts.put(&format!("{name} (init.d)"), Fact::new(format!("starts in {levels}, its script is not there")));
    }
    facts
}

/// Tables with their lines, and scripts that run each hour, day, week or month.
pub(super) fn cron(pair: &Pair<'_>, changes: &mut Vec<FactChange>) {
    let table_folders = ["/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron"];
    let script_folders = ["/etc/cron.hourly", "/etc/cron.daily", "/etc/cron.weekly", "/etc/cron.monthly"];
    let mut touched = pair.touches("/etc/crontab");
    for folder in table_folders.iter().chain(&script_folders) {
        touched |= pair.touches(folder);
    }
    if !touched {
        return;
    }
    let [a, b] = pair.views().map(|view| {
        let mut facts = Facts::default();
        let of = |folder: &str| {
            let entries = names(view, Path::new(folder)).into_iter().take(TABLES_MAX);
            entries.filter(|(path, kind)| *kind != EntryKind::Directory && pair.touches(path)).map(|(path, _)| path)
        };
        let tables = table_folders.iter().flat_map(|folder| of(folder)).chain(["/etc/crontab".into()]);
        for path in tables {
            if let Some(table) = bytes(view, &path, SETTINGS_BYTES_MAX) {
                facts.put(&whole(&path), table_fact(&table));
            }
        }
        for path in script_folders.iter().flat_map(|folder| of(folder)) {
            if let Some(script) = bytes(view, &path, SETTINGS_BYTES_MAX) {
                facts.put(&whole(&path), Fact::unseen(&script));
            }
        }
        facts
    });
    compare("cron", &a, &b, Some("changed"), changes);
}

/// The jobs of a table, which are not settings of variables; comments are none of its meaning.
pub(super) fn table_fact(table: &[u8]) -> Fact {
    let all: Vec<&[u8]> = lines(table).collect();
    let is_job = |line: &&&[u8]| matches!(line[0], b'0'..=b'9' | b'*' | b'@');
    let jobs: Vec<String> = all.iter().filter(is_job).map(|line| show(line)).collect();
    let text = match jobs.len() {
        0 => "no jobs".to_owned(),
        _ => jobs.join("; "),
    };
    Fact::new(text).and_unseen(&all.concat())
}
