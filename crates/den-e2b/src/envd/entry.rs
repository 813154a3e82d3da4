//! Attributes of files in envd's form.

use den_api::StatView;
use serde_json::{Map, Value, json};

use super::paths;
use crate::{E2b, time};

/// How many links are followed to what one leads to.
const LINKS_MAX: usize = 40;

/// The times that protobuf has, the years 1 to 9999; files may have others.
const MTIME_MIN: i64 = -62_135_596_800 * time::SECOND;
const MTIME_MAX: i64 = 253_402_300_799 * time::SECOND;

/// What the extended attributes begin with that are a file's metadata.
pub(crate) const METADATA: &str = "user.e2b.";

/// How many files are asked about at once: so many with as much as an upload may say fit into one answer.
const AT_ONCE: usize = 64;

/// Adds what clients have said of files to their entries.
pub(crate) async fn with_metadata(e2b: &E2b, sandbox: &str, entries: &mut [Value]) {
    let paths: Vec<String> = entries.iter().map(|entry| entry["path"].as_str().unwrap_or("/").to_owned()).collect();
    if paths.is_empty() {
        return;
    }
    let bytes: Vec<&[u8]> = paths.iter().map(String::as_bytes).collect();
    for (entries, bytes) in entries.chunks_mut(AT_ONCE).zip(bytes.chunks(AT_ONCE)) {
        match e2b.control().attributes(sandbox, bytes, METADATA).await {
            Ok(found) => {
                for (entry, of) in entries.iter_mut().zip(found).filter(|(_, of)| !of.set.is_empty()) {
                    let pairs = of.set.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value).into()));
                    entry["metadata"] = Value::Object(pairs.collect());
                }
            }
            // An agent that is too old, as a rule: then they are not shown.
            Err(error) => {
                tracing::debug!(sandbox, error = error.chain(), "metadata of files is not known");
                return;
            }
        }
    }
}

/// What is at a path.
///
/// Errors: `file_not_found` and the others of files.
pub(crate) async fn entry(e2b: &E2b, sandbox: &str, path: &str) -> Result<Value, den_control::Error> {
    let own = e2b.control().stat(sandbox, path.as_bytes(), false).await?;
    let mut entry = [of(e2b, sandbox, path, &own).await];
    with_metadata(e2b, sandbox, &mut entry).await;
    let [entry] = entry;
    Ok(entry)
}

/// The same, of what is known already; links are followed to what they lead to.
pub(crate) async fn of(e2b: &E2b, sandbox: &str, path: &str, own: &StatView) -> Value {
    if own.kind != "symlink" {
        return view(path, own, own, None);
    }
    let target = e2b.control().stat(sandbox, path.as_bytes(), true).await.ok();
    let leads_to = follow(e2b, sandbox, path, own).await;
    view(path, own, target.as_ref().unwrap_or(own), Some(leads_to))
}

async fn follow(e2b: &E2b, sandbox: &str, path: &str, own: &StatView) -> String {
    let (mut path, mut target) = (path.to_owned(), own.target.clone());
    for _ in 0..LINKS_MAX {
        let Some(text) = target else { break };
        path = match text.starts_with('/') {
            true => paths::clean(&text),
            false => paths::clean(&format!("{}/{text}", paths::parent(&path))),
        };
        target = e2b.control().stat(sandbox, path.as_bytes(), false).await.ok().and_then(|stat| stat.target);
    }
    path
}

fn view(path: &str, own: &StatView, target: &StatView, leads_to: Option<String>) -> Value {
    let bits = |stat: &StatView| u32::from_str_radix(&stat.mode, 8).unwrap_or(0) & 0o777;
    let kind = match target.kind.as_str() {
        "directory" => "FILE_TYPE_DIRECTORY",
        "symlink" => "FILE_TYPE_SYMLINK",
        _ => "FILE_TYPE_FILE",
    };
    let mut entry = Map::new();
    entry.insert("name".to_owned(), paths::name(path).into());
    entry.insert("type".to_owned(), kind.into());
    entry.insert("path".to_owned(), path.into());
    // Sixty-four bits are text in protobuf's JSON.
    entry.insert("size".to_owned(), own.size.to_string().into());
    entry.insert("mode".to_owned(), bits(target).into());
    entry.insert("permissions".to_owned(), permissions(&own.kind, bits(own)).into());
    entry.insert("owner".to_owned(), own.user.clone().unwrap_or_else(|| own.uid.to_string()).into());
    entry.insert("group".to_owned(), own.group.clone().unwrap_or_else(|| own.gid.to_string()).into());
    entry.insert("modifiedTime".to_owned(), time::text(own.mtime.clamp(MTIME_MIN, MTIME_MAX)).into());
    if let Some(leads_to) = leads_to {
        entry.insert("symlinkTarget".to_owned(), leads_to.into());
    }
    Value::Object(entry)
}

/// As Go writes a mode.
fn permissions(kind: &str, bits: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        "directory" => 'd',
        "symlink" => 'L',
        "fifo" => 'p',
        "socket" => 'S',
        "char_device" | "block_device" => 'D',
        _ => '-',
    });
    for at in (0..9).rev() {
        text.push(if bits & (1 << at) != 0 { ['x', 'w', 'r'][at % 3] } else { '-' });
    }
    text
}

/// What an upload answers of a file.
pub(crate) fn uploaded(path: &str, metadata: &[(String, Vec<u8>)]) -> Value {
    let mut entry = json!({ "path": path, "name": paths::name(path), "type": "file" });
    if !metadata.is_empty() {
        let pairs = metadata.iter().map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into()));
        entry["metadata"] = Value::Object(pairs.collect());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_in_go() {
        assert_eq!(permissions("file", 0o644), "-rw-r--r--");
        assert_eq!(permissions("directory", 0o755), "drwxr-xr-x");
        assert_eq!(permissions("symlink", 0o777), "Lrwxrwxrwx");
    }
}
