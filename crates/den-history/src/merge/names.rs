//! What is known of a file by its name: whether it is merged at all, and how.
//!
//! Sources: dpkg(1) and deb822(5) for `status` and its like, passwd(5), group(5), shadow(5), apk's
//! `installed` (APKINDEX fields), and the manuals of the package managers whose lock files are here.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How two versions of a file are brought together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// By line, where it is text.
    Lines,
    /// Paragraphs divided by empty lines, each known by these fields.
    Stanzas {
        /// Names of fields with their colon.
        key: &'static [&'static str],
    },
    /// Lines, each known by what is before the first colon; in these columns numbers that no two may
    /// share.
    Colons {
        /// Counted from 0.
        unique: &'static [usize],
    },
    /// Both have only added at the end: one after the other; else by line.
    Log,
    /// Made from other files, and made anew when those are newer: ours stays.
    Derived,
    /// A package database with no way to merge it.
    Packages,
    /// What a package manager has resolved as a whole.
    Lock,
    /// A database or the like: never by line.
    Opaque,
}

/// Files that are each computer's own: what is written anew when a fork is made, and what Den and the
/// kernel put over the disk.
const OWN: [&str; 15] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/mtab",
    "/etc/.pwd.lock",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/urandom/random-seed",
    "/var/lib/random-seed",
    "/dev",
    "/proc",
    "/sys",
    "/run",
];

const LOCKS: [&str; 18] = [
    "Cargo.lock",
    "Gemfile.lock",
    "Pipfile.lock",
    "bun.lock",
    "bun.lockb",
    "composer.lock",
    "deno.lock",
    "flake.lock",
    "gradle.lockfile",
    "mix.lock",
    "npm-shrinkwrap.json",
    "package-lock.json",
    "pdm.lock",
    "pnpm-lock.yaml",
    "poetry.lock",
    "pubspec.lock",
    "uv.lock",
    "yarn.lock",
];

const DERIVED: [&str; 10] = [
    "/etc/ld.so.cache",
    "/var/cache/apt/pkgcache.bin",
    "/var/cache/apt/srcpkgcache.bin",
    "/var/cache/debconf/config.dat-old",
    "/var/cache/debconf/templates.dat-old",
    "/var/cache/ldconfig/aux-cache",
    "/var/lib/dpkg/diversions-old",
    "/var/lib/dpkg/status-old",
    "/var/lib/dpkg/statoverride-old",
    "/var/lib/dpkg/available-old",
];

/// Whether `path` stays as it is in ours, whatever became of it in theirs.
pub(super) fn is_own(path: &Path) -> bool {
    if OWN.iter().any(|own| path.starts_with(own)) {
        return true;
    }
    let name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
    match path.parent() {
        Some(parent) if parent == Path::new("/etc/ssh") => name.starts_with(b"ssh_host_") && contains(name, b"_key"),
        Some(parent) if parent == Path::new("/") => name.starts_with(b".den-merge-"),
        _ => false,
    }
}

/// Of a computer's own: what nobody inside writes on purpose.
const UNTOLD: [&str; 9] = [
    "/etc/.pwd.lock",
    "/etc/mtab",
    "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed",
    "/var/lib/random-seed",
    "/dev",
    "/proc",
    "/sys",
    "/run",
];

/// Whether it is worth a word that a change of `path` is not merged.
pub(super) fn is_told(path: &Path) -> bool {
    let left_by_a_merge = path.as_os_str().as_bytes().starts_with(b"/.den-merge-");
    is_own(path) && !left_by_a_merge && !UNTOLD.iter().any(|untold| path.starts_with(untold))
}

/// How two versions of the file at `path` are brought together.
pub(super) fn how(path: &Path) -> How {
    let name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
    let Some(text) = path.to_str() else { return by_name(name) };
    if DERIVED.contains(&text) {
        return How::Derived;
    }
    match text {
        "/var/lib/dpkg/status" | "/var/lib/dpkg/available" | "/var/lib/apt/extended_states" => {
            return How::Stanzas { key: &["Package:", "Architecture:"] };
        }
        "/var/cache/debconf/config.dat" | "/var/cache/debconf/templates.dat" | "/var/cache/debconf/passwords.dat" => {
            return How::Stanzas { key: &["Name:"] };
        }
        "/lib/apk/db/installed" | "/usr/lib/apk/db/installed" => return How::Stanzas { key: &["P:"] },
        "/etc/passwd" | "/etc/group" | "/etc/passwd-" | "/etc/group-" => return How::Colons { unique: &[2] },
        "/etc/shadow" | "/etc/gshadow" | "/etc/shadow-" | "/etc/gshadow-" => return How::Colons { unique: &[] },
        "/etc/subuid" | "/etc/subgid" | "/etc/subuid-" | "/etc/subgid-" => return How::Colons { unique: &[1] },
        _ => {}
    }
    let databases = ["/var/lib/dpkg", "/var/lib/rpm", "/usr/lib/sysimage/rpm", "/var/lib/pacman", "/lib/apk/db"];
    if databases.iter().any(|below| path.starts_with(below)) {
        return How::Packages;
    }
    if path.starts_with("/var/log") {
        return How::Log;
    }
    by_name(name)
}

fn by_name(name: &[u8]) -> How {
    if LOCKS.iter().any(|lock| lock.as_bytes() == name) {
        return How::Lock;
    }
    let ends = [&b".db"[..], b".db-wal", b".db-shm", b".db-journal", b".mdb", b".ldb"];
    if contains(name, b".sqlite") || ends.iter().any(|end| name.ends_with(end)) { How::Opaque } else { How::Lines }
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computers_own_files_are_left() {
        for own in ["/etc/hostname", "/etc/ssh/ssh_host_ed25519_key.pub", "/run/x/y", "/.den-merge-7"] {
            assert!(is_own(Path::new(own)), "{own}");
        }
        assert!(is_told(Path::new("/etc/hosts")) && is_told(Path::new("/etc/ssh/ssh_host_rsa_key")));
        assert!(!is_told(Path::new("/run/x")) && !is_told(Path::new("/.den-merge-7")) && !is_told(Path::new("/srv")));
        for other in ["/etc/hostname.bak", "/etc/ssh/sshd_config", "/srv/etc/hostname", "/running", "/etc"] {
            assert!(!is_own(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn files_are_known_by_name() {
        let check = |path: &str, expected: How| assert_eq!(how(Path::new(path)), expected, "{path}");
        check("/srv/app/Cargo.lock", How::Lock);
        check("/srv/app/cargo.locked", How::Lines);
        check("/srv/x.sqlite3", How::Opaque);
        check("/srv/x.sqlite-wal", How::Opaque);
        check("/srv/x.db", How::Opaque);
        check("/var/lib/dpkg/info/nginx.list", How::Packages);
        check("/var/lib/dpkg/status", How::Stanzas { key: &["Package:", "Architecture:"] });
        check("/etc/passwd", How::Colons { unique: &[2] });
        check("/var/log/apt/history.log", How::Log);
        check("/etc/ld.so.cache", How::Derived);
        check("/etc/fstab", How::Lines);
    }
}
