//! `/files`: whole files, down and up.

use std::{io::Write as _, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Request},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use den_api::StatView;
use den_control::{Attributes, FileReader, FileWriter, WriteFile};
use flate2::{
    Compression,
    write::{GzDecoder, GzEncoder},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{connect::named_user, cut, entry, paths, user_of};
use crate::{
    E2b,
    api::query::{first, pairs},
    book::Sandbox,
    secret,
    time::{SECOND, now},
    who,
};

/// Parts of one upload.
const PARTS_MAX: usize = 1000;

/// The longest key, and the most of all keys and values, of what is said of a file.
const METADATA_KEY_BYTES_MAX: usize = 246;
const METADATA_BYTES_MAX: usize = 4096;

/// What is said of a file.
type Metadata = Vec<(String, Vec<u8>)>;

/// How much of a gzipped upload is inflated before what came of it is sent on: at most 1032 times as much (RFC 1951).
const INFLATE_BYTES: usize = 4096;

/// How long an upload may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A refusal in envd's form.
pub(crate) fn refusal(status: u16, message: &str) -> Response {
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, Json(json!({ "code": status, "message": message }))).into_response()
}

/// What a refusal of Den's means here.
pub(crate) fn failed(error: &den_control::Error, path: &str) -> Response {
    match error.code {
        "file_not_found" | "not_a_directory" => refusal(404, &format!("path '{path}' does not exist")),
        "is_a_directory" => refusal(400, &format!("path '{path}' is a directory")),
        "no_such_user" => refusal(401, &error.message),
        "disk_full" | "host_full" => refusal(507, &format!("not enough disk space: {}", error.message)),
        "computer_not_found" | "computer_trashed" | "computer_stopped" | "wrong_state" | "unplugged" => {
            refusal(502, "The sandbox was not found")
        }
        "internal" => {
            tracing::error!(error = error.chain(), "a file of E2B's failed inside Den");
            refusal(500, "something went wrong inside Den; the log of `den serve` says what")
        }
        _ => refusal(error.status, &error.message),
    }
}

/// What the URL says.
struct Asked {
    raw_path: String,
    username: Option<String>,
    signature: Option<String>,
    expires: Option<String>,
}

impl Asked {
    fn read(request: &Request) -> Self {
        let query = pairs(request.uri().query().unwrap_or(""));
        let text = |key: &str| first(&query, key).map(str::to_owned);
        Self {
            raw_path: text("path").unwrap_or_default(),
            username: text("username"),
            signature: text("signature").filter(|text| !text.is_empty()),
            expires: text("signature_expiration").filter(|text| !text.is_empty()),
        }
    }

    fn user(&self, headers: &HeaderMap, sandbox: &Sandbox) -> String {
        let named = self.username.clone().filter(|user| !user.is_empty()).or_else(|| named_user(headers));
        named.unwrap_or_else(|| user_of(sandbox))
    }

    /// The signature that the holder of `token` makes for this.
    fn signed(&self, token: &str, writes: bool) -> String {
        let what = if writes { "write" } else { "read" };
        let user = self.username.as_deref().unwrap_or("");
        let mut text = format!("{}:{what}:{user}:{token}", self.raw_path);
        if let Some(expires) = &self.expires {
            text.push(':');
            text.push_str(expires);
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes())))
    }

    /// Whether the signature is of this token, and still good.
    fn check(&self, token: &str, writes: bool) -> Result<(), &'static str> {
        let given = self.signature.as_deref().ok_or("missing signature query parameter")?;
        if !secret::same(&self.signed(token, writes), given) {
            return Err("invalid signature");
        }
        match &self.expires {
            None => Ok(()),
            Some(text) => match text.parse::<i64>() {
                Ok(at) if at >= now() / SECOND => Ok(()),
                Ok(_) => Err("signature is already expired"),
                Err(_) => Err("invalid signature"),
            },
        }
    }
}

