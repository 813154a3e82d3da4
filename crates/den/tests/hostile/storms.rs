//! Attacks of `crates/den/attacks` at full force, for some seconds each: the neighbour is served, others
//! come and go meanwhile, the attacker takes commands afterwards, and the host is as it was. How much slower
//! the neighbour is says the bench, with the same files.

use std::collections::BTreeMap;
use std::time::Duration;

use den_testkit::eventually;

use crate::world::{Attack, World, kernel_complaints, settings};

macro_rules! storm {
    ($world:expr, $($name:literal)*) => {
        $($world.storm($name, include_str!(concat!("../../attacks/", $name, ".py")));)*
    };
}

/// A world whose host is looked at before and after.
struct Storms {
    world: World,
    settings: BTreeMap<String, String>,
    complaints: Vec<String>,
}

impl Storms {
    fn new() -> Self {
        Self { world: World::new(), settings: settings(), complaints: kernel_complaints() }
    }

    fn storm(&self, name: &str, script: &str) -> Attack {
        let house = &self.world.house;
        let attack = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                for _ in 0..2 {
                    house.den(&["new", "other", "--memory", "128MiB"]).ok();
                    assert_eq!(house.sh("other", "echo here").ok(), "here", "beside {name}");
                    house.den(&["rm", "other"]).ok();
                }
            });
            let attack = self.world.attack(script, 3);
            others.join().expect("others come and go");
            attack
        });
        assert!(attack.said.contains("round "), "{name} went on: {attack:?}");
        eventually(Duration::from_secs(30), "it takes commands again", || {
            house.sh("c", "echo on").stdout.trim() == "on"
        });
        // What it left goes with it, and holds up nobody.
        house.den(&["rm", "c"]).ok();
        assert_eq!(house.sh("n", "cat /root/mine").ok(), "mine", "after {name}");
        self.world.new_attacker();
        attack
    }

    fn host_is_as_it_was(self) {
        let now = settings();
        let changed: Vec<_> = self.settings.iter().filter(|(path, value)| now.get(*path) != Some(value)).collect();
        assert!(changed.is_empty(), "settings of the host were other: {changed:?}");
        let complaints: Vec<_> =
            kernel_complaints().into_iter().filter(|line| !self.complaints.contains(line)).collect();
        assert!(complaints.is_empty(), "the kernel complains: {complaints:#?}");
        // The house looks for processes, mounts, cgroups and links when it ends.
        self.world.house.close();
    }
}

#[test]
fn storms_in_memory_leave_neighbour_and_host_whole() {
    let storms = Storms::new();
    storm!(storms, "memory" "cache" "descriptors" "sockets" "watches" "terminals");
    storms.host_is_as_it_was();
}

#[test]
fn storms_on_the_disk_leave_neighbour_and_host_whole() {
    let storms = Storms::new();
    // A flood of output is in log.rs, where nobody reads it.
    storm!(storms, "disk" "files" "flushes" "locks");
    storms.host_is_as_it_was();
}

#[test]
fn storms_of_namespaces_leave_neighbour_and_host_whole() {
    let storms = Storms::new();
    let attack = storms.storm("namespaces", include_str!("../../attacks/namespaces.py"));
    assert!((1..=32).contains(&attack.number("deep")), "they nest, to a limit: {attack:?}");
    storm!(storms, "links" "packets" "cgroups");
    storms.host_is_as_it_was();
}

#[test]
fn storms_of_mounts_leave_neighbour_and_host_whole() {
    let storms = Storms::new();
    let attack = storms.storm("mounts", include_str!("../../attacks/mounts.py"));
    assert!(attack.said.contains("doubled 8\n"), "it may mount: {attack:?}");
    storms.host_is_as_it_was();
}

#[test]
fn storms_of_refused_calls_leave_neighbour_and_host_whole() {
    let storms = Storms::new();
    storm!(storms, "keys" "probes");
    storms.host_is_as_it_was();
}
