//! What merges promise, on states over real overlays, and beside a model.

#[path = "common/trees.rs"]
mod trees;
#[path = "common/world.rs"]
mod world;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use den_api::{ChangeKind, ConflictView};
use den_history::merge::{MergeOptions, Plan, Source};
use den_wire::agent::ApplyAction;
use proptest::prelude::*;
use world::World;

impl World {
    fn merged(&self) -> Plan {
        let plan = self.plan(&MergeOptions::default());
        assert!(plan.conflicts.is_empty(), "{:?}", plan.conflicts);
        plan
    }

    fn conflicts(&self, options: &MergeOptions) -> Vec<(String, String)> {
        why(&self.plan(options).conflicts)
    }
}

fn why(conflicts: &[ConflictView]) -> Vec<(String, String)> {
    conflicts.iter().map(|conflict| (conflict.path.clone(), conflict.why.clone())).collect()
}

/// The operations in short.
fn short(plan: &Plan) -> Vec<String> {
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    plan.ops
        .iter()
        .map(|op| {
            let path = name(&op.op.path);
            match &op.op.action {
                ApplyAction::File(_) => match &op.source {
                    Source::Bytes(_) => format!("merge {path}"),
                    Source::Ours(from) => format!("move {} {path}", from.display()),
                    _ => format!("put {path}"),
                },
                ApplyAction::Directory(_) => format!("mkdir {path}"),
                ApplyAction::Symlink { .. } => format!("symlink {path}"),
                ApplyAction::Fifo(_) => format!("fifo {path}"),
                ApplyAction::Link { to } => format!("link {path} {}", name(to)),
                ApplyAction::Remove => format!("remove {path}"),
                ApplyAction::Dress(dress) if dress.mode.is_none() && dress.uid.is_none() && dress.xattrs.is_empty() => {
                    format!("time {path}")
                }
                ApplyAction::Dress(_) => format!("dress {path}"),
            }
        })
        .filter(|op| !op.starts_with("time"))
        .collect()
}

fn merged_bytes(plan: &Plan, path: &str) -> String {
    let op = plan.ops.iter().find(|op| &op.op.path[..] == path.as_bytes()).expect("an operation");
    match &op.source {
        Source::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("not merged: {other:?}"),
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(path, why)| (path.to_owned(), why.to_owned())).collect()
}

const TEN: &str = "seq 10 > f";

#[test]
fn what_only_theirs_changed_comes() {
    let world = World::scripted(
        "mkdir d; echo 1 > d/gone; echo 1 > d/stays; echo 1 > mode; ln -s a l; seq 3 > changed",
        "echo ours > new",
        "rm d/gone; chmod 4711 mode; ln -sfn b l; seq 4 > changed; mkdir -p n/m; echo x > n/m/f; mkfifo p",
    );
    let plan = world.merged();
    assert_eq!(
        short(&plan),
        [
            "remove /d/gone",
            "put /changed",
            "symlink /l",
            "mkdir /n",
            "mkdir /n/m",
            "put /n/m/f",
            "fifo /p",
            "dress /mode"
        ]
    );
    assert_eq!((plan.count.added, plan.count.changed, plan.count.removed), (4, 3, 1));
    assert_eq!(plan.files.len(), 8);
}

#[test]
fn lines_that_are_apart_come_together() {
    let world = World::scripted(TEN, "sed -i 1s/1/one/ f; chmod 600 f", "sed -i 10s/10/ten/ f; chown 5 f");
    let plan = world.merged();
    assert_eq!(short(&plan), ["merge /f"]);
    assert_eq!(merged_bytes(&plan, "/f"), "one\n2\n3\n4\n5\n6\n7\n8\n9\nten\n");
    let ApplyAction::File(dress) = &plan.ops[0].op.action else { panic!("a file") };
    assert_eq!((dress.mode, dress.uid), (Some(0o600), Some(5)));
}

