//! The freezer of cgroup v1, on hosts that have no cgroup2 mounted: the daemon is given a mount namespace
//! in which there is none.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use den_testkit::{House, eventually};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const LONG: Duration = Duration::from_secs(60);
/// What would go on has gone on by then.
const A_WHILE: Duration = Duration::from_millis(400);

/// Where a hierarchy is mounted: by the kind of its file system, and a word of its options.
fn mounted(kind: &str, option: &str) -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let fits = back.next() == Some(kind) && back.nth(1)?.split(',').any(|word| option.is_empty() || word == option);
        fits.then(|| PathBuf::from(front.split(' ').nth(4).unwrap_or_default()))
    })
}

/// What the freezers below the cgroup of this house say.
fn freezers(house: &House, mount: &Path) -> Vec<String> {
    let own = mount.join(den_testkit::leftovers::instance(house.run_dir()));
    let entries = std::fs::read_dir(own).into_iter().flatten().flatten();
    let state = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("freezer.state")).ok();
    entries.filter_map(state).map(|state| state.trim().to_owned()).collect()
}

#[test]
fn a_host_without_cgroup2_pauses_with_the_freezer_of_v1() {
    let Some(freezer) = mounted("cgroup", "freezer") else {
        println!("this host has no v1 freezer");
        return;
    };
    let folder = tempfile::Builder::new().prefix("den-test-v1-").tempdir().expect("a folder");
    let without =
        mounted("cgroup2", "").map(|mount| format!("umount {}", mount.display())).unwrap_or("true".to_owned());
    let program = folder.path().join("den");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c '{without} || exit 9; exec \"$0\" \"$@\"' {DEN} \"$@\"\n"
    );
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its mode");

    let house = House::open(program.to_str().expect("a path"));
    house.new_computer("web");
    // What it sees of cgroup2 is its own.
    let seen = "grep ^0:: /proc/self/cgroup; find /sys/fs/cgroup -mindepth 1 -type d | wc -l; mkdir /tmp/two; \
        mount -t cgroup2 two /tmp/two && find /tmp/two -mindepth 1 -type d | wc -l; umount /tmp/two";
    assert_eq!(house.sh("web", seen).ok(), "0::/\n0\n0");
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let step = house.den(&["exec", "web", "-d", "--", "bash", "-c", count]).ok();
    let counted = || house.den(&["log", "web", &step]).stdout.lines().count();
    eventually(LONG, "it counts", || counted() > 3);
    let frozen = || freezers(&house, &freezer).iter().filter(|state| *state == "FROZEN").count();
    assert_eq!(frozen(), 0);

    house.den(&["pause", "web"]).ok();
    assert_eq!(frozen(), 1, "{:?}", freezers(&house, &freezer));
    let mut stood = counted();
    eventually(LONG, "the output stands", || {
        std::thread::sleep(A_WHILE);
        let now = counted();
        std::mem::replace(&mut stood, now) == now
    });
    // A request wakes it, and it goes on where it stood.
    assert_eq!(house.sh("web", "echo woken").ok(), "woken");
    // It stands for a moment more while its state is kept.
    eventually(LONG, "it stands no more", || frozen() == 0);
    eventually(LONG, "it goes on", || counted() > stood);
    let output = house.den(&["log", "web", &step]).stdout;
    assert_eq!(output, (1..=output.lines().count()).map(|n| format!("{n}\n")).collect::<String>());

    // A state is taken while it stands for a moment; what stands still can be stopped and removed.
    house.den(&["snap", "web", "kept"]).ok();
    eventually(LONG, "it stands no more", || frozen() == 0);
    house.den(&["unplug", "web"]).ok();
    assert_eq!(frozen(), 1);
    house.sh("web", "true").refused(1, "unplugged");
    house.den(&["replug", "web"]).ok();
    house.den(&["pause", "web"]).ok();
    house.den(&["stop", "-t", "1s", "web"]).ok();
    house.den(&["start", "web"]).ok();
    house.den(&["pause", "web"]).ok();
    house.den(&["rm", "--now", "web"]).ok();
    house.close();
}
