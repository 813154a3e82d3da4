//! The domain of a house: its SDKs by names, with TLS, as E2B's own are; in a mount namespace whose resolv.conf names
//! the house's responder, so that nothing of the host is changed.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use den_testkit::{House, Options};
use serde_json::{Value, json};

use super::{DEN, ask, ran, sdk};

/// What has names asked for where a file says, and nowhere else.
const INSIDE: &str = r#"mount --bind "$DEN_RESOLV" /etc/resolv.conf || exit 1
if test -e /etc/nsswitch.conf; then mount --bind "$DEN_NSSWITCH" /etc/nsswitch.conf || exit 1; fi
exec "$@""#;

/// A house with a domain, and with these words beside.
pub(super) fn house(further: &[&str]) -> House {
    House::with(DEN, with(&[&["--e2b-domain", "e2b.test:0"], further].concat()))
}

fn with(args: &[&str]) -> Options {
    Options { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..Options::default() }
}

fn variables(house: &House) -> Value {
    house.json(&["e2b", "env", "--tls"])
}

/// A program that finds the house by its names, with what `den e2b env --tls` prints and nothing else.
pub(super) fn command(house: &House, program: &Path) -> Command {
    let said = house.den(&["e2b", "env", "--tls"]).ok();
    let server = said.lines().find_map(|line| line.strip_prefix("#   nameserver ")).expect("whom to ask");
    let folder = house.scratch();
    let (resolv, nsswitch) = (folder.join("resolv.conf"), folder.join("nsswitch.conf"));
    std::fs::write(&resolv, format!("nameserver {server}\n")).expect("resolv.conf");
    std::fs::write(&nsswitch, "hosts: files dns\n").expect("nsswitch.conf");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh"]).arg(program);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b"));
    command.env("DEN_RESOLV", resolv).env("DEN_NSSWITCH", nsswitch).env("PYTHONDONTWRITEBYTECODE", "1");
    for name in ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL", "SSL_CERT_DIR"] {
        command.env_remove(name);
    }
    let variables = variables(house);
    for (name, value) in variables.as_object().expect("variables") {
        command.env(name, value.as_str().expect("a text"));
    }
    command
}

fn python(house: &House, version: &str) {
    let program = sdk(&format!("py-{version}")).join("bin/python");
    let words = ["-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", "test_names.py"];
    ran(command(house, &program).args(words));
}

fn javascript(house: &House, version: &str) {
    let root = sdk(&format!("js-{version}"));
    ran(command(house, Path::new("node")).env("DEN_E2B_SDK", root).args(["--test", "names.mjs"]));
}

#[test]
fn names_python_and_javascript() {
    let house = house(&[]);
    for version in ["2.63.0", "2.45.0"] {
        python(&house, version);
    }
    for version in ["2.51.0", "2.45.0"] {
        javascript(&house, version);
    }
    house.close();
}

fn text(variables: &Value, name: &str) -> String {
    variables[name].as_str().unwrap_or_else(|| panic!("{name} in {variables}")).to_owned()
}

#[test]
fn names_of_two_houses_do_not_meet() {
    let (mut one, two) = (house(&[]), house(&[]));
    let (first, second) = (variables(&one), variables(&two));
    for name in ["E2B_DOMAIN", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "E2B_API_KEY"] {
        assert_ne!(first[name], second[name], "{name}");
    }
    // Each answers for its own, trusted by its own authority alone.
    let fetch = |house: &House, trusted: &Value| {
        let health = format!("https://api.{}/health", text(&variables(house), "E2B_DOMAIN"));
        let mut curl = command(house, Path::new("curl"));
        curl.args(["--silent", "--fail", "--cacert", &text(trusted, "NODE_EXTRA_CA_CERTS"), &health]);
        curl.output().expect("curl").status.code()
    };
    assert_eq!((fetch(&one, &first), fetch(&two, &second)), (Some(0), Some(0)));
    assert_eq!((fetch(&one, &second), fetch(&two, &first)), (Some(60), Some(60)), "the other's authority");
    // Who comes by an address is told the domain too.
    let made = ask(&one, "POST", "/v2/sandboxes", &json!({ "templateID": "base", "timeout": 60 })).1;
    assert_eq!(made["domain"], first["E2B_DOMAIN"]);
    let shown = ask(&one, "GET", &format!("/sandboxes/{}", made["sandboxID"].as_str().expect("an id")), &Value::Null).1;
    assert_eq!(shown["domain"], first["E2B_DOMAIN"]);
    // What clients read is for all; the key is its owner's.
    let (ca, data) = (PathBuf::from(text(&first, "NODE_EXTRA_CA_CERTS")), one.data());
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode(&ca), mode(ca.parent().expect("a folder"))), (0o644, 0o755));
    assert_eq!((mode(&data.join("e2b-ca.e2b.test.pem")), mode(&data.join("e2b.json"))), (0o600, 0o600));
    // The authority outlives the daemon.
    let before = std::fs::read(&ca).expect("a certificate");
    one.kill_serve();
    one.start();
    assert_eq!(std::fs::read(&ca).expect("a certificate"), before);
    assert_eq!(fetch(&one, &first), Some(0));
    one.close();
    two.close();
    assert!(!ca.exists(), "it goes with the house");
}

/// What a start says that comes to nothing.
fn refused(args: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut serve = Command::new(DEN);
    serve.arg("serve").arg("--data").arg(folder.path().join("data")).arg("--run").arg(folder.path().join("run"));
    let output = serve.args(["--listen", "127.0.0.1:0"]).args(args).output().expect("den serve");
    assert!(!output.status.success(), "{args:?}");
    assert!(!folder.path().join("run-e2b").exists(), "{args:?}: nothing is left");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn names_that_cannot_be_had_are_said_at_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let asked = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let dns = asked.local_addr().expect("an address").to_string();
    let domain = format!("e2b.test:{port}");
    for (args, words) in [
        (&["--e2b-domain", &domain][..], ["cannot listen on", "--e2b-domain e2b.test:PORT"]),
        (&["--e2b-domain", "e2b.test:0", "--e2b-dns", &dns], ["cannot answer for e2b.test", "--e2b-dns 127.0.5.4"]),
        (&["--e2b-domain", "e2b.test:0", "--e2b-dns", "192.0.2.1"], ["no address of this host", "--e2b-dns off"]),
        (&["--e2b-domain", "e2b.test"], ["there is no port", "e2b.test:8443"]),
        (&["--e2b-domain", "https://e2b.test:1"], ["it is a URL", "e2b.test:8443"]),
        (&["--e2b-domain", "co.uk:8443"], ["public suffix", "e2b.co.uk:8443"]),
        (&["--e2b-domain", "e2b.test:1", "--no-e2b"], ["`no_e2b`", "leave out one"]),
    ] {
        let said = refused(args);
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
}

#[test]
fn names_are_for_houses_that_have_a_domain() {
    let house = House::open(DEN);
    house.den(&["e2b", "env", "--tls"]).refused(1, "den serve --e2b-domain e2b.test:8443");
    house.den(&["e2b", "env", "--tls", "--domain", "x.test"]).refused(2, "cannot be used with");
    assert!(house.den(&["e2b", "env"]).ok().contains("export E2B_API_URL=http://127.0.0.1:"));
    house.close();
}