/// A file whose sandbox is found by the signature: the URL of a fixed host names none.
pub(crate) async fn signed(e2b: &E2b, request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return super::cors(StatusCode::NO_CONTENT.into_response());
    }
    let asked = Asked::read(&request);
    let writes = request.method() == Method::POST;
    let given = asked.signature.as_deref().unwrap_or("");
    let found = e2b.book().all().into_iter().find(|sandbox| {
        let token = sandbox.facts().token.clone();
        token.is_some_and(|token| secret::same(&asked.signed(&token, writes), given))
    });
    match found {
        Some(sandbox) => super::enter(e2b, &sandbox.id, crate::ENVD_PORT, request).await,
        None => super::cors(refusal(401, "invalid signature")),
    }
}

/// Answers `/files`.
pub(crate) async fn files(e2b: &E2b, sandbox: &Arc<Sandbox>, request: Request) -> Response {
    let asked = Asked::read(&request);
    let writes = request.method() == Method::POST;
    let token = sandbox.facts().token.clone();
    if let Some(token) = token {
        let header = request.headers().get("x-access-token").map(|value| value.to_str().unwrap_or(""));
        let allowed = match header {
            Some(given) if secret::same(&token, given) => Ok(()),
            Some(_) => Err("access token present in header but does not match"),
            None => asked.check(&token, writes),
        };
        if let Err(why) = allowed {
            return refusal(401, why);
        }
    }
    let user = asked.user(request.headers(), sandbox);
    match *request.method() {
        Method::GET | Method::HEAD => {
            let headers = request.headers().clone();
            drop(request);
            download(e2b, sandbox, &asked, &user, &headers).await
        }
        Method::POST => upload(e2b, sandbox, &asked, &user, request).await,
        _ => super::not_allowed("GET, HEAD, POST"),
    }
}

/// How an answer may be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Identity,
    Gzip,
    Neither,
}

/// Gzip where a client takes nothing else of what SDKs send: on one machine it only costs time.
fn coding(headers: &HeaderMap) -> Coding {
    let Some(text) = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()) else {
        return Coding::Identity;
    };
    let (mut gzip, mut identity, mut others) = (None, None, false);
    let mut any = None;
    for part in text.split(',') {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or("").to_ascii_lowercase();
        let weight = words.find_map(|word| word.strip_prefix("q=")).and_then(|text| text.parse::<f32>().ok());
        let allowed = weight.unwrap_or(1.0) > 0.0;
        match name.as_str() {
            "gzip" | "x-gzip" => gzip = Some(allowed),
            "identity" => identity = Some(allowed),
            "*" => any = Some(allowed),
            "" => {}
            _ => others = true,
        }
    }
    let identity_allowed = identity.or(any.filter(|allowed| !allowed)).unwrap_or(true);
    let gzip_allowed = gzip.or(any).unwrap_or(false);
    match (identity_allowed, gzip_allowed) {
        (false, true) => Coding::Gzip,
        (true, true) if gzip == Some(true) && !others && identity.is_none() => Coding::Gzip,
        (true, _) => Coding::Identity,
        (false, false) => Coding::Neither,
    }
}

/// `bytes=a-b` of a file of this size: where it begins, and how long it is. `None`: all of it.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    let Some(text) = text.strip_prefix("bytes=").filter(|text| !text.contains(',')) else { return Ok(None) };
    let Some((from, to)) = text.split_once('-') else { return Ok(None) };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (from, end) = match (number(from), number(to)) {
        (Some(from), Some(to)) if to < from => return Ok(None),
        (Some(from), to) => (from, to.map_or(size, |to| to.saturating_add(1)).min(size)),
        (None, Some(last)) if from.trim().is_empty() => (size.saturating_sub(last), size),
        _ => return Ok(None),
    };
    if from >= size { Err(()) } else { Ok(Some((from, end - from))) }
}

