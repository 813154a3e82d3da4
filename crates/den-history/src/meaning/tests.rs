use std::path::{Path, PathBuf};
use std::process::Command;

use den_api::ChangeKind::{Added, Changed, Removed};
use proptest::prelude::*;

use super::*;

/// Two states over one layer.
struct Two {
    dir: tempfile::TempDir,
}

impl Two {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("den-meaning-").tempdir().expect("a folder");
        for name in ["a/data", "b/data", "layer"] {
            fs_err::create_dir_all(dir.path().join(name)).expect("a folder");
        }
        Self { dir }
    }

    fn below(&self, side: &str, path: &str) -> PathBuf {
        let side = if side == "layer" { "layer".to_owned() } else { format!("{side}/data") };
        let full = self.dir.path().join(side).join(path.trim_start_matches('/'));
        fs_err::create_dir_all(full.parent().expect("a parent")).expect("directories");
        full
    }

    fn write(&self, side: &str, path: &str, text: impl AsRef<[u8]>) {
        fs_err::write(self.below(side, path), text).expect("a file");
    }

    fn link(&self, side: &str, path: &str, target: &str) {
        std::os::unix::fs::symlink(target, self.below(side, path)).expect("a link");
    }

    fn view(&self, side: &str) -> View {
        View::open(&self.dir.path().join(side), &[self.dir.path().join("layer")]).expect("a view; this test needs root")
    }

    /// The same with the paths known and not known.
    fn facts(&self, paths: &[&str]) -> Vec<FactChange> {
        let (a, b) = (self.view("a"), self.view("b"));
        let known: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let found = facts(&a, &b, Some(&known));
        assert_eq!(found, facts(&a, &b, None), "not the same without the paths");
        assert_eq!(facts(&a, &b, Some(&[])), []);
        found
    }
}

fn change(area: &str, name: &str, kind: ChangeKind, before: &str, after: &str) -> FactChange {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (before, after) = (text(before), text(after));
    FactChange { area: area.into(), name: name.into(), kind, before, after, files_before: vec![], files_after: vec![] }
}

fn stanza(name: &str, status: &str, version: &str, architecture: &str) -> String {
    format!(
        "Package: {name}\nStatus: install ok {status}\nArchitecture: {architecture}\nVersion: {version}\n\
         Description: x\n Version: 9.9 in a text\n\n"
    )
}

#[test]
fn packages_of_dpkg() {
    let two = Two::new();
    let old = [
        stanza("kept", "installed", "1", "all"),
        stanza("nginx", "installed", "1.22.1-9", "amd64"),
        stanza("gone", "installed", "2", "amd64"),
        stanza("purged", "installed", "3", "amd64"),
        stanza("libc6", "installed", "2.36", "amd64"),
    ];
    let new = [
        stanza("kept", "installed", "1", "all"),
        stanza("nginx", "installed", "1.22.1-10", "amd64"),
        stanza("purged", "config-files", "3", "amd64"),
        stanza("broken", "half-configured", "4", "amd64"),
        stanza("libc6", "installed", "2.36", "amd64"),
        stanza("libc6", "installed", "2.36", "i386"),
    ];
    two.write("layer", "/var/lib/dpkg/status", old.concat());
    two.write("b", "/var/lib/dpkg/status", new.concat());
    two.write("b", "/var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12");
    assert_eq!(
        two.facts(&["/var/lib/dpkg/status", "/var/lib/dpkg/status.d", "/var/lib/dpkg/status.d/base"]),
        [
            change("dpkg", "base-files", Added, "", "12"),
            change("dpkg", "broken", Added, "", "4 (half-configured)"),
            change("dpkg", "gone", Removed, "2", ""),
            change("dpkg", "libc6", Changed, "2.36", "2.36 (amd64), 2.36 (i386)"),
            change("dpkg", "nginx", Changed, "1.22.1-9", "1.22.1-10"),
            change("dpkg", "purged", Removed, "3", ""),
        ]
    );
}

