//! A cgroup of our own is frozen and goes on. Needs root and a cgroup2 mount.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use den_sys::cgroup::{Freezer, Hierarchies, freezer};

/// What was made goes away, also after a failure.
struct Group(PathBuf, Vec<Child>);

impl Drop for Group {
    fn drop(&mut self) {
        for child in &mut self.1 {
            let _ = child.kill();
            let _ = child.wait();
        }
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn within(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn processes_stand_and_go_on() {
    let Some(mount) = Hierarchies::find().unwrap().unified else { return };
    let path = mount.join(format!("den-test-freezer-{}", std::process::id()));
    fs::create_dir(&path).unwrap();
    let mut group = Group(path.clone(), Vec::new());
    let counter = tempfile::NamedTempFile::new().unwrap();
    let script = format!("while :; do echo x >> {}; done", counter.path().display());
    let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
    group.1.push(child);
    let size = || fs::metadata(counter.path()).map_or(0, |file| file.len());

    let limit = Duration::from_secs(5);
    let mut freezer_of = Freezer::of(&path).unwrap();
    for _ in 0..20 {
        let began = Instant::now();
        assert!(freezer_of.freeze(limit).unwrap());
        println!("frozen after {:?}", began.elapsed());
        let before = size();
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(size(), before, "it writes while it is frozen");
        freezer_of.thaw().unwrap();
        within(limit, "it does not go on", || size() > before);
    }
    // Dropped, it thaws.
    assert!(freezer_of.freeze(limit).unwrap());
    drop(freezer_of);
    assert_eq!(fs::read_to_string(path.join("cgroup.freeze")).unwrap().trim(), "0");
    // Too little time is no error, and nothing stays frozen.
    let mut hurried = Freezer::of(&path).unwrap();
    hurried.freeze(Duration::ZERO).unwrap();
    hurried.thaw().unwrap();
    within(limit, "it stays frozen", || fs::read_to_string(path.join("cgroup.events")).unwrap().contains("frozen 0"));
    assert!(freezer("den-no-such-instance", "c1").is_none());
}
