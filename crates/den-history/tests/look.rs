//! Views of real uppers over real layers: what the overlay shows, and that nothing leads out of it.
//! Needs root.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use den_api::EntryKind;
use den_history::{GrepOptions, HistoryError, View};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

/// A folder with `snap/data` and layers below it.
struct Place {
    dir: tempfile::TempDir,
    layers: Vec<PathBuf>,
}

impl Place {
    fn new(layers: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("den-look-").tempdir().expect("a folder");
        fs_err::create_dir_all(dir.path().join("snap/data")).expect("an upper");
        let layers: Vec<PathBuf> = (0..layers).map(|number| dir.path().join(format!("layer-{number}"))).collect();
        layers.iter().for_each(|layer| fs_err::create_dir(layer).expect("a layer"));
        Self { dir, layers }
    }

    fn upper(&self, path: &str) -> PathBuf {
        at(&self.dir.path().join("snap/data"), path)
    }

    fn layer(&self, number: usize, path: &str) -> PathBuf {
        at(&self.layers[number], path)
    }

    fn view(&self) -> View {
        View::open(&self.dir.path().join("snap"), &self.layers).expect("a view; this test needs root")
    }
}

/// Where `path` lies below `root`; the directories before it are made.
fn at(root: &Path, path: &str) -> PathBuf {
    let full = root.join(path.trim_start_matches('/'));
    fs_err::create_dir_all(full.parent().expect("a parent")).expect("directories");
    full
}

fn write(path: PathBuf, text: &str) {
    fs_err::write(path, text).expect("a file");
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).expect("a node; this test needs root");
}

fn mark(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).expect("an attribute");
}

fn text(view: &View, path: &str) -> String {
    let mut text = String::new();
    let (meta, mut file) = den_history::read(view, Path::new(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    file.read_to_string(&mut text).expect("text");
    assert_eq!(meta.size, text.len() as u64);
    text
}

fn names(view: &View, path: &str, depth: u32) -> Vec<String> {
    let list = den_history::list(view, Path::new(path), depth, 1_000).expect("a listing");
    list.items.into_iter().map(|item| item.path).collect()
}

fn code<T>(result: Result<T, HistoryError>) -> &'static str {
    match result {
        Ok(_) => "fine",
        Err(error) => error.code(),
    }
}

#[test]
fn an_upper_hides_replaces_and_moves_what_is_below() {
    let place = Place::new(2);
    write(place.layer(1, "/etc/kept"), "below");
    write(place.layer(1, "/etc/gone"), "below");
    write(place.layer(0, "/etc/changed"), "middle");
    write(place.layer(1, "/etc/changed"), "below");
    write(place.layer(1, "/opaque/hidden"), "below");
    write(place.layer(1, "/old/deep/file"), "moved");
    write(place.layer(1, "/kind/was-a-directory"), "below");
    node(&place.upper("/etc/gone"), FileType::CharacterDevice, 0);
    write(place.upper("/etc/changed"), "upper");
    write(place.upper("/opaque/own"), "upper");
    mark(&place.upper("/opaque"), "trusted.overlay.opaque", b"y");
    node(&place.upper("/old"), FileType::CharacterDevice, 0);
    fs_err::create_dir(place.upper("/new")).expect("a directory");
    mark(&place.upper("/new"), "trusted.overlay.redirect", b"/old");
    write(place.upper("/kind"), "a file now");

    let view = place.view();
    assert_eq!(names(&view, "/etc", 1), ["/etc/changed", "/etc/kept"]);
    assert_eq!(text(&view, "/etc/changed"), "upper");
    assert_eq!(text(&view, "/etc/kept"), "below");
    assert_eq!(names(&view, "/opaque", 9), ["/opaque/own"]);
    assert_eq!(names(&view, "/new", 9), ["/new/deep", "/new/deep/file"]);
    assert_eq!(text(&view, "/new/deep/file"), "moved");
    assert_eq!(code(den_history::stat(&view, Path::new("/old"))), "path_not_found");
    assert_eq!(text(&view, "/kind"), "a file now");
    assert_eq!(view.lstat(Path::new("/kind/was-a-directory")).expect("a look"), None);
    assert_eq!(view.xattrs(Path::new("/new")).expect("attributes"), BTreeMap::new());
    assert_eq!(view.xattrs(Path::new("/opaque")).expect("attributes"), BTreeMap::new());
}

#[test]
fn a_view_is_mounted_nowhere_and_can_be_opened_anywhere() {
    let place = Place::new(20);
    for number in 0..20 {
        write(place.layer(number, &format!("/from-{number:02}")), "x");
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let view = place.view();
                assert_eq!(names(&view, "/", 1).len(), 20);
                let mounts = fs_err::read_to_string("/proc/self/mountinfo").expect("mounts");
                assert!(!mounts.contains(&*place.dir.path().to_string_lossy()));
            });
        }
    });
    let nothing_below = Place::new(0);
    write(nothing_below.upper("/only"), "own");
    assert_eq!(text(&nothing_below.view(), "/only"), "own");
}

