//! The code interpreter: its template, built as a user builds it, and E2B's own SDKs for it.

use std::path::Path;

use den_testkit::House;

use super::{CRIU, command, names, ran, sdk};

const BUILD: [&str; 3] = ["e2b", "template", "code-interpreter"];

fn python(house: &House, version: &str, file: &str) {
    let program = sdk(&format!("code-py-{version}")).join("bin/python");
    let words = ["-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", file];
    ran(command(house, &program).args(words));
}

/// A version that asks for `https://49999-ID.DOMAIN` whatever address it is given.
fn python_by_name(house: &House, version: &str) {
    let program = sdk(&format!("code-py-{version}")).join("bin/python");
    let words = ["-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", "test_code.py"];
    ran(names::command(house, &program).args(words).args(["-k", "state or contexts or async or javascript"]));
}

fn javascript(house: &House, version: &str) {
    let root = sdk(&format!("code-js-{version}"));
    ran(command(house, Path::new("node")).env("DEN_E2B_SDK", root).args(["--test", "code.mjs"]));
}

/// One test, for the template is built of packages that come from their registries.
#[test]
fn code_python_and_javascript_are_run() {
    let house = names::house(&["--criu", CRIU]);
    let failed = house.den(&[&BUILD[..], &["--from", "no-such-image"]].concat());
    assert!(failed.code == 1 && failed.stderr.contains("den image pull no-such-image"), "{}", failed.stderr);
    assert_eq!(house.den(&[&BUILD[..], &["--pip", "-r"]].concat()).code, 2);
    assert_eq!(house.den(&BUILD).ok(), "code-interpreter-v1");
    python(&house, "2.11.5", "test_code.py");
    python(&house, "2.9.2", "test_code.py");
    python_by_name(&house, "2.4.1");
    javascript(&house, "2.8.0");
    javascript(&house, "2.7.0");
    let again = house.den(&[&BUILD[..], &["--with", "java"]].concat());
    assert!(again.code == 0 && again.stderr.contains("CACHED"), "{}", again.stderr);
    python(&house, "2.11.5", "test_code_java.py");
    house.close();
}