#[test]
fn each_conflict_says_why() {
    let world = World::scripted(
        "seq 3 > lines; seq 3 > gone; seq 3 > went; echo a > mode; mkdir d; echo 1 > d/f; ln -s a link; printf 'a\\0' > bin
         mkdir -p away/sub; echo 1 > same; mkdir k; echo 1 > k/f",
        "sed -i 2s/2/ours/ lines; rm gone; seq 4 > went; chmod 600 mode; echo 2 > d/f; ln -sfn b link; printf 'b\\0' > bin
         echo new > away/sub/new; echo 2 > same; echo x > both; rm -r k; echo k > k",
        "sed -i 2s/2/theirs/ lines; seq 5 > gone; rm went; chmod 640 mode; rm -r d; ln -sfn c link; printf 'c\\0' > bin
         rm -r away; echo 2 > same; echo y > both; echo new > k/new",
    );
    let plan = world.plan(&MergeOptions::default());
    assert_eq!(
        why(&plan.conflicts),
        pairs(&[
            ("/away/sub/new", "delete"),
            ("/bin", "content"),
            ("/both", "content"),
            ("/d/f", "delete"),
            ("/gone", "delete"),
            ("/k", "kind"),
            ("/lines", "content"),
            ("/link", "content"),
            ("/mode", "metadata"),
            ("/went", "delete"),
        ])
    );
    let of = |path: &str| plan.conflicts.iter().find(|conflict| conflict.path == path).expect("a conflict");
    let lines = of("/lines");
    assert_eq!(
        lines.text.as_deref(),
        Some("1\n<<<<<<< ours\nours\n||||||| original\n2\n=======\ntheirs\n>>>>>>> theirs\n3\n")
    );
    let sizes = |c: &ConflictView| [&c.base, &c.ours, &c.theirs].map(|meta| meta.as_ref().map(|meta| meta.size));
    assert_eq!(sizes(lines), [Some(6), Some(9), Some(11)]);
    assert_eq!(sizes(of("/gone")), [Some(6), None, Some(10)]);
    assert_eq!(sizes(of("/went")), [Some(6), Some(8), None]);
    assert_eq!(of("/link").ours.as_ref().and_then(|meta| meta.target.as_deref()), Some("b"));
}

#[test]
fn a_side_wins_where_both_changed_and_only_there() {
    let base = "mkdir a b; seq 3 > a/f; seq 3 > b/f; seq 3 > a/only";
    let ours = "sed -i 2s/2/ours/ a/f b/f";
    let theirs = "sed -i 2s/2/theirs/ a/f b/f; seq 4 > a/only";
    let world = World::scripted(base, ours, theirs);
    let options = |ours: &[&str], theirs: &[&str]| MergeOptions {
        ours: ours.iter().map(PathBuf::from).collect(),
        theirs: theirs.iter().map(PathBuf::from).collect(),
        ..MergeOptions::default()
    };
    assert_eq!(world.conflicts(&options(&["/a"], &[])), pairs(&[("/b/f", "content")]));
    let plan = world.plan(&options(&["/a"], &["/b"]));
    assert!(plan.conflicts.is_empty());
    assert_eq!(short(&plan), ["put /a/only", "put /b/f"]);
    let plan = world.plan(&options(&["/"], &["/b/f"]));
    assert_eq!(short(&plan), ["put /a/only", "put /b/f"]);
}

