//! Keeps the maps honest: promises name tests that are there, and crates point the way the
//! architecture says.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn each_promise_has_its_test() {
    let promises = fs::read_to_string(root().join("docs/PROMISES.md")).expect("docs/PROMISES.md");
    let mut named = 0;
    for line in promises.lines().filter(|line| line.starts_with("| ") && line.contains("::")) {
        for name in line.split('`').filter(|part| part.contains("::")) {
            // `file::test`, `folder::file::test`, or `folder::file` for all tests of it.
            let parts: Vec<&str> = name.split("::").collect();
            let tests = root().join("crates/den/tests");
            let (path, wanted) = match parts[..] {
                [folder, file] if tests.join(folder).join(format!("{file}.rs")).is_file() => {
                    (tests.join(folder).join(format!("{file}.rs")), "#[test]\n".to_owned())
                }
                [file, test] => (tests.join(format!("{file}.rs")), format!("#[test]\nfn {test}()")),
                [folder, file, test] => {
                    (tests.join(folder).join(format!("{file}.rs")), format!("#[test]\nfn {test}()"))
                }
                _ => panic!("docs/PROMISES.md names `{name}`, which is no test"),
            };
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                text.contains(&wanted),
                "docs/PROMISES.md names `{name}`, which is no test in {}: mend one of them",
                path.display()
            );
            named += 1;
        }
    }
    assert!(named > 20, "docs/PROMISES.md names {named} tests");
}

#[test]
fn crates_point_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("den-model", &[]),
        ("den-wire", &[]),
        ("den-sys", &[]),
        ("den-api", &["den-model"]),
        ("den-backup", &["den-model", "den-sys"]),
        ("den-image", &["den-model", "den-sys"]),
        ("den-disk", &["den-model", "den-sys"]),
        ("den-store", &["den-model", "den-sys"]),
        ("den-history", &["den-api", "den-sys", "den-wire"]),
        ("den-machine", &["den-model", "den-sys", "den-wire"]),
        ("den-relay", &[]),
        ("den-gate", &["den-model", "den-sys", "den-wire"]),
        ("den-agent", &["den-relay", "den-sys", "den-wire"]),
        (
            "den-control",
            &[
                "den-api",
                "den-backup",
                "den-disk",
                "den-gate",
                "den-history",
                "den-image",
                "den-machine",
                "den-model",
                "den-relay",
                "den-store",
                "den-sys",
                "den-wire",
            ],
        ),
        ("den-server", &["den-api", "den-control", "den-model"]),
        ("den-e2b", &["den-api", "den-control", "den-model", "den-sys"]),
    ];
    for (name, arrows) in allowed {
        let path = root().join("crates").join(name).join("Cargo.toml");
        let text = fs::read_to_string(&path).expect("a manifest");
        let dependencies =
            text.split("[dependencies]").nth(1).expect("dependencies").split("\n[").next().expect("some");
        for line in dependencies.lines().filter(|line| line.starts_with("den-")) {
            let other = line.split(['.', ' ', '=']).next().expect("a name");
            assert!(
                arrows.contains(&other),
                "{name} points to {other}: docs/ARCHITECTURE.md has no such arrow; say there and here why it is needed"
            );
        }
    }
}