#[test]
fn links_stay_in_the_state_wherever_they_point() {
    let place = Place::new(1);
    write(place.layer(0, "/etc/hostname"), "inside");
    write(place.layer(0, "/usr/bin/tool"), "tool");
    symlink("usr/bin", place.layer(0, "/bin")).expect("a link");
    let link = |name: &str, target: &str| symlink(target, place.upper(name)).expect("a link");
    link("/absolute", "/etc/hostname");
    link("/climbs", "../../../../../../../../etc/hostname");
    link("/home/up", "../etc");
    link("/loop", "/pool");
    link("/pool", "/loop");
    link("/self", "self/self");
    link("/proc-root", "/proc/self/root/etc/hostname");
    link("/proc-cwd", "/proc/self/cwd");
    link("/nowhere", "/not/there");
    link("/chain-0", "/etc/hostname");
    for number in 1..45 {
        link(&format!("/chain-{number}"), &format!("/chain-{}", number - 1));
    }

    let view = place.view();
    let read = |path: &str| den_history::read(&view, Path::new(path));
    assert_eq!(text(&view, "/absolute"), "inside");
    assert_eq!(text(&view, "/climbs"), "inside");
    assert_eq!(text(&view, "/home/up/hostname"), "inside");
    assert_eq!(text(&view, "/home/up/../usr/bin/tool"), "tool");
    assert_eq!(text(&view, "/bin/../bin/tool"), "tool");
    assert_eq!(text(&view, "/chain-39"), "inside");
    for (path, expected) in [
        ("/loop", "too_many_links"),
        ("/self", "too_many_links"),
        ("/chain-44", "too_many_links"),
        ("/proc-root", "path_not_found"),
        ("/proc-cwd", "path_not_found"),
        ("/nowhere", "path_not_found"),
        ("/etc/hostname/x", "path_not_found"),
        ("/../etc/hostname", "bad_path"),
        ("etc/hostname", "bad_path"),
        ("/etc", "not_a_file"),
    ] {
        assert_eq!(code(read(path)), expected, "{path}");
    }
    // What takes a path as it stands goes through no link at all.
    assert!(view.lstat(Path::new("/usr/bin/tool")).expect("a look").is_some());
    assert_eq!(view.lstat(Path::new("/bin/tool")).expect("a look"), None);
    assert_eq!(code(view.open_file(Path::new("/bin/tool"))), "path_not_found");
    assert_eq!(code(view.entries(Path::new("/bin"))), "not_a_directory");
    assert_eq!(view.follow(Path::new("/bin/tool")).expect("a path"), Path::new("/usr/bin/tool"));
    assert_eq!(view.follow_parent(Path::new("/home/up/../absolute")).expect("a path"), Path::new("/absolute"));

    let stat = den_history::stat(&view, Path::new("/loop")).expect("the link itself");
    assert_eq!((stat.meta.kind, stat.meta.target.as_deref()), (EntryKind::Symlink, Some("/pool")));
    assert_eq!(names(&view, "/nowhere", 1), ["/nowhere"]);
    assert_eq!(names(&view, "/bin", 1), ["/bin/tool"]);
    assert_eq!(code(den_history::list(&view, Path::new("/missing"), 1, 9)), "path_not_found");
}