async fn download(e2b: &E2b, sandbox: &Arc<Sandbox>, asked: &Asked, user: &str, given: &HeaderMap) -> Response {
    let path = paths::of(sandbox, &asked.raw_path, user);
    let coding = coding(given);
    if coding == Coding::Neither {
        return refusal(406, "no acceptable encoding: identity and gzip are there");
    }
    let mut part = None;
    // What depends on the file before it is read.
    if given.contains_key(header::IF_NONE_MATCH) || given.contains_key(header::RANGE) {
        let stat = match e2b.control().stat(&sandbox.id, path.as_bytes(), true).await {
            Ok(stat) if stat.kind == "directory" => return refusal(400, &format!("path '{path}' is a directory")),
            Ok(stat) => stat,
            Err(error) => return failed(&error, &path),
        };
        let tag = etag(&stat);
        let matches = given.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        if matches.is_some_and(|tags| tags == "*" || tags.split(',').any(|one| one.trim() == tag)) {
            return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
        }
        part = match range(given, stat.size) {
            Ok(part) => part,
            Err(()) => {
                let all = [(header::CONTENT_RANGE, format!("bytes */{}", stat.size))];
                return (StatusCode::RANGE_NOT_SATISFIABLE, all).into_response();
            }
        };
    }
    let (offset, length) = part.map_or((0, None), |(from, length)| (from, Some(length)));
    let (stat, reader) = match e2b.control().read_file(&sandbox.id, path.as_bytes(), offset, length).await {
        Ok(read) => read,
        Err(error) => return failed(&error, &path),
    };
    let tag = etag(&stat);
    let gzip = coding == Coding::Gzip && part.is_none();
    let body = match gzip {
        true => cut(Arc::clone(sandbox), zipped(reader)),
        false => cut(Arc::clone(sandbox), plain(reader)),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let name: String =
        paths::name(&path).chars().filter(|it| it.is_ascii_graphic() && !"\"\\;".contains(*it)).collect();
    for (header, text) in [(header::CONTENT_DISPOSITION, format!("inline; filename=\"{name}\"")), (header::ETAG, tag)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header, value);
        }
    }
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else if let Some((from, length)) = part {
        let text = format!("bytes {from}-{}/{}", from + length - 1, stat.size);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(header::CONTENT_RANGE, value);
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    } else if stat.size > 0 {
        // The kernel's own files say that they are empty, and are not.
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(stat.size));
    }
    response
}

fn etag(stat: &StatView) -> String {
    format!("\"{:x}-{:x}\"", stat.mtime, stat.size)
}

fn plain(reader: FileReader) -> impl futures_util::Stream<Item = Result<Bytes, axum::BoxError>> {
    stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(bytes) => bytes.map(|bytes| (Ok(bytes), reader)),
            Err(error) => Some((Err(error.into()), reader)),
        }
    })
}

fn zipped(reader: FileReader) -> impl futures_util::Stream<Item = Result<Bytes, axum::BoxError>> {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    stream::unfold((reader, Some(encoder)), |(mut reader, mut encoder)| async move {
        loop {
            let mut writer = encoder.take()?;
            match reader.next().await {
                Ok(Some(bytes)) => {
                    if let Err(error) = writer.write_all(&bytes) {
                        return Some((Err(error.into()), (reader, None)));
                    }
                    let out = std::mem::take(writer.get_mut());
                    encoder = Some(writer);
                    if !out.is_empty() {
                        return Some((Ok(Bytes::from(out)), (reader, encoder)));
                    }
                }
                Ok(None) => return Some((writer.finish().map(Bytes::from).map_err(Into::into), (reader, None))),
                Err(error) => return Some((Err(error.into()), (reader, None))),
            }
        }
    })
}

async fn upload(e2b: &E2b, sandbox: &Arc<Sandbox>, asked: &Asked, user: &str, request: Request) -> Response {
    let headers = request.headers();
    let metadata = match metadata(headers) {
        Ok(metadata) => metadata,
        Err(why) => return refusal(400, &why),
    };
    let gzip = match headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?")) {
        None | Some("identity" | "") => false,
        Some("gzip") => true,
        Some(other) => return refusal(400, &format!("unsupported Content-Encoding: {other}")),
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let written = match kind.as_str() {
        "application/octet-stream" if asked.raw_path.is_empty() => {
            return refusal(400, "path is required for application/octet-stream");
        }
        "application/octet-stream" => {
            let path = paths::of(sandbox, &asked.raw_path, user);
            let body = request.into_body();
            whole(e2b, sandbox, path, user, gzip, &metadata, body).await.map(|path| vec![path])
        }
        "multipart/form-data" if gzip => return refusal(400, "a multipart upload that is encoded as a whole"),
        "multipart/form-data" => parts(e2b, sandbox, asked, user, &metadata, request).await,
        other => return refusal(400, &format!("unsupported Content-Type: '{other}'")),
    };
    match written {
        Ok(paths) => {
            let entries: Vec<Value> = paths.iter().map(|path| entry::uploaded(path, &metadata)).collect();
            Json(entries).into_response()
        }
        Err(refused) => *refused,
    }
}

