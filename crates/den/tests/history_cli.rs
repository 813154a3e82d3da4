//! The history as one types it: kept states, forks, differences, merges, explorations.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use den_testkit::{House, eventually};

const DEN: &str = env!("CARGO_BIN_EXE_den");

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

/// The names of all computers.
fn names(house: &House) -> BTreeSet<String> {
    house.den(&["ls", "--quiet"]).ok().lines().map(str::to_owned).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Types what a line that begins with `undo: den` says.
fn undo(house: &House, said: &str) {
    let words = said.lines().find_map(|line| line.strip_prefix("undo: den ")).expect("how to undo it");
    house.den(&words.split(' ').collect::<Vec<_>>()).ok();
}

#[test]
fn states_are_kept_looked_into_and_gone_back_to() {
    let house = house();
    house.sh("web", "mkdir -p /srv/app; echo one > /srv/app/file; ln -s file /srv/app/link").ok();
    assert_eq!(house.den(&["snap", "web", "first"]).ok(), "web@first");
    house.sh("web", "echo two > /srv/app/file; echo new > /srv/app/new").ok();

    assert_eq!(house.den(&["cat", "web@first", "/srv/app/file"]).ok(), "one");
    assert_eq!(house.den(&["cat", "web@first:/srv/app/link"]).ok(), "one");
    assert_eq!(house.den(&["cat", "web", "/srv/app/file", "/srv/app/new"]).ok(), "two\nnew");
    assert_eq!(house.json(&["cat", "web@first", "/srv/app/file"])["text"], "one\n");
    let listed = house.den(&["ls", "web@first", "/srv/app"]).ok();
    assert!(listed.contains("link -> file") && !listed.contains("new"), "{listed}");
    let tree = house.den(&["tree", "web", "/srv"]).ok();
    assert_eq!(tree.lines().take(3).collect::<Vec<_>>(), ["/srv", "  app/", "    file  4B"]);
    assert_eq!(house.den(&["grep", "web@first", "^on.$", "/srv"]).ok(), "/srv/app/file:1:one");
    house.den(&["grep", "web@first", "two", "/srv"]).refused(1, "no line matches");
    assert!(house.den(&["stat", "web@first", "/srv/app/link"]).ok().contains("link"));

    // Copies out of a state: a tree, what a tree holds, a link, into another computer.
    let out = house.scratch().join("out");
    let to = out.to_str().expect("text");
    house.den(&["cp", "web@first:/srv/app", to]).ok();
    assert_eq!(std::fs::read_to_string(out.join("file")).expect("it came"), "one\n");
    assert_eq!(std::fs::read_link(out.join("link")).expect("it came").to_str(), Some("file"));
    assert!(!out.join("new").exists());
    house.den(&["cp", "web@first:/srv/app/.", &format!("{to}/again")]).ok();
    assert!(out.join("again/file").is_file());
    house.den(&["cp", "web@first:/srv/app/link", &format!("{to}/alone")]).ok();
    assert!(out.join("alone").is_symlink());
    assert_eq!(house.den(&["cp", "-L", "web@first:/srv/app/link", "-"]).ok(), "one");
    house.den(&["cp", "web@first:/srv/app/.", "web:/srv/copy"]).ok();
    assert_eq!(house.sh("web", "cat /srv/copy/file").ok(), "one");
    house.den(&["cp", to, "web@first:/srv"]).refused(2, "kept state");

    let restored = house.den(&["restore", "web@first"]).ok();
    assert_eq!(house.sh("web", "cat /srv/app/file; ls /srv").ok(), "one\napp");
    undo(&house, &restored);
    assert_eq!(house.sh("web", "cat /srv/app/file; ls /srv").ok(), "two\napp\ncopy");

    house.den(&["restore", "web"]).refused(2, "den snaps web");
    house.den(&["restore", "web@no-such"]).refused(1, "no-such");
    assert!(house.den(&["snaps", "web"]).ok().contains("web@first"));
    house.den(&["snaps", "rm", "web@first"]).ok();
    house.den(&["cat", "web@first", "/srv/app/file"]).refused(1, "first");
}

#[test]
fn the_log_says_what_a_step_changed_and_blame_which_step_it_was() {
    let house = house();
    house.sh("web", "printf 'a\\nb\\n' > /root/file; echo said").ok();
    house.sh("web", "printf 'c\\n' >> /root/file; mkdir /root/dir").ok();
    house.sh("web", "cat /root/file").ok();
    eventually(Duration::from_secs(10), "the changes are counted", || {
        house.json(&["log", "web"]).as_array().expect("steps").iter().take(2).all(|step| step["changes"].is_object())
    });
    let ran = house.den(&["log", "web", "1"]);
    assert_eq!(ran.stdout, "said\n");
    assert!(ran.stderr.contains("+ /root/file"), "{}", ran.stderr);
    let files = house.den(&["log", "web", "2", "--files"]).ok();
    assert!(files.contains("~ /root/file") && files.contains("+ /root/dir/"), "{files}");
    assert_eq!(house.den(&["log", "web", "--path", "/root/dir"]).ok().lines().count(), 1);
    assert_eq!(house.den(&["log", "web", "--grep", "cat /root"]).ok().lines().count(), 1);
    assert_eq!(house.den(&["log", "web", "--grep", "no such words"]).ok(), "no such steps");
    assert!(house.den(&["blame", "web", "/root/file"]).ok().starts_with("step 2 "));
    let lines = house.den(&["blame", "web", "/root/file", "--lines"]).ok();
    assert!(lines.ends_with("1  a\n1  b\n2  c"), "{lines}");
}

#[test]
fn a_fork_is_compared_merged_and_its_conflicts_are_shown() {
    let house = house();
    house.sh("web", "printf 'a\\nb\\nc\\n' > /root/file; echo old > /root/gone").ok();
    assert_eq!(house.den(&["fork", "web", "try"]).ok(), "try");
    assert!(house.den(&["info", "try"]).ok().lines().any(|line| line.starts_with("parent") && line.contains("web@")));
    let none = house.den(&["diff", "try"]).ok();
    assert_eq!(none.lines().count(), 1, "no difference is one line: {none}");
    house.sh("try", "printf 'a\\nB\\nc\\n' > /root/file; rm /root/gone; echo x > /root/new; useradd tester").ok();
    let diff = house.den(&["diff", "try"]).ok();
    for line in ["~ /root/file  +1 -1 lines", "- /root/gone", "+ /root/new  2B"] {
        assert!(diff.lines().any(|seen| seen == line), "`{line}` in {diff}");
    }
    assert!(diff.lines().any(|line| line.starts_with("user") && line.contains("+ tester")), "{diff}");
    let text = house.den(&["diff", "try", "--text", "--path", "/root/file"]).ok();
    assert!(text.contains("-b\n+B"), "{text}");
    let cut = house.den(&["diff", "try", "-n", "1"]).ok();
    assert!(cut.lines().last().expect("a line").contains("--json"), "{cut}");
    assert!(house.json(&["diff", "try"])["files"].is_array());

    let dry = house.den(&["merge", "try", "--dry-run"]).ok();
    assert!(dry.contains("would come"), "{dry}");
    assert_eq!(house.sh("web", "cat /root/gone").ok(), "old");
    house.sh("web", "printf 'a\\nX\\nc\\n' > /root/file").ok();
    let ran = house.den(&["merge", "try"]).refused(1, "1 conflict; nothing was changed");
    for word in ["! /root/file  content", "  base  ", "  ours  ", "  theirs", "| <<<<<<<"] {
        assert!(ran.stdout.contains(word), "`{word}` in {}", ran.stdout);
    }
    assert!(ran.stderr.contains("--theirs"), "{}", ran.stderr);
    assert_eq!(house.sh("web", "cat /root/gone").ok(), "old");
    let merged = house.den(&["merge", "try", "--theirs", "/root/file"]).ok();
    assert!(merged.contains("merged from try into web, step"), "{merged}");
    let seen =
        house.sh("web", "cat /root/file; test -e /root/gone || echo gone; id -u tester > /dev/null && echo user");
    assert_eq!(seen.ok(), "a\nB\nc\ngone\nuser");
    undo(&house, &merged);
    assert_eq!(house.sh("web", "cat /root/file /root/gone").ok(), "a\nX\nc\nold");
    house.den(&["merge", "web"]).refused(1, "--into");

    house.den(&["fork", "try", "deeper"]).ok();
    let lineage = house.den(&["tree", "--lineage"]).ok();
    let seen: Vec<&str> = lineage.lines().map(|line| line.split("  from").next().expect("a part")).collect();
    assert_eq!(seen, ["web  running", "  try  running", "    deeper  running"]);
    house.den(&["rm", "try"]).ok();
    let family = house.den(&["tree", "--lineage", "deeper"]).ok();
    assert!(family.starts_with("try  gone\n  deeper"), "{family}");
}

#[test]
fn an_exploration_keeps_or_merges_the_best_and_removes_the_rest() {
    let house = house();
    let words = ["explore", "web", "-n", "3", "--run", "echo tried $DEN_FORK > /root/tried; echo some words"];
    let explored = house.json(&[&words[..], &["--score", "cut -d' ' -f2 /root/tried"]].concat());
    let best = explored["best"].as_str().expect("a best one");
    assert!(best.ends_with("-3"), "{explored}");
    assert_eq!(explored["forks"].as_array().expect("forks").len(), 3);
    assert_eq!(names(&house), set(&["web", best]));
    assert_eq!(house.sh(best, "cat /root/tried").ok(), "tried 3");
    house.den(&["rm", best]).ok();

    let script = "echo $DEN_FORK > /root/tried; test $DEN_FORK = 1";
    let merged = house.den(&["explore", "web", "-n", "2", "--run", script, "--merge"]).ok();
    assert!(merged.contains("exit 1") && merged.contains("merged from web-"), "{merged}");
    assert_eq!(house.sh("web", "cat /root/tried").ok(), "1");
    assert_eq!(names(&house), set(&["web"]));
    house.den(&["explore", "web", "-n", "2", "--run", "exit 3"]).refused(1, "every one failed");
    assert_eq!(names(&house), set(&["web"]));
    house.den(&["explore", "nobody", "--run", "true"]).refused(1, "nobody");
    house.den(&["explore", "web", "--run", ""]).refused(2, "--run");
}

#[test]
fn an_exploration_that_is_interrupted_leaves_nothing() {
    let house = house();
    for wait in [5, 40, 120, 600] {
        let child = house
            .command(&["explore", "web", "-n", "4", "--run", "sleep 60"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("den starts");
        std::thread::sleep(Duration::from_millis(wait));
        let since = Instant::now();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        let output = child.wait_with_output().expect("it ends");
        assert!(since.elapsed() < Duration::from_secs(20), "after {wait} ms");
        assert!(!output.status.success(), "after {wait} ms");
        // One that did not listen yet was ended by the signal itself, before it asked for forks.
        assert_eq!(names(&house), set(&["web"]), "after {wait} ms");
    }
}
