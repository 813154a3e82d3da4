//! A short soak: random operations and kills against a model. The long one is `cargo xtask soak`.

use std::path::Path;
use std::time::Duration;

use den_testkit::House;
use den_testkit::soak::{Plan, run};

const CRIU: &str = "/var/cache/den/criu/criu";
const DEN: &str = env!("CARGO_BIN_EXE_den");

#[test]
fn nothing_is_lost_and_nothing_leaks_over_random_operations_and_kills() {
    assert!(Path::new(CRIU).is_file(), "no {CRIU}: `cargo xtask test` fetches it");
    let criu = Some(CRIU.into());
    let plan = Plan { den: DEN.to_owned(), seed: 1, time: Duration::ZERO, clients: 3, rounds: 5, kills: true, criu };
    let report = run(&plan, |line| println!("{line}")).unwrap_or_else(|why| panic!("{why}"));
    assert!(report.operations >= 150, "{report:?}");
    assert!(report.kills.contains_key("serve"), "{report:?}");
}

/// Found by a soak: what was kept after such a restart went by the number of the step before the restore.
#[test]
fn after_a_restore_and_a_kill_the_older_step_is_what_it_was() {
    let mut house = House::open(DEN);
    house.new_computer("web");
    house.sh("web", "mkdir /root/soak").ok();
    house.den(&["snap", "web", "empty"]).ok();
    house.sh("web", "echo two > /root/soak/file").ok();
    assert_eq!(house.den(&["cat", "web@2:/root/soak/file"]).ok(), "two");
    house.den(&["restore", "web@empty"]).ok();
    house.restart();
    house.den(&["snap", "web", "after"]).ok();
    house.den(&["fork", "web", "try"]).ok();
    assert_eq!(house.den(&["cat", "web@2:/root/soak/file"]).ok(), "two");
    assert_eq!(house.sh("try", "ls /root/soak").ok(), "");
    house.den(&["restore", "web@2"]).ok();
    assert_eq!(house.sh("web", "cat /root/soak/file").ok(), "two");
}