/// What a client says of its files: `X-Metadata-<key>: <value>`.
fn metadata(headers: &HeaderMap) -> Result<Metadata, String> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix("x-metadata-") else { continue };
        let value = value.as_bytes();
        if key.is_empty() || key.len() > METADATA_KEY_BYTES_MAX {
            return Err(format!("invalid metadata: a key has 1 to {METADATA_KEY_BYTES_MAX} bytes"));
        }
        if !value.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return Err(format!("invalid metadata: the value of `{key}` is not of printable ASCII"));
        }
        bytes += key.len() + value.len();
        found.push((key.to_owned(), value.to_vec()));
    }
    match bytes {
        0..=METADATA_BYTES_MAX => Ok(found),
        _ => Err(format!("invalid metadata: more than {METADATA_BYTES_MAX} bytes")),
    }
}

async fn begin(
    e2b: &E2b,
    sandbox: &Sandbox,
    path: &str,
    user: &str,
    metadata: &Metadata,
) -> Result<FileWriter, Box<Response>> {
    let file = WriteFile {
        path: path.as_bytes().to_vec(),
        owner: Some(user.to_owned()),
        parents: true,
        in_place: true,
        attributes: Some(Attributes { prefix: entry::METADATA.to_owned(), set: metadata.clone() }),
        ..WriteFile::default()
    };
    e2b.control().write_file(&sandbox.id, file, &who()).await.map_err(|error| Box::new(uploading(&error, path, user)))
}

pub(super) fn uploading(error: &den_control::Error, path: &str, user: &str) -> Response {
    match error.code {
        "no_such_user" => refusal(401, &format!("invalid username: '{user}'")),
        "not_a_directory" => refusal(400, &format!("path '{path}': something above it is no directory")),
        _ => failed(error, path),
    }
}

/// Inflates at most [`INFLATE_BYTES`], so that what comes of them has a limit.
fn inflate(decoder: &mut GzDecoder<Vec<u8>>, piece: &[u8]) -> std::io::Result<Vec<u8>> {
    decoder.write_all(piece)?;
    Ok(std::mem::take(decoder.get_mut()))
}

/// The body as one file.
async fn whole(
    e2b: &E2b,
    sandbox: &Sandbox,
    path: String,
    user: &str,
    gzip: bool,
    metadata: &Metadata,
    body: Body,
) -> Result<String, Box<Response>> {
    let mut writer = begin(e2b, sandbox, &path, user, metadata).await?;
    let mut data = body.into_data_stream();
    let mut decoder = gzip.then(|| GzDecoder::new(Vec::new()));
    let unzipped = |error: std::io::Error| Box::new(refusal(400, &format!("the body is no gzip: {error}")));
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, data.next()).await;
        let bytes = match next {
            Ok(Some(Ok(bytes))) => bytes,
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(Box::new(refusal(400, &format!("the body did not arrive: {error}")))),
            Err(_) => return Err(Box::new(refusal(408, "the body came too slowly"))),
        };
        let Some(decoder) = &mut decoder else {
            writer.send(&bytes).await.map_err(|error| Box::new(uploading(&error, &path, user)))?;
            continue;
        };
        for piece in bytes.chunks(INFLATE_BYTES) {
            let inflated = inflate(decoder, piece).map_err(unzipped)?;
            writer.send(&inflated).await.map_err(|error| Box::new(uploading(&error, &path, user)))?;
        }
    }
    if let Some(decoder) = decoder {
        let rest = decoder.finish().map_err(unzipped)?;
        writer.send(&rest).await.map_err(|error| Box::new(uploading(&error, &path, user)))?;
    }
    writer.finish().await.map_err(|error| Box::new(uploading(&error, &path, user)))?;
    Ok(path)
}