#[test]
fn a_side_wins_over_whole_directories() {
    let options = |ours: &[&str], theirs: &[&str]| MergeOptions {
        ours: ours.iter().map(PathBuf::from).collect(),
        theirs: theirs.iter().map(PathBuf::from).collect(),
        ..MergeOptions::default()
    };
    // Theirs removed a directory into which ours put something.
    let world = World::scripted("mkdir -p d/e; echo 1 > d/e/old", "mkdir d/e/n; echo 1 > d/e/n/f", "rm -r d");
    assert_eq!(world.conflicts(&options(&[], &[])), pairs(&[("/d/e/n", "delete")]));
    assert_eq!(short(&world.plan(&options(&["/d"], &[]))), ["remove /d/e/old"]);
    let all = ["remove /d/e/old", "remove /d/e/n/f", "remove /d/e/n", "remove /d/e", "remove /d"];
    assert_eq!(short(&world.plan(&options(&[], &["/d"]))), all);

    // Ours removed a directory into which theirs put something.
    let world = World::scripted("mkdir -p d/e; echo 1 > d/e/old", "rm -r d", "mkdir d/e/n; echo 1 > d/e/n/f");
    assert_eq!(world.conflicts(&options(&[], &[])), pairs(&[("/d/e/n", "delete")]));
    assert_eq!(short(&world.plan(&options(&["/d/e/n"], &[]))), [""; 0]);
    assert_eq!(
        short(&world.plan(&options(&[], &["/d/e"]))),
        ["mkdir /d", "mkdir /d/e", "mkdir /d/e/n", "put /d/e/n/f"]
    );

    // A directory against a file.
    let world = World::scripted("mkdir d; echo 1 > d/a; echo 1 > d/b", "rm -r d; echo file > d", "echo 2 > d/a");
    assert_eq!(world.conflicts(&options(&[], &[])), pairs(&[("/d", "kind")]));
    assert_eq!(short(&world.plan(&options(&["/d"], &[]))), [""; 0]);
    assert_eq!(short(&world.plan(&options(&[], &["/d"]))), ["remove /d", "mkdir /d", "put /d/a", "put /d/b"]);
    let world = World::scripted("mkdir d; echo 1 > d/a; echo 1 > d/b", "echo 2 > d/a", "rm -r d; echo file > d");
    assert_eq!(world.conflicts(&options(&[], &[])), pairs(&[("/d", "kind")]));
    assert_eq!(short(&world.plan(&options(&["/d"], &[]))), [""; 0]);
    assert_eq!(short(&world.plan(&options(&[], &["/d"]))), ["remove /d/b", "remove /d/a", "remove /d", "put /d"]);
}

#[test]
fn a_change_follows_a_rename() {
    let world = World::scripted(TEN, "sed -i 1s/1/one/ f", "mkdir d; mv f d/g");
    let plan = world.merged();
    assert_eq!(short(&plan), ["remove /f", "mkdir /d", "move /f /d/g"]);
    let renamed: Vec<_> = plan.files.iter().filter(|file| file.kind == ChangeKind::Renamed).collect();
    assert_eq!(renamed.len(), 1);
    assert_eq!((renamed[0].from.as_deref(), renamed[0].path.as_str()), (Some("/f"), "/d/g"));
    assert_eq!(plan.count.removed, 0);

    // The other way about.
    let world = World::scripted(TEN, "mv f g", "sed -i 10s/10/ten/ f");
    assert_eq!(short(&world.merged()), ["put /g"]);

    // Of two that are alike the one with the same name; where there is doubt, none.
    let world = World::scripted(TEN, "echo 11 >> f", "mkdir d; cp f d/f; mv f g");
    assert_eq!(short(&world.merged()), ["remove /f", "mkdir /d", "move /f /d/f", "put /g"]);
    let world = World::scripted(TEN, "echo 11 >> f", "cp f g; mv f h");
    assert_eq!(world.conflicts(&MergeOptions::default()), pairs(&[("/f", "delete")]));

    // A whole directory, with a change in it that does not go together with another.
    let world = World::scripted("mkdir d; seq 9 > d/f", "sed -i 1s/1/one/ d/f", "mv d e");
    assert_eq!(short(&world.merged()), ["remove /d/f", "remove /d", "mkdir /e", "move /d/f /e/f"]);
}

#[test]
fn only_what_is_asked_for_comes() {
    let world =
        World::scripted("mkdir a; echo 1 > a/f", "true", "echo 2 > a/f; mkdir -p b/c; echo 1 > b/c/f; echo 1 > b/x");
    let options = |path: &str| MergeOptions { paths: vec![path.into()], ..MergeOptions::default() };
    assert_eq!(short(&world.plan(&options("/a"))), ["put /a/f"]);
    assert_eq!(short(&world.plan(&options("/b/c/f"))), ["mkdir /b", "mkdir /b/c", "put /b/c/f"]);
    assert_eq!(short(&world.plan(&options("/nothing"))), [""; 0]);
}

