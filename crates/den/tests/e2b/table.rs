//! docs/E2B.md's table of every method, against the newest SDKs: what they have anew is missing there, and fails.

use std::path::Path;
use std::process::Command;

use super::{ran, sdk};

#[test]
fn python_the_table_has_every_method() {
    let declarations = sdk("js-2.51.0").join("node_modules/e2b/dist/index.d.ts");
    let desktop = sdk("desktop-js-2.4.0").join("node_modules/@e2b/desktop/dist/index.d.ts");
    // It has the newest SDK itself, too.
    let mut command = Command::new(sdk("desktop-py-2.7.2").join("bin/python"));
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b"))
        .args(["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "test_table.py"])
        .env("DEN_E2B_DECLARATIONS", declarations)
        .env("DEN_E2B_DESKTOP", desktop)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    ran(&mut command);
}