/// Each part named `file` as a file.
async fn parts(
    e2b: &E2b,
    sandbox: &Sandbox,
    asked: &Asked,
    user: &str,
    metadata: &Metadata,
    request: Request,
) -> Result<Vec<String>, Box<Response>> {
    let refused = |message: String| Box::new(refusal(400, &message));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| refused(error.body_text()))?;
    let mut written: Vec<String> = Vec::new();
    while let Some(mut field) = form.next_field().await.map_err(|error| refused(error.body_text()))? {
        if field.name() != Some("file") {
            continue;
        }
        if written.len() == PARTS_MAX {
            return Err(refused(format!("more than {PARTS_MAX} files at once")));
        }
        let named = match (asked.raw_path.is_empty(), field.file_name()) {
            (false, _) => asked.raw_path.clone(),
            (true, Some(name)) if !name.is_empty() => name.to_owned(),
            (true, _) => return Err(refused("a part without a filename, and no path in the URL".to_owned())),
        };
        let path = paths::of(sandbox, &named, user);
        if written.contains(&path) {
            return Err(refused(format!("you cannot upload multiple files to the same path '{path}' in one request")));
        }
        let mut writer = begin(e2b, sandbox, &path, user, metadata).await?;
        loop {
            let next = tokio::time::timeout(SILENCE_MAX, field.chunk()).await;
            match next {
                Ok(Ok(Some(bytes))) => {
                    writer.send(&bytes).await.map_err(|error| Box::new(uploading(&error, &path, user)))?;
                }
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Err(refused(error.body_text())),
                Err(_) => return Err(Box::new(refusal(408, "the body came too slowly"))),
            }
        }
        writer.finish().await.map_err(|error| Box::new(uploading(&error, &path, user)))?;
        written.push(path);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_those_who_ask_for_it_alone() {
        let check = |text: &'static str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(text));
            assert_eq!(coding(&headers), expected, "{text}");
        };
        check("gzip, deflate", Coding::Identity);
        check("gzip", Coding::Gzip);
        check("identity;q=0, gzip", Coding::Gzip);
        check("identity", Coding::Identity);
        check("*;q=0", Coding::Neither);
        check("identity;q=0, br", Coding::Neither);
        assert_eq!(coding(&HeaderMap::new()), Coding::Identity);
    }

    #[test]
    fn a_bomb_is_inflated_in_pieces() {
        let zeros = vec![0; 1 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        (0..64).for_each(|_| encoder.write_all(&zeros).unwrap());
        let bomb = encoder.finish().unwrap();
        let mut decoder = GzDecoder::new(Vec::new());
        let (mut total, mut most) = (0, 0);
        for piece in bomb.chunks(INFLATE_BYTES) {
            let inflated = inflate(&mut decoder, piece).unwrap();
            most = most.max(inflated.len());
            total += inflated.len();
        }
        total += decoder.finish().unwrap().len();
        assert_eq!(total, 64 << 20);
        assert!(bomb.len() > INFLATE_BYTES && most <= 1100 * INFLATE_BYTES, "{most} bytes at once");
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        let check = |text: &'static str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(text));
            assert_eq!(range(&headers, 10), expected, "{text}");
        };
        check("bytes=0-4", Ok(Some((0, 5))));
        check("bytes=5-", Ok(Some((5, 5))));
        check("bytes=-3", Ok(Some((7, 3))));
        check("bytes=8-100", Ok(Some((8, 2))));
        check("bytes=10-", Err(()));
        check("bytes=3-2", Ok(None));
        check("bytes=0-1,3-4", Ok(None));
        check("lines=1-2", Ok(None));
    }

    #[test]
    fn a_signature_is_of_its_path_and_user() {
        let asked = Asked {
            raw_path: "a.txt".to_owned(),
            username: Some("root".to_owned()),
            signature: None,
            expires: Some("1".to_owned()),
        };
        let signature = asked.signed("token", false);
        let text = STANDARD_NO_PAD.encode(Sha256::digest(b"a.txt:read:root:token:1"));
        assert_eq!(signature, format!("v1_{text}"));
        assert_eq!(asked.check("token", false), Err("missing signature query parameter"));
        let asked = Asked { signature: Some(signature), ..asked };
        assert_eq!(asked.check("token", false), Err("signature is already expired"));
        assert_eq!(asked.check("token", true), Err("invalid signature"));
    }
}