#[test]
fn hard_links_stay_links() {
    // Written through one name: both change.
    let world = World::scripted("echo 1 > a; ln a b; echo 1 > c", "true", "echo 2 > a; ln c d; echo n > m; ln m n");
    assert_eq!(short(&world.merged()), ["put /a", "put /m", "link /b /a", "link /d /c", "link /n /m"]);
    // A name that ours gave goes with the file.
    let world = World::scripted("echo 1 > a", "ln a b", "echo 2 > a");
    assert_eq!(short(&world.merged()), ["put /a", "link /b /a"]);
    // A new name of a file that ours changed is one of the changed file.
    let world = World::scripted("echo 1 > a", "echo 2 > a", "ln a b");
    assert_eq!(short(&world.merged()), ["link /b /a"]);
    // Attributes are set in place, and cut no link.
    let world = World::scripted("echo 1 > a; ln a b", "true", "chmod 600 a");
    assert_eq!(short(&world.merged()), ["dress /a", "dress /b"]);
}

#[test]
fn package_databases_merge_by_package_and_lock_files_not_at_all() {
    let package = |name: &str, version: &str| {
        format!(
            "printf 'Package: {name}\\nStatus: install ok installed\\nArchitecture: all\\nVersion: {version}\\n\\n'"
        )
    };
    let (a, b, c, a2) = (package("a", "1"), package("b", "1"), package("c", "1"), package("a", "2"));
    let status = |all: &[&str]| format!("mkdir -p var/lib/dpkg/info; ({}) > var/lib/dpkg/status", all.join("; "));
    let world = World::scripted(&status(&[&a]), &status(&[&a, &b]), &status(&[&a2, &c]));
    let plan = world.merged();
    let names: Vec<String> = merged_bytes(&plan, "/var/lib/dpkg/status")
        .lines()
        .filter(|line| line.starts_with("Package") || line.starts_with("Version"))
        .map(str::to_owned)
        .collect();
    assert_eq!(names, ["Package: a", "Version: 2", "Package: b", "Version: 1", "Package: c", "Version: 1"]);

    let world = World::scripted(&status(&[&a]), &status(&[&a2]), &status(&[&package("a", "3")]));
    let plan = world.plan(&MergeOptions::default());
    assert_eq!(why(&plan.conflicts), pairs(&[("/var/lib/dpkg/status", "package_database")]));
    assert!(plan.conflicts[0].message.contains("a:all"), "{}", plan.conflicts[0].message);

    let world = World::scripted(
        "mkdir -p srv var/lib/dpkg/info; seq 30 | tee srv/Cargo.lock srv/x.db > var/lib/dpkg/info/p.list",
        "for f in srv/* var/lib/dpkg/info/*; do sed -i 1s/1/one/ $f; done",
        "for f in srv/* var/lib/dpkg/info/*; do echo 31 >> $f; done",
    );
    assert_eq!(
        world.conflicts(&MergeOptions::default()),
        pairs(&[
            ("/srv/Cargo.lock", "lock_file"),
            ("/srv/x.db", "content"),
            ("/var/lib/dpkg/info/p.list", "package_database")
        ])
    );
}

#[test]
fn a_forks_own_files_are_left() {
    let world = World::scripted(
        "mkdir -p etc/ssh var/lib/systemd; echo base | tee etc/hostname etc/machine-id var/lib/systemd/random-seed > etc/hosts",
        "echo ours > etc/hostname",
        "echo theirs | tee etc/hostname etc/machine-id etc/hosts etc/ssh/ssh_host_rsa_key > var/lib/systemd/random-seed
         echo 1 > etc/ssh/sshd_config",
    );
    assert_eq!(short(&world.merged()), ["put /etc/ssh/sshd_config"]);
}