#[test]
fn packages_of_python_and_node() {
    let two = Two::new();
    let site = "/usr/local/lib/python3.11/dist-packages";
    two.write("layer", &format!("{site}/same-1.dist-info/METADATA"), "Name: same\nVersion: 1\n\nName: text\n");
    two.write("a", &format!("{site}/requests-2.0.dist-info/METADATA"), "Name: Requests\r\nVersion: 2.0\r\n\r\n");
    two.write("b", &format!("{site}/requests-2.1.dist-info/METADATA"), "Name: Requests\nVersion: 2.1\n");
    two.write("b", &format!("{site}/old.egg-info/PKG-INFO"), "Metadata-Version: 1.0\nName: old\nVersion: 0.1\n");
    let home = "/home/ada/.local/lib/python3.11/site-packages/tool-5.dist-info";
    two.write("b", &format!("{home}/RECORD"), "");
    two.write("b", "/usr/lib/node_modules/@org/cli/package.json", r#"{"name":"@org/cli","version":"3.1.4"}"#);
    two.write("layer", "/usr/lib/node_modules/npm/package.json", r#"{"name":"npm","version":"9.0.0"}"#);
    two.write("b", "/usr/lib/node_modules/npm/package.json", r#"{"name":"npm","version":"9.1.0"}"#);
    two.write("b", "/usr/lib/node_modules/broken/package.json", "{");
    let paths = [
        &format!("{site}/requests-2.0.dist-info"),
        &format!("{site}/requests-2.1.dist-info"),
        &format!("{site}/old.egg-info"),
        home,
        "/usr/lib/node_modules/@org",
        "/usr/lib/node_modules/@org/cli/package.json",
        "/usr/lib/node_modules/npm/package.json",
        "/usr/lib/node_modules/broken",
    ];
    assert_eq!(
        two.facts(&paths),
        [
            change("npm", "@org/cli", Added, "", "3.1.4"),
            change("npm", "npm", Changed, "9.0.0", "9.1.0"),
            change("pip", "Requests", Changed, "2.0", "2.1"),
            change("pip", "old", Added, "", "0.1"),
            change("pip", "tool (/home/ada/.local)", Added, "", "5"),
        ]
    );
    // A virtual environment is found by what changed in it.
    two.write(
        "b",
        "/srv/app/venv/lib/python3.11/site-packages/flask-3.dist-info/METADATA",
        "Name: flask\nVersion: 3\n",
    );
    let found = facts(
        &two.view("a"),
        &two.view("b"),
        Some(&["/srv/app/venv/lib/python3.11/site-packages/flask-3.dist-info".into()]),
    );
    assert_eq!(found, [change("pip", "flask (/srv/app/venv)", Added, "", "3")]);
}

#[test]
fn accounts_without_their_secrets() {
    let two = Two::new();
    two.write(
        "layer",
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/sh\nbroken:x\n",
    );
    two.write("layer", "/etc/shadow", "root:*:1::::::\nada:$y$secret-one:1::::::\n");
    two.write("layer", "/etc/group", "root:x:0:\nsudo:x:27:\n");
    two.write(
        "b",
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/zsh\nada:x:1000:1000::/home/ada:/bin/sh\nbob:x:1001:1001::/home/bob:\n",
    );
    two.write("b", "/etc/shadow", "root:*:1::::::\nada:$y$secret-two:2::::::\n");
    two.write("b", "/etc/group", "root:x:0:\nsudo:x:27:bob,ada\n");
    let found = two.facts(&["/etc/group", "/etc/passwd", "/etc/shadow"]);
    let ada = "uid 1000, gid 1000, home /home/ada, shell /bin/sh";
    assert_eq!(
        found,
        [
            change("group", "sudo", Changed, "gid 27", "gid 27, members ada bob"),
            change("user", "ada", Changed, ada, &format!("{ada}; password changed")),
            change("user", "bob", Added, "", "uid 1001, gid 1001, home /home/bob, shell /bin/sh"),
            change(
                "user",
                "root",
                Changed,
                "uid 0, gid 0, home /root, shell /bin/bash",
                "uid 0, gid 0, home /root, shell /bin/zsh"
            ),
        ]
    );
    assert!(!format!("{found:?}").contains("secret"));
}

#[test]
fn services_timetables_and_variables() {
    let two = Two::new();
    two.link("layer", "/lib", "usr/lib");
    for unit in ["nginx.service", "old.service", "ssh.service", "README"] {
        two.write("layer", &format!("/usr/lib/systemd/system/{unit}"), "[Unit]\n");
    }
    two.link("layer", "/etc/systemd/system/multi-user.target.wants/ssh.service", "/lib/systemd/system/ssh.service");
    two.link("b", "/etc/systemd/system/multi-user.target.wants/nginx.service", "/lib/systemd/system/nginx.service");
    two.link("b", "/etc/systemd/system/old.service", "/dev/null");
    two.write("a", "/etc/systemd/system/own.service", "[Service]\nExecStart=/a\n");
    two.write("b", "/etc/systemd/system/own.service", "[Service]\nExecStart=/b\n");
    two.write("layer", "/etc/init.d/cron", "#!/bin/sh\n");
    two.link("b", "/etc/rc3.d/S01cron", "../init.d/cron");
    two.link("b", "/etc/rc2.d/S01cron", "../init.d/cron");
    two.write("b", "/etc/cron.d/job", "# every hour\nPATH=/bin\n0 * * * * root run-me\n");
    two.write("layer", "/etc/cron.daily/logrotate", "one");
    two.write("b", "/etc/cron.daily/logrotate", "two");
    two.write("layer", "/etc/environment", "PATH=\"/bin\"\nOLD=1\n");
    two.write("b", "/etc/environment", "PATH=\"/bin:/sbin\"\n# NEW=0\nexport NEW='a b'\n");
    two.write("b", "/root/.bashrc", "export TOKEN=secret\n");
    two.write("b", "/etc/profile.d/x.sh", "PATH=\n");
    let paths = [
        "/etc/cron.d/job",
        "/etc/cron.daily/logrotate",
        "/etc/environment",
        "/etc/profile.d/x.sh",
        "/etc/rc2.d/S01cron",
        "/etc/rc3.d/S01cron",
        "/etc/systemd/system/multi-user.target.wants/nginx.service",
        "/etc/systemd/system/old.service",
        "/etc/systemd/system/own.service",
        "/root/.bashrc",
    ];
    let found = two.facts(&paths);
    assert_eq!(
        found,
        [
            change("cron", "/etc/cron.d/job", Added, "", "0 * * * * root run-me"),
            change("cron", "/etc/cron.daily/logrotate", Changed, "", "changed"),
            change("environment", "/etc/profile.d/x.sh", Added, "", ""),
            change("environment", "/root/.bashrc", Added, "", ""),
            change("environment", "NEW", Added, "", "a b"),
            change("environment", "OLD", Removed, "1", ""),
            change("environment", "PATH", Changed, "/bin", "/bin:/sbin"),
            change("service", "cron (init.d)", Changed, "not enabled", "starts in 23"),
            change("service", "nginx.service", Changed, "not enabled", "enabled (multi-user.target)"),
            change("service", "old.service", Changed, "not enabled", "masked"),
            change("service", "own.service", Changed, "not enabled", "not enabled; its unit file changed"),
        ]
    );
    assert!(!format!("{found:?}").contains("secret"));
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(directory)
        .args(["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main", "-c", "index.threads=1"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .expect("git is wanted for this test");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn repositories_of_git() {
    for version in ["2", "4"] {
        let two = Two::new();
        let work = two.below("a", "/srv/app/.git").parent().expect("a parent").to_owned();
        git(&work, &["init", "-q"]);
        git(&work, &["config", "index.version", version]);
        for name in ["one", "two", "deep/three", "deep/four", "touched"] {
            two.write("a", &format!("/srv/app/{name}"), format!("{name}\n"));
        }
        std::os::unix::fs::symlink("one", work.join("link")).expect("a link");
        git(&work, &["add", "."]);
        git(&work, &["commit", "-q", "-m", "first"]);
        git(&work, &["pack-refs", "--all"]);
        let first = git(&work, &["rev-parse", "HEAD"])[..12].to_owned();
        fs_err::create_dir_all(two.below("b", "/srv/x")).expect("a folder");
        let copied = Command::new("cp").arg("-a").arg(&work).arg(two.below("b", "/srv/app")).status();
        assert!(copied.expect("cp").success());

        // Only the time of one, the bytes of another, the third gone.
        two.write("b", "/srv/app/touched", "touched\n");
        two.write("b", "/srv/app/deep/four", "FOUR\n");
        fs_err::remove_file(two.below("b", "/srv/app/one")).expect("a removal");
        two.write("b", "/srv/app/untracked", "x");
        let paths = ["/srv/app/deep/four", "/srv/app/one", "/srv/app/touched", "/srv/app/untracked"];
        let at = format!("main at {first}");
        let dirty = |stands: &str| FactChange {
            files_after: vec!["deep/four".into(), "one".into()],
            ..change("git", "/srv/app", Changed, &at, &format!("{stands}; not as added: deep/four, one"))
        };
        assert_eq!(two.facts(&paths), [dirty(&at)]);
        // What was so before is told where anything of the repository has changed.
        two.write("a", "/srv/app/deep/four", "FOUR\n");
        let found = facts(&two.view("a"), &two.view("b"), Some(&["/srv/app/one".into()]));
        let before = format!("{at}; not as added: deep/four");
        let both = FactChange { before: Some(before), files_before: vec!["deep/four".into()], ..dirty(&at) };
        assert_eq!(found, [both]);
        two.write("a", "/srv/app/deep/four", "deep/four\n");
        // Committed, on another branch.
        let there = two.below("b", "/srv/app");
        git(&there, &["checkout", "-q", "-b", "fix/it"]);
        git(&there, &["add", "-A"]);
        git(&there, &["commit", "-q", "-m", "second"]);
        let second = git(&there, &["rev-parse", "HEAD"])[..12].to_owned();
        let mut known = paths.to_vec();
        known.extend(["/srv/app/.git/HEAD", "/srv/app/.git/index", "/srv/app/.git/refs/heads/fix/it"]);
        assert_eq!(two.facts(&known), [change("git", "/srv/app", Changed, &at, &format!("fix/it at {second}"))]);
        // A second work tree has its HEAD elsewhere.
        git(&there, &["worktree", "add", "-q", "--detach", "../tree", "main"]);
        let pointer = format!("gitdir: {}", "/srv/app/.git/worktrees/tree");
        two.write("b", "/srv/tree/.git", pointer);
        let found = facts(&two.view("a"), &two.view("b"), Some(&["/srv/tree/.git".into()]));
        assert_eq!(found, [change("git", "/srv/tree", Added, "", &format!("detached at {first}"))]);
    }
}

#[test]
fn a_repository_goes_where_its_directory_goes() {
    let two = Two::new();
    let work = two.below("a", "/srv/old/deep/app/.git").parent().expect("a parent").to_owned();
    git(&work, &["init", "-q"]);
    two.write("a", "/srv/old/deep/app/one", "one\n");
    git(&work, &["add", "."]);
    git(&work, &["commit", "-q", "-m", "first"]);
    let first = git(&work, &["rev-parse", "HEAD"])[..12].to_owned();
    let copied = Command::new("cp").arg("-a").arg(two.below("a", "/srv/old")).arg(two.below("b", "/srv/new")).status();
    assert!(copied.expect("cp").success());
    two.write("a", "/srv/old/deep/app/one", "ONE!\n");
    two.write("b", "/srv/new/deep/app/one", "ONE!\n");
    let stands = format!("main at {first}; not as added: one");
    let old = format!("/srv/old/deep/app: {stands}");
    let moved = FactChange {
        files_before: vec!["one".into()],
        files_after: vec!["one".into()],
        ..change("git", "/srv/new/deep/app", ChangeKind::Renamed, &old, &stands)
    };
    // As a diff has them: what is below a directory that moved is told too.
    let paths = ["/srv/old", "/srv/old/deep/app/.git/HEAD", "/srv/new", "/srv/new/deep/app/.git/HEAD"];
    assert_eq!(two.facts(&paths), [moved]);
}

#[test]
fn hostile_places_do_no_harm() {
    let two = Two::new();
    let fifo = |path: &str| {
        let path = two.below("b", path);
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
    };
    fifo("/etc/passwd");
    fifo("/var/lib/dpkg/status");
    fifo("/root/.bashrc");
    two.link("b", "/etc/group", "../../../../../../../../etc/group");
    two.link("b", "/etc/environment", "environment");
    two.write("b", "/srv/r/.git", "gitdir: ../../../../../../../../../../../proc/self");
    two.write("b", "/srv/s/.git/HEAD", "ref: refs/heads/../../../../../etc/passwd");
    two.write("b", "/srv/t/.git/HEAD", "ref: refs/heads/main");
    fs_err::File::create(two.below("b", "/srv/t/.git/index")).expect("a file").set_len(1 << 40).expect("a length");
    fs_err::File::create(two.below("b", "/etc/crontab")).expect("a file").set_len(1 << 40).expect("a length");
    assert_eq!(
        facts(&two.view("a"), &two.view("b"), None),
        [change("git", "/srv/t", Added, "", "main without commits")]
    );
}

#[test]
fn heads_of_repositories() {
    let commit = "0123456789abcdef0123456789ABCDEF01234567";
    let lower = commit.to_lowercase();
    assert_eq!(git::parse_head(format!("{commit}\n").as_bytes()), Some(git::Head::Detached(lower.clone())));
    assert_eq!(git::parse_head(b"ref: refs/heads/a/b\n"), Some(git::Head::Branch(b"refs/heads/a/b".to_vec())));
    for wrong in ["", "ref: ", "ref: HEAD", "ref: refs/heads/..", "ref: refs//x", "0123", &commit.replace('0', "g")] {
        assert_eq!(git::parse_head(wrong.as_bytes()), None, "{wrong}");
    }
    let table = format!("# pack-refs with: peeled\n{commit} refs/heads/main\n^{commit}\n{commit}");
    assert_eq!(git::packed_ref(table.as_bytes(), b"refs/heads/main"), Some(lower));
    assert_eq!(git::packed_ref(table.as_bytes(), b"refs/heads/mai"), None);
}

/// A changed directory above counts, one beside does not.
#[test]
fn what_is_touched() {
    let paths: Vec<PathBuf> = ["/etc/cron.d/x", "/usr", "/var/lib/a-b", "/"].iter().map(PathBuf::from).collect();
    let touched = Touched::new(Some(&paths));
    for (path, expected) in [
        ("/etc", true),
        ("/etc/cron.d", true),
        ("/etc/cron.d/x", true),
        ("/etc/cron.d/x/y", true),
        ("/etc/cron", false),
        ("/usr/lib/x", true),
        ("/var/lib/a", false),
        ("/var/lib", true),
        ("/home", false),
    ] {
        assert_eq!(touched.by(Path::new(path)), expected, "{path}");
    }
    assert!(Touched::new(None).by(Path::new("/home")));
}

/// Bytes that look like what is parsed more often than chance would have it.
fn noise(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec());
    let piece = prop_oneof![word, prop::collection::vec(any::<u8>(), 0..12)];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn index_noise() -> impl Strategy<Value = Vec<u8>> {
    let entry = (any::<[u8; 60]>(), 0_u16..0xffff, prop::collection::vec(any::<u8>(), 0..40));
    (0_u32..6, 0_u32..9, prop::collection::vec(entry, 0..6)).prop_map(|(version, count, entries)| {
        let mut bytes = b"DIRC".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend(count.to_be_bytes());
        for (stat, flags, path) in entries {
            bytes.extend(stat);
            bytes.extend(flags.to_be_bytes());
            bytes.extend(path);
            bytes.extend([0; 3]);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_dpkg_status_is_survived(bytes in noise(&["Package: a\n", "Version: 1\n", "Status: install ok ", "installed", "\n\n", ":", " "])) {
        let mut facts = Facts::default();
        dpkg::parse(&bytes, &mut facts);
    }

    #[test]
    fn any_metadata_is_survived(bytes in noise(&["Name: a\n", "Version: 1\n", "\r\n", "Name:", "\n\n"])) {
        modules::metadata(&bytes);
    }

    #[test]
    fn any_package_json_is_survived(bytes in noise(&["{", "}", "\"name\"", ":", "\"version\"", ",", "[", "\"a\""])) {
        modules::package_json(&bytes);
    }

    #[test]
    fn any_accounts_are_survived(bytes in noise(&["root:x:0:0:root:/root:/bin/sh\n", ":", "\n", "#", ",", "/home/a"])) {
        accounts::passwd_facts(&bytes, &bytes);
        accounts::group_facts(&bytes);
    }

    #[test]
    fn any_settings_are_survived(bytes in noise(&["A=b\n", "export ", "=", "\"", "'", "* * * * * x\n", "@reboot x\n"])) {
        environment::variables(&bytes, "");
        services::table_fact(&bytes);
    }

    #[test]
    fn any_head_and_refs_are_survived(bytes in noise(&["ref: ", "refs/heads/", "\n", " ", "0123456789abcdef0123456789abcdef01234567", "^"])) {
        git::parse_head(&bytes);
        git::packed_ref(&bytes, b"refs/heads/main");
    }

    #[test]
    fn any_index_is_survived(bytes in prop_oneof![index_noise(), prop::collection::vec(any::<u8>(), 0..400)]) {
        for object_bytes in [20, 32] {
            if let Some(entries) = index::parse(&bytes, object_bytes) {
                prop_assert!(entries.len() <= bytes.len() / 62);
            }
        }
    }
}