#[test]
fn pipes_and_devices_are_shown_and_never_opened() {
    let place = Place::new(1);
    write(place.layer(0, "/f/file"), "needle\n");
    node(&place.upper("/f/pipe"), FileType::Fifo, 0);
    node(&place.upper("/f/null"), FileType::CharacterDevice, makedev(1, 3));
    node(&place.upper("/f/disk"), FileType::BlockDevice, makedev(7, 999));
    drop(std::os::unix::net::UnixListener::bind(place.upper("/f/socket")).expect("a socket"));
    mark(&place.upper("/f/pipe"), "trusted.own", b"1");

    let view = place.view();
    for name in ["pipe", "null", "disk", "socket"] {
        let path = Path::new("/f").join(name);
        assert_eq!(view.stat(&path).expect("a look").kind, EntryKind::Special, "{name}");
        assert_eq!(code(den_history::read(&view, &path)), "not_a_file", "{name}");
        assert_eq!(code(view.read_limited(&path, 10)), "not_a_file", "{name}");
        let options = GrepOptions { pattern: "x".into(), limit: 9, ..GrepOptions::default() };
        assert_eq!(code(den_history::grep(&view, &path, &options)), "not_a_file", "{name}");
    }
    assert_eq!(view.stat(Path::new("/f/null")).expect("a look").rdev, makedev(1, 3));
    assert_eq!(view.xattrs(Path::new("/f/pipe")).expect("attributes")[&b"trusted.own"[..]], b"1");
    let options = GrepOptions { pattern: "needle".into(), limit: 9, ..GrepOptions::default() };
    assert_eq!(den_history::grep(&view, Path::new("/"), &options).expect("hits").items.len(), 1);
    let mut packed = Vec::new();
    den_history::tar(&view, Path::new("/f"), &mut packed).expect("an archive");
    let kinds: Vec<(String, tar::EntryType)> = tar::Archive::new(&packed[..])
        .entries()
        .expect("entries")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.path().expect("a name").display().to_string(), entry.header().entry_type()))
        .collect();
    let kinds: Vec<(&str, tar::EntryType)> = kinds.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    use tar::EntryType::{Block, Char, Directory, Fifo, Regular};
    assert_eq!(kinds, [("f/", Directory), ("f/disk", Block), ("f/file", Regular), ("f/null", Char), ("f/pipe", Fifo)]);
}

#[test]
fn huge_and_deep_things_are_limited() {
    let place = Place::new(1);
    write(place.layer(0, "/small"), "needle");
    let huge = fs_err::File::create(place.upper("/huge")).expect("a file");
    huge.set_len(1 << 40).expect("a sparse file");
    // Deeper than a path of one system call: 30 names of 200 bytes.
    let name = "d".repeat(200);
    let mut dir =
        rustix::fs::open(place.upper("/deep/x").parent().expect("a parent"), rustix::fs::OFlags::PATH, Mode::empty())
            .expect("a directory");
    let mut deepest = PathBuf::from("/deep");
    for _ in 0..30 {
        rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).expect("a directory");
        dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::PATH, Mode::empty()).expect("a directory");
        deepest.push(&name);
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&dir, "bottom", flags, Mode::from_raw_mode(0o644)).expect("a file");
    rustix::io::write(&file, b"needle").expect("bytes");
    deepest.push("bottom");
    // A name that is no text.
    write(place.upper("/").join(OsStr::from_bytes(b"no-\xff-text")), "x");

    let view = place.view();
    assert_eq!(code(view.read_limited(Path::new("/huge"), 1 << 20)), "file_too_large");
    let options = GrepOptions { pattern: "needle".into(), limit: 9, ..GrepOptions::default() };
    let hits = den_history::grep(&view, Path::new("/"), &options).expect("hits");
    assert_eq!(hits.items.len(), 2);
    assert_eq!(hits.items[1].path, "/small");
    assert_eq!(view.read_limited(&deepest, 10).expect("bytes"), b"needle");
    assert_eq!(den_history::list(&view, Path::new("/deep"), 100, 100).expect("a listing").items.len(), 31);
    assert!(names(&view, "/", 1).contains(&"/no-\\xff-text".to_owned()));
    let mut packed = Vec::new();
    den_history::tar(&view, Path::new("/deep"), &mut packed).expect("an archive");
    let mut archive = tar::Archive::new(&packed[..]);
    let last = archive.entries().expect("entries").last().expect("one").expect("an entry");
    assert_eq!(last.path().expect("a name").into_owned(), deepest.strip_prefix("/").expect("absolute"));
    // The directories are too deep for others to remove by path, so it is done here by descriptor.
    remove_deep(&place.upper("/deep"), &name);
}

