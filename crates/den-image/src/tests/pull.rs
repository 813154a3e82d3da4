//! Pulling from a registry that runs in the test: good, broken, slow to trust.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{Oci, Tar, assert_clean, digest, gzip, oci, store};
use crate::{Image, ImageError, ImageStore, ProgressEvent};

const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What the registry does wrong.
#[derive(Default, Clone)]
struct Faults {
    /// Every answer to a blob ends after so many bytes.
    cut_blobs_after: Option<usize>,
    /// Ranges are ignored, as some registries do.
    no_ranges: bool,
    /// Every request is answered with this.
    status: Option<(u16, &'static str)>,
    /// Blobs have other bytes than promised.
    wrong_blobs: bool,
    /// The manifest too.
    wrong_manifest: bool,
    /// Wants the user `u` with the password `p`.
    login: bool,
}

struct Registry {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Registry {
    fn start(oci: &Oci, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"mediaType": "x", "digest": format!("sha256:{}", "0".repeat(64)), "size": 1,
             "platform": {"os": "linux", "architecture": "vax"}},
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&oci.manifest),
             "size": oci.manifest.len(), "platform": {"os": "linux", "architecture": crate::oci::architecture()}},
        ]});
        let mut files = HashMap::new();
        files.insert("/v2/lib/app/manifests/latest".to_owned(), oci.manifest.clone());
        files.insert("/v2/lib/app/manifests/index".to_owned(), serde_json::to_vec(&index).unwrap());
        files.insert(format!("/v2/lib/app/manifests/{}", digest(&oci.manifest)), oci.manifest.clone());
        for blob in &oci.blobs {
            files.insert(format!("/v2/lib/app/blobs/{}", digest(blob)), blob.clone());
        }
        let (seen, stopping) = (requests.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let files = Arc::new(files);
            let mut handlers = Vec::new();
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let (files, faults, seen) = (files.clone(), faults.clone(), seen.clone());
                handlers.push(thread::spawn(move || drop(answer(stream.unwrap(), &files, &faults, &seen))));
            }
            handlers.into_iter().for_each(|handler| handler.join().unwrap());
        });
        Self { address, requests, stop, thread: Some(thread) }
    }

    fn blob_requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().filter(|line| line.contains("/blobs/")).cloned().collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers one request and closes, so that a cut is a cut.
fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    faults: &Faults,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(Ok(first)) = lines.next() else { return Ok(()) };
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        headers.iter().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)))
    };
    let range = header("range").map(|(_, value)| value.to_owned());
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push(format!("{path} {}", range.clone().unwrap_or_default()));
    let mut reply = |status: &str, extra: &str, body: &[u8], sent: usize| {
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n")?;
        stream.write_all(&body[..sent.min(length)])?;
        stream.flush()
    };
    if faults.login && header("authorization").is_none_or(|(_, value)| value != "Basic dTpw") {
        return reply("401 Unauthorized", "WWW-Authenticate: Basic realm=\"test\"\r\n", b"", 0);
    }
    if let Some((status, body)) = faults.status {
        return reply(&format!("{status} No"), "", body.as_bytes(), usize::MAX);
    }
    if path == "/v2/" {
        return reply("200 OK", "", b"{}", usize::MAX);
    }
    let Some(file) = files.get(&path) else {
        return reply(
            "404 Not Found",
            "",
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#,
            usize::MAX,
        );
    };
    if path.contains("/manifests/") {
        let mut file = file.clone();
        if faults.wrong_manifest {
            file.push(b' ');
        }
        return reply("200 OK", "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n", &file, usize::MAX);
    }
    let mut file = file.clone();
    if faults.wrong_blobs {
        file[0] ^= 0xff;
    }
    // A configuration is small, and cutting it is another test than cutting a layer.
    let cut = if file[0] == b'{' { usize::MAX } else { faults.cut_blobs_after.unwrap_or(usize::MAX) };
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if !faults.no_ranges => {
            let extra = format!("Content-Range: bytes {from}-{}/{}\r\n", file.len() - 1, file.len());
            reply("206 Partial Content", &extra, &file[from..], cut)
        }
        _ => reply("200 OK", "", &file, cut),
    }
}

fn image() -> Oci {
    // Bytes that do not compress, so that a blob has a length worth cutting.
    let noise = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..300_000).map(next).collect()
    };
    let tars: Vec<_> = (1..=4).map(|n| Tar::new().file(&format!("etc/{n}"), &noise(n)).end()).collect();
    oci(&tars, gzip, GZIP)
}

fn pull(store: &ImageStore, reference: &str) -> Result<Arc<Image>, ImageError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, reference) = (store.clone(), reference.to_owned());
    // Spawned as a server spawns it, so that it must be `Send`.
    let pull = async move { store.pull(&reference, Arc::new(crate::Quiet)).await };
    runtime.block_on(async { tokio::spawn(pull).await.unwrap() })
}