#[test]
fn sockets_are_left_and_devices_refused() {
    let world = World::scripted("true", "true", "mknod null c 1 3");
    drop(std::os::unix::net::UnixListener::bind(world.dir.path().join("theirs/data/sock")).expect("a socket"));
    assert_eq!(world.conflicts(&MergeOptions::default()), pairs(&[("/null", "inside")]));
    world.sh("theirs/data", "rm null");
    assert_eq!(short(&world.merged()), [""; 0]);
}

#[test]
fn attributes_merge_one_by_one() {
    let world = World::scripted("echo 1 > f", "chmod 600 f", "chown 7:8 f");
    let set = |side: &str, name: &str, value: &[u8]| {
        let path = world.dir.path().join(side).join("data/f");
        rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty()).expect("set");
    };
    for (side, name, value) in [("base", "a", "1"), ("base", "b", "1"), ("ours", "a", "2"), ("ours", "b", "1")] {
        set(side, &format!("user.{name}"), value.as_bytes());
    }
    set("theirs", "user.a", b"1");
    set("theirs", "user.c", b"1");
    let plan = world.merged();
    assert_eq!(short(&plan), ["dress /f"]);
    let ApplyAction::Dress(dress) = &plan.ops[0].op.action else { panic!("attributes") };
    assert_eq!((dress.mode, dress.uid, dress.gid), (Some(0o600), Some(7), Some(8)));
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let values: Vec<_> = dress.xattrs.iter().map(|x| (name(&x.name), x.value.as_ref().map(|v| name(v)))).collect();
    // Those that stay are said again, since capabilities go with the owner.
    let expected = [("user.a", Some("2")), ("user.c", Some("1")), ("user.b", None)];
    assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))));
    world.sh("theirs/data", "chown 0:0 f");
    set("ours", "user.c", b"2");
    assert_eq!(world.conflicts(&MergeOptions::default()), pairs(&[("/f", "metadata")]));
}

#[test]
fn a_hostile_name_and_link_stay_inside() {
    let world = World::scripted(
        "mkdir d; echo 1 > d/f",
        "rm -r d; ln -s /etc d",
        "echo 2 > d/f; printf x > \"$(printf 'a\\n\\377')\"",
    );
    let plan = world.plan(&MergeOptions::default());
    assert_eq!(why(&plan.conflicts), pairs(&[("/d", "kind")]));
    assert!(plan.files.iter().any(|file| file.path == "/a\\x0a\\xff"), "{:?}", plan.files);
    let meta = std::fs::metadata(Path::new("/etc")).expect("there");
    assert!(meta.is_dir() && meta.mode() & 0o777 == meta.permissions().mode() & 0o777);
}

fn changes(most: usize) -> impl Strategy<Value = Vec<trees::Change>> {
    proptest::collection::vec((0..trees::CHANGES, any::<u8>(), any::<u8>()), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn conflicts_are_those_of_the_model(grow in changes(60), a in changes(12), b in changes(12)) {
        let base = trees::grown(&trees::Tree::new(), &grow);
        let (ours, theirs) = (trees::grown(&base, &a), trees::grown(&base, &b));
        let world = World::new();
        for (name, tree) in [("base", &base), ("ours", &ours), ("theirs", &theirs)] {
            trees::write(&world.dir.path().join(name).join("data"), tree);
        }
        let expected = match trees::merge(&base, &ours, &theirs) {
            Ok(merged) => {
                if merged == ours {
                    let plan = world.plan(&MergeOptions::default());
                    prop_assert!(short(&plan).is_empty(), "{:?}", short(&plan));
                }
                Vec::new()
            }
            Err(conflicts) => {
                conflicts.iter().map(|(path, why)| (path.display().to_string(), (*why).to_owned())).collect()
            }
        };
        prop_assert_eq!(trees::read(&world.dir.path().join("ours/data")), ours);
        prop_assert_eq!(world.conflicts(&MergeOptions::default()), expected);
    }
}