/// Moves what is below up step by step, so that each path stays short.
fn remove_deep(top: &Path, name: &str) {
    let next = top.with_extension("next");
    while fs_err::rename(top.join(name), &next).is_ok() {
        fs_err::remove_dir(top).expect("an empty directory");
        fs_err::rename(&next, top).expect("a place");
    }
    fs_err::remove_dir_all(top).expect("the last");
}

#[test]
fn a_listing_is_in_order_and_ends_at_its_limit() {
    let place = Place::new(1);
    for path in ["/a/b/c", "/a/b-", "/a/b0", "/z"] {
        write(place.layer(0, path), "x");
    }
    let view = place.view();
    assert_eq!(names(&view, "/a", 1), ["/a/b", "/a/b-", "/a/b0"]);
    assert_eq!(names(&view, "/", 9), ["/a", "/a/b", "/a/b/c", "/a/b-", "/a/b0", "/z"]);
    assert_eq!(names(&view, "/", 2), ["/a", "/a/b", "/a/b-", "/a/b0", "/z"]);
    assert_eq!(names(&view, "/a", 0), ["/a"]);
    assert_eq!(names(&view, "/z", 3), ["/z"]);
    let cut = den_history::list(&view, Path::new("/"), 9, 2).expect("a listing");
    assert_eq!((cut.items.len(), cut.truncated), (2, true));
    let whole = den_history::list(&view, Path::new("/"), 9, 6).expect("a listing");
    assert_eq!((whole.items.len(), whole.truncated), (6, false));
}

#[test]
fn a_search_finds_lines_and_says_which() {
    let place = Place::new(1);
    write(place.layer(0, "/src/one.txt"), "first\r\nThe Needle\nlast needle");
    write(place.layer(0, "/src/two.bin"), "a\0needle");
    write(place.layer(0, "/src/regex"), "a.c\nabc\n");
    write(place.upper("/src/long"), &format!("needle{}", "é".repeat(5_000)));
    symlink("/src/one.txt", place.upper("/src/link")).expect("a link");
    let view = place.view();
    let find = |path: &str, pattern: &str, ignore_case: bool, fixed: bool, limit: usize| {
        let options = GrepOptions { pattern: pattern.into(), ignore_case, fixed, limit };
        den_history::grep(&view, Path::new(path), &options)
    };
    let lines = |found: &den_api::GrepList| {
        found.items.iter().map(|hit| format!("{}:{}", hit.path, hit.line)).collect::<Vec<_>>()
    };
    let found = find("/src", "needle", false, false, 100).expect("hits");
    assert_eq!(lines(&found), ["/src/long:1", "/src/one.txt:3", "/src/two.bin:0"]);
    assert_eq!(found.items[0].text.chars().count(), 1_000);
    assert_eq!(found.items[1].text, "last needle");
    let found = find("/src", "^the needle$", true, false, 100).expect("hits");
    assert_eq!(lines(&found), ["/src/one.txt:2"]);
    assert_eq!(lines(&find("/src/regex", "a.c", false, false, 9).expect("hits")).len(), 2);
    assert_eq!(lines(&find("/src/regex", "a.c", false, true, 9).expect("hits")), ["/src/regex:1"]);
    assert_eq!(lines(&find("/src/link", "^first$", false, true, 9).expect("hits")).len(), 0);
    assert_eq!(lines(&find("/src/link", "^first$", false, false, 9).expect("hits")), ["/src/link:1"]);
    let cut = find("/src", "needle", false, false, 2).expect("hits");
    assert_eq!((cut.items.len(), cut.truncated), (2, true));
    assert_eq!(code(find("/src", "a(", false, false, 9)), "bad_pattern");
    assert_eq!(code(find("/src", "", false, false, 9)), "bad_pattern");
    assert_eq!(code(find("/src", "(a{1000}){1000}", false, false, 9)), "bad_pattern");
    assert_eq!(code(find("/src", &"a".repeat(5_000), false, true, 9)), "bad_pattern");
}