#[test]
fn a_pull_brings_an_image_and_a_second_one_only_asks() {
    let (_guard, store) = store();
    let oci = image();
    let registry = Registry::start(&oci, Faults::default());
    let reference = format!("{}/lib/app:index", registry.address);
    let image = pull(&store, &reference).unwrap();
    assert_clean(&store);
    assert_eq!(image.digest, digest(&oci.manifest));
    assert_eq!((image.layers.len(), image.name.as_str()), (4, reference.as_str()));
    assert_eq!(fs::metadata(image.layers[0].join("etc/4")).unwrap().len(), 300_000);
    assert_eq!(image.config.working_dir.as_deref(), Some("/w"));
    assert_eq!(registry.blob_requests().len(), 5);
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let progress = Arc::new(move |event: ProgressEvent| heard.lock().unwrap().push(event));
    let by_digest = format!("{}/lib/app@{}", registry.address, image.digest);
    runtime.block_on(store.pull(&by_digest, progress)).unwrap();
    assert_eq!(registry.blob_requests().len(), 6, "the configuration alone");
    let kept = |event: &&ProgressEvent| matches!(event, ProgressEvent::Layer { action, .. } if action == "kept");
    assert_eq!(events.lock().unwrap().iter().filter(kept).count(), 4);
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn a_blob_that_is_cut_goes_on_where_it_was() {
    let (_guard, store) = store();
    let registry = Registry::start(&image(), Faults { cut_blobs_after: Some(120_000), ..Faults::default() });
    pull(&store, &format!("{}/lib/app", registry.address)).unwrap();
    assert!(registry.blob_requests().iter().any(|line| line.contains("bytes=120000-")));
    assert_clean(&store);
}

#[test]
fn a_later_pull_goes_on_where_an_earlier_one_gave_up() {
    let (_guard, store) = store();
    let oci = image();
    {
        // Without ranges each try begins anew and is cut at the same place.
        let faults = Faults { cut_blobs_after: Some(120_000), no_ranges: true, ..Faults::default() };
        let registry = Registry::start(&oci, faults);
        let error = pull(&store, &format!("{}/lib/app", registry.address)).expect_err("cut");
        assert_eq!(error.code(), "registry_unreachable", "{error}");
        assert!(error.retryable());
    }
    assert!(fs::read_dir(store.root().join("tmp")).unwrap().next().is_none());
    assert!(store.list().unwrap().is_empty());
    let registry = Registry::start(&oci, Faults::default());
    pull(&store, &format!("{}/lib/app", registry.address)).unwrap();
    assert!(registry.blob_requests().iter().any(|line| line.contains("bytes=120000-")));
    assert_clean(&store);
}

#[test]
fn bytes_that_were_not_promised_are_refused() {
    for faults in [
        Faults { wrong_blobs: true, ..Faults::default() },
        Faults { wrong_blobs: true, no_ranges: true, ..Faults::default() },
    ] {
        let (_guard, store) = store();
        let registry = Registry::start(&image(), faults);
        let error = pull(&store, &format!("{}/lib/app", registry.address)).expect_err("refused");
        assert_eq!(error.code(), "image_digest_mismatch", "{error}");
        assert_clean(&store);
    }
    let (_guard, store) = store();
    let oci = image();
    let registry = Registry::start(&oci, Faults { wrong_manifest: true, ..Faults::default() });
    let reference = format!("{}/lib/app@{}", registry.address, digest(&oci.manifest));
    assert_eq!(pull(&store, &reference).expect_err("refused").code(), "image_digest_mismatch");
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let (_guard, store) = store();
    let mut oci = image();
    let honest = oci.blobs[0].clone();
    let other = gzip(&Tar::new().file("evil", b"x").end());
    let text = String::from_utf8(oci.manifest.clone()).unwrap();
    let text = text.replace(&digest(&honest), &digest(&other));
    let text = text.replace(&format!("\"size\":{}", honest.len()), &format!("\"size\":{}", other.len()));
    oci.manifest = text.into_bytes();
    oci.blobs[0] = other;
    let registry = Registry::start(&oci, Faults::default());
    let error = pull(&store, &format!("{}/lib/app", registry.address)).expect_err("refused");
    assert_eq!(error.code(), "image_digest_mismatch", "{error}");
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_no_is_told_from_a_silence() {
    let check = |status: Option<(u16, &'static str)>, tag: &str, login: bool, code: &str| {
        let (_guard, store) = store();
        let registry = Registry::start(&image(), Faults { status, login, ..Faults::default() });
        let error = pull(&store, &format!("{}/lib/app:{tag}", registry.address)).expect_err("refused");
        assert_eq!(error.code(), code, "{error}");
        assert_clean(&store);
    };
    check(None, "none", false, "registry_not_found");
    check(Some((404, "")), "latest", false, "registry_not_found");
    check(Some((401, "")), "latest", false, "registry_refused");
    check(None, "latest", true, "registry_refused");
    check(Some((403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)), "latest", false, "registry_refused");
    check(Some((503, "")), "latest", false, "registry_unreachable");
    let (_guard, store) = store();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = pull(&store, &format!("127.0.0.1:{port}/lib/app")).expect_err("nobody listens");
    assert_eq!(error.code(), "registry_unreachable", "{error}");
    assert!(error.hint().is_some());
    for bad in ["", "UPPER case", "a//b", "../x", "x:y:z"] {
        assert_eq!(pull(&store, bad).expect_err("refused").code(), "image_bad_reference", "{bad}");
    }
}
