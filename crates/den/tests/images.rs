//! Images: imported in each form, refused where they are broken or hostile, kept while in use.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use den_testkit::{House, Options, eventually, images};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");

/// A house with an image store of its own, empty; and a small root folder.
fn house() -> (House, tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("den-images-").tempdir().expect("a folder");
    let root = folder.path().join("root");
    images::small_root(&root);
    let house = House::with(DEN, Options { images: Some(folder.path().join("store")), ..Options::default() });
    (house, folder, root)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn names(house: &House) -> Vec<String> {
    let list = house.api().get("/v1/images").expect(200).json();
    let mut names: Vec<String> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["name"].as_str().expect("a name").to_owned())
        .collect();
    names.sort();
    names
}

fn tar(root: &Path, to: &Path, flags: &[&str]) {
    let status = Command::new("tar").args(flags).arg("-C").arg(root).arg("-cf").arg(to).arg(".").status().expect("tar");
    assert!(status.success());
}

fn python(script: &str) {
    let output = Command::new("python3").args(["-c", script]).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Uploads a layer or archive; the job's last event.
fn upload(house: &House, name: &str, bytes: &[u8]) -> Value {
    let reply = house.api().request(
        "POST",
        &format!("/v1/images/import?name={name}"),
        &[("content-type", "application/octet-stream")],
        bytes,
    );
    let last = reply.text().lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned();
    serde_json::from_str(&last).unwrap_or_else(|e| panic!("{e}: {}", reply.text()))
}

#[test]
fn a_folder_and_a_tar_become_images_that_run() {
    let (house, folder, root) = house();
    assert!(names(&house).is_empty());
    house.den(&["image", "import", text(&root), "folder"]).ok();
    let plain = folder.path().join("root.tar");
    tar(&root, &plain, &[]);
    house.den(&["image", "import", text(&plain), "plain"]).ok();
    let packed = folder.path().join("root.tar.gz");
    tar(&root, &packed, &["-z"]);
    house.den(&["image", "import", text(&packed), "packed"]).ok();
    assert_eq!(upload(&house, "streamed", &std::fs::read(&plain).expect("a tar"))["type"], "done");
    assert_eq!(names(&house), ["folder", "packed", "plain", "streamed"]);
    house.api().post("/v1/computers", &json!({"image": "plain", "entrypoint": true})).refusal(400, "bad_request");
    for image in names(&house) {
        house.den(&["new", "c", "--image", &image]).ok();
        assert_eq!(house.sh("c", "id -u; stat -c %u /bin/sh").ok(), "0\n0", "{image}");
        house.den(&["rm", "c"]).ok();
    }
    // The same bytes are kept once.
    let digest = |image: &str| house.json(&["image", "info", image])["digest"].clone();
    assert_eq!(digest("plain"), digest("packed"));
    assert_eq!(
        std::fs::read_dir(folder.path().join("store/layers")).expect("layers").count(),
        2,
        "a tar's layer and the folder's"
    );
}

/// Writes a docker-save archive with two layers and a config, by hand.
fn docker_save(root: &Path, to: &Path) {
    python(&format!(
        r#"
import hashlib, io, json, os, subprocess, tarfile
root, to = {root:?}, {to:?}
one = subprocess.run(['tar', '-C', root, '-cf', '-', '.'], check=True, stdout=subprocess.PIPE).stdout
buf = io.BytesIO(); t = tarfile.open(fileobj=buf, mode='w')
def add(name, data=b'', **kw):
    i = tarfile.TarInfo(name); i.size = len(data)
    for k, v in kw.items(): setattr(i, k, v)
    t.addfile(i, io.BytesIO(data))
add('etc/second', b'second layer\n', mode=0o640, uid=33, gid=33)
add('bin/.wh.sleep')
add('opt', type=tarfile.DIRTYPE, mode=0o755)
add('opt/.wh..wh..opq')
add('opt/new', b'new\n')
t.close(); two = buf.getvalue()
sha = lambda b: hashlib.sha256(b).hexdigest()
config = json.dumps(dict(architecture='amd64', os='linux', rootfs=dict(type='layers', diff_ids=['sha256:'+sha(one), 'sha256:'+sha(two)]),
    config=dict(Env=['PATH=/bin:/usr/bin', 'GREETING=hello'], Cmd=['sh', '-c', 'echo $GREETING from the image; sleep 1000'], WorkingDir='/opt'))).encode()
manifest = json.dumps([dict(Config=sha(config)+'.json', RepoTags=['two:latest'], Layers=['one/layer.tar', 'two/layer.tar'])]).encode()
with tarfile.open(to, 'w') as t:
    for name, data in ((sha(config)+'.json', config), ('one/layer.tar', one), ('two/layer.tar', two), ('manifest.json', manifest)):
        i = tarfile.TarInfo(name); i.size = len(data); t.addfile(i, io.BytesIO(data))
"#,
        root = text(root),
        to = text(to)
    ));
}

#[test]
fn a_docker_archive_keeps_layers_whiteouts_and_configuration() {
    let (house, folder, root) = house();
    std::fs::create_dir_all(root.join("opt")).expect("a folder");
    std::fs::write(root.join("opt/old"), "old\n").expect("a file");
    let archive = folder.path().join("save.tar");
    docker_save(&root, &archive);
    house.den(&["image", "import", text(&archive), "two"]).ok();
    let info = house.json(&["image", "info", "two"]);
    assert_eq!(info["layers"], 2, "{info}");
    house.den(&["new", "c", "--image", "two", "--entrypoint"]).ok();
    assert_eq!(
        house.sh("c", "pwd; cat /etc/second; stat -c '%a %u' /etc/second; ls /opt; echo $GREETING").ok(),
        "/opt\nsecond layer\n640 33\nnew\nhello"
    );
    house.sh("c", "test -e /bin/sleep || test -e /usr/bin/sleep");
    house.den(&["exec", "c", "--", "ls", "/bin/sleep"]).refused(2, "No such file");
    eventually(Duration::from_secs(60), "the image's command ran", || {
        house.den(&["log", "c", "1"]).stdout.starts_with("hello from the image")
    });
    let step = house.api().get("/v1/computers/c/steps/1").expect(200).json();
    assert_eq!(step["kind"], "entrypoint");
}

#[test]
fn an_image_in_use_is_kept() {
    let (house, _folder, root) = house();
    house.den(&["image", "import", text(&root), "small"]).ok();
    house.den(&["new", "c", "--image", "small"]).ok();
    let info = house.json(&["image", "info", "small"]);
    assert_eq!(info["used_by"], json!(["c"]));
    house.den(&["image", "rm", "small"]).refused(1, "c");
    house.api().delete("/v1/images/small").refusal(409, "image_in_use");
    assert_eq!(house.sh("c", "echo well").ok(), "well");
    house.den(&["rm", "c"]).ok();
    house.den(&["image", "rm", "small"]).ok();
    assert!(names(&house).is_empty());
    house.den(&["new", "c", "--image", "small"]).refused(1, "den image");
    house.api().delete("/v1/images/small").refusal(404, "image_not_found");
    house.den(&["image", "info", "small"]).refused(1, "small");
}

#[test]
fn a_broken_or_hostile_layer_is_refused_and_leaves_nothing() {
    let (house, folder, _root) = house();
    let victim = folder.path().join("victim");
    std::fs::write(&victim, "safe\n").expect("a file");
    let make = |entries: &str| -> Vec<u8> {
        let file = folder.path().join("layer.tar");
        python(&format!(
            "import tarfile,io\nt=tarfile.open({:?},'w')\ndef add(n,d=b'',**k):\n i=tarfile.TarInfo(n);i.size=len(d)\n for a,b in k.items(): setattr(i,a,b)\n t.addfile(i,io.BytesIO(d))\n{entries}\nt.close()",
            text(&file)
        ));
        std::fs::read(&file).expect("a tar")
    };
    let check = |what: &str, bytes: &[u8], code: &str| {
        let last = upload(&house, "bad", bytes);
        assert_eq!(
            (last["type"].as_str(), last["error"]["code"].as_str()),
            (Some("failed"), Some(code)),
            "{what}: {last}"
        );
        assert!(names(&house).is_empty(), "{what}");
    };
    check("a climbing path", &make("add('../../../../tmp/den-climbed',b'x')"), "image_bad_layer");
    let links =
        format!("add('out',type=tarfile.SYMTYPE,linkname={:?})\nadd('out/victim',b'stolen')", text(folder.path()));
    upload(&house, "links", &make(&links));
    assert_eq!(
        std::fs::read_to_string(&victim).expect("text"),
        "safe\n",
        "a link inside a layer leads nowhere outside"
    );
    let hard = format!("add('hard',type=tarfile.LNKTYPE,linkname='../../../../..{}')", text(&victim));
    let last = upload(&house, "hard", &make(&hard));
    assert_eq!(last["type"], "failed", "{last}");
    for name in names(&house) {
        house.den(&["image", "rm", &name]).ok();
    }
    let good = make("add('etc/x',b'x'*100000)");
    check("a cut archive", &good[..good.len() / 2], "image_bad_layer");
    check(
        "no archive",
        b"this is no archive at all, and long enough to be looked at".repeat(40).as_slice(),
        "image_bad_layer",
    );
    check("nothing", b"", "image_bad_layer");
    // A bomb: 6 GiB of zeros in some megabytes.
    let bomb = folder.path().join("bomb.tar.gz");
    let script = format!(
        "(head -c 512 /dev/zero; :) >/dev/null; python3 - <<'P' | gzip -1 > {}\nimport sys,tarfile\ni=tarfile.TarInfo('zeros');i.size=6<<30\nsys.stdout.buffer.write(i.tobuf(tarfile.PAX_FORMAT))\nb=bytes(1<<20)\nfor _ in range(6<<10): sys.stdout.buffer.write(b)\nsys.stdout.buffer.write(bytes(1024))\nP",
        text(&bomb)
    );
    assert!(Command::new("sh").args(["-c", &script]).status().expect("sh").success());
    check("a bomb", &std::fs::read(&bomb).expect("a bomb"), "image_too_large");
    assert!(!Path::new("/tmp/den-climbed").exists());
    let tmp = folder.path().join("store/tmp");
    assert_eq!(std::fs::read_dir(&tmp).map_or(0, Iterator::count), 0, "nothing half made is left");
    let layers = folder.path().join("store/layers");
    assert_eq!(std::fs::read_dir(layers).map_or(0, Iterator::count), 0, "no layer is left");
}

#[test]
fn what_cannot_be_fetched_says_so() {
    let (house, folder, _root) = house();
    house.den(&["image", "import", "/no/such/file", "x"]).refused(1, "/no/such/file");
    // A registry that is not there.
    house.den(&["image", "pull", "localhost:9/no/such:tag"]).refused(1, "error:");
    let bad = house.api().post("/v1/images/pull", &json!({"reference": "UPPER CASE"}));
    assert!(bad.status == 400 || bad.text().contains("\"failed\""), "{}", bad.text());
    house.api().get("/v1/images/none").refusal(404, "image_not_found");
    assert!(names(&house).is_empty());
    assert!(folder.path().join("store").is_dir());
}