#[test]
fn an_archive_has_owners_modes_times_attributes_and_links() {
    let place = Place::new(1);
    write(place.layer(0, "/t/file"), "content");
    write(place.upper("/t/big-owner"), "");
    std::os::unix::fs::chown(place.upper("/t/big-owner"), Some(3_000_000), Some(7)).expect("an owner");
    fs_err::set_permissions(place.layer(0, "/t/file"), std::fs::Permissions::from_mode(0o4751)).expect("a mode");
    mark(&place.layer(0, "/t/file"), "user.note", b"kept");
    fs_err::hard_link(place.layer(0, "/t/file"), place.layer(0, "/t/same")).expect("a second name");
    symlink("/etc/shadow", place.upper("/t/link")).expect("a link");
    let long = "n".repeat(150);
    write(place.upper(&format!("/t/{long}/{long}")), "x");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    let times = std::fs::FileTimes::new().set_modified(time);
    std::fs::File::options()
        .append(true)
        .open(place.layer(0, "/t/file"))
        .expect("open")
        .set_times(times)
        .expect("times");

    let view = place.view();
    let mut packed = Vec::new();
    den_history::tar(&view, Path::new("/t/"), &mut packed).expect("an archive");
    let mut seen = Vec::new();
    for entry in tar::Archive::new(&packed[..]).entries().expect("entries") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a name").display().to_string();
        let link = entry.link_name().expect("a link").map(|link| link.display().to_string());
        let pax: BTreeMap<String, Vec<u8>> = match entry.pax_extensions().expect("pax") {
            None => BTreeMap::new(),
            Some(records) => records
                .map(|record| record.expect("a record"))
                .map(|record| (record.key().expect("a key").to_owned(), record.value_bytes().to_owned()))
                .collect(),
        };
        if path == "t/file" {
            assert_eq!(entry.header().mode().expect("a mode"), 0o4751);
            assert_eq!(pax["SCHILY.xattr.user.note"], b"kept");
            assert_eq!(pax["mtime"], b"1700000000.123456789");
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("bytes");
            assert_eq!(content, "content");
        }
        if path == "t/big-owner" {
            assert_eq!((pax["uid"].as_slice(), entry.header().gid().expect("a group")), (&b"3000000"[..], 7));
        }
        seen.push((path, link));
    }
    let expected = [
        ("t/".to_owned(), None),
        ("t/big-owner".to_owned(), None),
        ("t/file".to_owned(), None),
        ("t/link".to_owned(), Some("/etc/shadow".to_owned())),
        (format!("t/{long}/"), None),
        (format!("t/{long}/{long}"), None),
        ("t/same".to_owned(), Some("t/file".to_owned())),
    ];
    assert_eq!(seen, expected);
    let mut whole = Vec::new();
    den_history::tar(&view, Path::new("/"), &mut whole).expect("an archive");
    let mut archive = tar::Archive::new(&whole[..]);
    let first = archive.entries().expect("entries").next().expect("one").expect("an entry");
    assert_eq!(first.path().expect("a name").into_owned(), Path::new("./"));
    let out = |error: HistoryError| (error.code(), error.to_string());
    assert_eq!(
        out(den_history::tar(&view, Path::new("/no"), &mut Vec::new()).expect_err("nothing")).0,
        "path_not_found"
    );
}
