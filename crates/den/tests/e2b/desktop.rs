//! The desktop: its template, built as a user builds it, and E2B's own SDKs for it.

use std::path::Path;

use den_testkit::House;

use super::{DEN, command, ran, sdk};

const BUILD: [&str; 3] = ["e2b", "template", "desktop"];

fn python(house: &House, version: &str, tests: &str) {
    let program = sdk(&format!("desktop-py-{version}")).join("bin/python");
    let words = ["-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", "test_desktop.py", "-k", tests];
    ran(command(house, &program).args(words));
}

fn javascript(house: &House, version: &str) {
    let root = sdk(&format!("desktop-js-{version}"));
    ran(command(house, Path::new("node")).env("DEN_E2B_SDK", root).args(["--test", "desktop.mjs"]));
}

/// One test, for the template is built of packages that come from their mirror.
#[test]
fn desktop_python_and_javascript_are_run() {
    let house = House::open(DEN);
    for words in [["--pip", "scipy"], ["--apt", "gimp;id"]] {
        assert_eq!(house.den(&[&BUILD[..], &words].concat()).code, 2);
    }
    assert_eq!(house.den(&BUILD).ok(), "desktop");
    python(&house, "2.7.2", "test");
    python(&house, "2.4.4", "screen or keys");
    javascript(&house, "2.4.0");
    javascript(&house, "2.3.3");
    // What an earlier build did is not done again.
    let more = house.den(&[&BUILD[..], &["--apt", "xclip"]].concat());
    assert!(more.code == 0 && more.stderr.contains("CACHED"), "{}", more.stderr);
    house.close();
}
