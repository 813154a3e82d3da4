//! Where this host's apt gets its packages, so that a build on a closed network uses the same place.
//!
//! ```text
//! /etc/apt/sources.list{,.d/*.list}   deb [options] URI SUITE COMPONENT…
//! /etc/apt/sources.list.d/*.sources   Types: deb · URIs: … · Suites: … · Components: …
//! ```
//!
//! Only the sources of the host's own distribution count: those with a suite named after its
//! release, such as `bookworm`, `bookworm-updates`, `bookworm-security`. For another release of the
//! same distribution the suites are renamed. Source: sources.list(5).

use std::{fs, path::Path};

/// One `deb` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub uri: String,
    pub suite: String,
    pub components: Vec<String>,
    pub signed_by: Option<String>,
}

impl Source {
    /// As a line of sources.list.
    pub fn line(&self) -> String {
        let options = self.signed_by.as_ref().map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
        format!("deb {options}{} {} {}", self.uri, self.suite, self.components.join(" "))
    }
}

/// `ID` and `VERSION_CODENAME` of an os-release file.
pub(crate) fn release_of(os_release: &str) -> (Option<String>, Option<String>) {
    let value = |key: &str| {
        os_release.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix('=')?;
            Some(value.trim_matches(['"', '\'']).to_owned())
        })
    };
    (value("ID"), value("VERSION_CODENAME"))
}

/// The host's sources for `suite` of `distribution`; empty when the host runs another distribution.
pub(crate) fn host_sources(etc: &Path, distribution: &str, suite: &str) -> Vec<Source> {
    let os_release = fs::read_to_string(etc.join("os-release")).unwrap_or_default();
    let (Some(id), Some(codename)) = release_of(&os_release) else { return Vec::new() };
    if id != distribution {
        return Vec::new();
    }
    let mut sources = Vec::new();
    let mut files = vec![etc.join("apt/sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("apt/sources.list.d")) {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(stanzas(&text)),
            Some("list") => sources.extend(text.lines().filter_map(one_line)),
            _ => {}
        }
    }
    select(sources, &codename, suite)
}

/// Those of the release `codename`, made to be of `suite`.
fn select(sources: Vec<Source>, codename: &str, suite: &str) -> Vec<Source> {
    let mut selected: Vec<Source> = Vec::new();
    for mut source in sources {
        let Some(pocket) = source.suite.strip_prefix(codename) else { continue };
        if !matches!(pocket, "" | "-updates" | "-security" | "/updates") {
            continue;
        }
        source.suite = format!("{suite}{pocket}");
        if !selected.iter().any(|other| other.uri == source.uri && other.suite == source.suite) {
            selected.push(source);
        }
    }
    // The release itself first: bootstrapping tools take the first for the base system.
    selected.sort_by_key(|source| source.suite != suite);
    match selected.first() {
        Some(first) if first.suite == suite => selected,
        _ => Vec::new(),
    }
}

/// `deb [signed-by=…] URI SUITE COMPONENT…`.
fn one_line(line: &str) -> Option<Source> {
    let mut rest = line.split('#').next()?.trim().strip_prefix("deb")?.trim_start();
    if !line.trim_start().starts_with("deb ") && !line.trim_start().starts_with("deb\t") {
        return None;
    }
    let mut signed_by = None;
    if let Some(after) = rest.strip_prefix('[') {
        let (options, tail) = after.split_once(']')?;
        let value = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        signed_by = value.map(str::to_owned);
        rest = tail;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source { uri, suite, components: words.collect(), signed_by })
}

/// Every pair of URI and suite in a file of deb822 stanzas.
fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let without_comments: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{}\n", line.trim_end())).collect();
    for stanza in without_comments.split("\n\n") {
        let value = |key: &str| -> Vec<String> {
            let mut words = Vec::new();
            let mut inside = false;
            for line in stanza.lines() {
                if line.starts_with([' ', '\t']) {
                    if inside {
                        words.extend(line.split_whitespace().map(str::to_owned));
                    }
                    continue;
                }
                let field = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case(key));
                inside = field.is_some();
                words.extend(field.iter().flat_map(|(_, value)| value.split_whitespace()).map(str::to_owned));
            }
            words
        };
        if !value("Types").iter().any(|kind| kind == "deb") || value("Enabled").first().is_some_and(|e| e == "no") {
            continue;
        }
        // A key written out in the file itself has no path to name.
        let signed_by = value("Signed-By").into_iter().next().filter(|path| path.starts_with('/'));
        for uri in value("URIs") {
            for suite in value("Suites") {
                let components = value("Components");
                sources.push(Source { uri: uri.clone(), suite, components, signed_by: signed_by.clone() });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
         Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://mirror.test/debian-security\n\
         Suites: bookworm-security\nComponents: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.test\n\
         Suites: bookworm\n\nTypes: deb\nURIs: http://other.test\nSuites: nodistro\nComponents: main\n";

    #[test]
    fn stanzas_and_lines_are_read() {
        let lines: Vec<_> = select(stanzas(DEB822), "bookworm", "bookworm").iter().map(Source::line).collect();
        assert_eq!(
            lines,
            [
                "deb [signed-by=/k.gpg] http://mirror.test/debian bookworm main",
                "deb [signed-by=/k.gpg] http://mirror.test/debian bookworm-updates main",
                "deb http://mirror.test/debian-security bookworm-security main",
            ]
        );
        let line = one_line("deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian trixie main contrib # x");
        assert_eq!(line.unwrap().line(), "deb [signed-by=/k.gpg] http://mirror.test/debian trixie main contrib");
        assert_eq!(one_line("deb-src http://mirror.test/debian trixie main"), None);
        assert_eq!(one_line("# deb http://mirror.test/debian trixie main"), None);
    }

    #[test]
    fn another_release_of_the_same_distribution_is_renamed() {
        let suites: Vec<_> =
            select(stanzas(DEB822), "bookworm", "trixie").into_iter().map(|source| source.suite).collect();
        assert_eq!(suites, ["trixie", "trixie-updates", "trixie-security"]);
    }

    #[test]
    fn other_peoples_sources_are_left_out() {
        assert!(select(stanzas(DEB822), "trixie", "trixie").is_empty());
    }
}
