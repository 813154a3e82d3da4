//! What a create asks for, checked field by field before anything is made.

use std::{collections::BTreeMap, path::Path, str::FromStr};

use den_api::{CreateComputer, VolumeMountRequest, computer::Amount};
use den_model::{Bytes, ComputerName, ImageName, Limits, PoolName, SizeError, Volume, VolumeMount};

use crate::{
    Error,
    errors::too_long,
    limits::{COMMAND_BYTES_MAX, LABEL_BYTES_MAX, LABELS_MAX, MOUNT_PATH_BYTES_MAX, MOUNTS_MAX, PIDS_MAX},
    pools::pool_name,
};

/// The image of a create that names none.
pub(crate) const IMAGE_DEFAULT: &str = "base";

/// What every computer has mounted already, or leads there. (`/tmp` lies on its disk.)
const MOUNTED_ALREADY: [&str; 8] =
    ["/dev", "/proc", "/run", "/sys", "/var/run", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker"];

/// A create whose every field is right.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub name: Option<ComputerName>,
    pub image: ImageName,
    pub limits: Limits,
    pub env: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub entrypoint: bool,
    pub pool: PoolName,
    pub volumes: Vec<VolumeMount>,
}

/// Checks a create.
///
/// `volume` finds a shared volume by its name or id.
///
/// Errors: `bad_name`, `bad_size`, `bad_request`, each with its field's name; `unsupported`; what `volume` says.
pub(crate) fn check(
    request: &CreateComputer,
    defaults: Limits,
    volume: impl Fn(&str) -> Result<Volume, Error>,
) -> Result<Wanted, Error> {
    let name = request.name.as_deref().map(ComputerName::from_str).transpose();
    let name = name.map_err(|error| Error::bad_name("name", &error))?;
    let image = request.image.as_deref().unwrap_or(IMAGE_DEFAULT);
    let image = image.parse().map_err(|error| {
        Error::new("bad_name", 400, format!("`image`: {error}")).hint("`den image ls` lists the images here")
    })?;
    match request.tier.as_deref() {
        None | Some("container") => {}
        Some("vm") => {
            return Err(Error::new("unsupported", 501, "`tier`: `vm` comes with the VM tier")
                .hint("leave it out: the container tier has root, services and mounts too"));
        }
        Some(other) => {
            return Err(Error::bad_request(format!("`tier`: `{other}` is neither `container` nor `vm`")));
        }
    }
    let CreateComputer { cpus, memory, disk, pids, .. } = request;
    let limits = limits(cpus.as_ref(), memory.as_ref(), disk.as_ref(), *pids, defaults)?;
    check_env(&request.env)?;
    check_labels(&request.labels)?;
    Ok(Wanted {
        name,
        image,
        limits,
        env: request.env.clone(),
        labels: request.labels.clone(),
        entrypoint: request.entrypoint,
        pool: request.pool.as_deref().map_or(Ok(PoolName::default()), |pool| pool_name("pool", pool))?,
        volumes: mounts(request.volumes.as_deref().unwrap_or_default(), volume)?,
    })
}

/// Checks where shared volumes are to be mounted, and finds them.
pub(crate) fn mounts(
    requests: &[VolumeMountRequest],
    volume: impl Fn(&str) -> Result<Volume, Error>,
) -> Result<Vec<VolumeMount>, Error> {
    if requests.len() > MOUNTS_MAX {
        return Err(Error::bad_request(format!("`volumes`: more than {MOUNTS_MAX}")));
    }
    let mut mounts: Vec<VolumeMount> = Vec::with_capacity(requests.len());
    for request in requests {
        let path = mount_path(&request.path)?;
        if let Some(other) = mounts.iter().find(|other| overlap(&other.path, &path)) {
            return Err(Error::bad_request(format!("`volumes`: `{path}` and `{}` lie in each other", other.path))
                .hint("give each volume a path beside the others"));
        }
        let Volume { id, name, .. } = volume(&request.volume)?;
        mounts.push(VolumeMount { volume: id, name, path });
    }
    Ok(mounts)
}

/// Checks a path inside at which something is to be mounted; without what it has twice.
fn mount_path(text: &str) -> Result<String, Error> {
    let refused = |why: &str| {
        let shown: String = text.chars().take(MOUNT_PATH_BYTES_MAX).collect();
        Err(Error::bad_request(format!("`volumes`: `{}` {why}", shown.escape_debug()))
            .hint("take a folder of its own, such as /mnt/data"))
    };
    if !text.starts_with('/') {
        return refused("is no absolute path");
    }
    if text.len() > MOUNT_PATH_BYTES_MAX {
        return Err(too_long("`volumes`: a path", MOUNT_PATH_BYTES_MAX));
    }
    if text.chars().any(char::is_control) {
        return refused("has a control character in it");
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refused("has `..` in it");
    }
    if parts.is_empty() {
        return refused("is the root of the computer");
    }
    let path = format!("/{}", parts.join("/"));
    match MOUNTED_ALREADY.iter().find(|place| overlap(place, &path)) {
        Some(place) => refused(&format!("would lie over or below `{place}`, which is mounted already")),
        None => Ok(path),
    }
}

/// Whether one is the other or lies below it.
fn overlap(one: &str, other: &str) -> bool {
    Path::new(one).starts_with(other) || Path::new(other).starts_with(one)
}

/// Checks a size; what is not named is as in `others`.
///
/// Errors: `bad_size`, with the field's name.
pub(crate) fn limits(
    cpus: Option<&Amount>,
    memory: Option<&Amount>,
    disk: Option<&Amount>,
    pids: Option<u32>,
    others: Limits,
) -> Result<Limits, Error> {
    Ok(Limits {
        cpus: amount("cpus", cpus, others.cpus)?,
        memory: at_least("memory", amount("memory", memory, others.memory)?, Limits::MEMORY_MIN)?,
        disk: at_least("disk", amount("disk", disk, others.disk)?, Limits::DISK_MIN)?,
        pids: match pids.unwrap_or(others.pids) {
            few if few < Limits::PIDS_MIN => return Err(Error::size_below("pids", few, Limits::PIDS_MIN)),
            many if many > PIDS_MAX => {
                return Err(Error::bad_size("pids", &SizeError::TooLarge { text: many.to_string() }));
            }
            pids => pids,
        },
    })
}

/// Checks labels.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.len() > LABELS_MAX {
        return Err(Error::bad_request(format!("`labels`: more than {LABELS_MAX}")));
    }
    for (key, value) in labels {
        if key.is_empty() || key.contains('=') {
            return Err(Error::bad_request(format!("`labels`: `{key}` is empty or has `=` in it")));
        }
        if key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX {
            return Err(too_long(
                &format!("`labels`: `{}`", key.chars().take(32).collect::<String>()),
                LABEL_BYTES_MAX,
            ));
        }
    }
    Ok(())
}

/// Checks variables of an environment.
pub(crate) fn check_env(env: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut bytes = 0;
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(Error::bad_request(format!("`env`: `{}` is no name of a variable", key.escape_default())));
        }
        if value.contains('\0') {
            return Err(Error::bad_request(format!("`env`: the value of `{key}` has a zero byte in it")));
        }
        bytes += key.len() + value.len() + 2;
    }
    if bytes > COMMAND_BYTES_MAX { Err(too_long("`env`", COMMAND_BYTES_MAX)) } else { Ok(()) }
}

fn amount<T: FromStr<Err = SizeError>>(field: &str, given: Option<&Amount>, default: T) -> Result<T, Error> {
    given.map_or(Ok(default), |amount| amount.0.parse().map_err(|error| Error::bad_size(field, &error)))
}

fn at_least(field: &str, given: Bytes, least: Bytes) -> Result<Bytes, Error> {
    if given < least { Err(Error::size_below(field, given, least)) } else { Ok(given) }
}

#[cfg(test)]
mod tests {
    use den_model::{Cpus, VolumeId};
    use uuid::Uuid;

    use super::*;

    fn data(text: &str) -> Result<Volume, Error> {
        let volume = || Volume {
            id: VolumeId::from_uuid(Uuid::nil()),
            name: "data".parse().unwrap(),
            limit: Bytes(1),
            created_at: 0,
        };
        if text == "data" { Ok(volume()) } else { Err(Error::volume_not_found(text)) }
    }

    fn defaults() -> Limits {
        Limits { cpus: Cpus(2000), memory: Bytes::gib(4), disk: Bytes::gib(20), pids: 4096 }
    }

    #[test]
    fn what_is_left_out_is_made_definite() {
        let wanted = check(&CreateComputer::default(), defaults(), data).unwrap();
        assert_eq!((wanted.limits, wanted.image.as_str(), wanted.name), (defaults(), "base", None));
    }

    #[test]
    fn each_refusal_names_its_field() {
        let check = |json: &str, code: &str, field: &str| {
            let request: CreateComputer = serde_json::from_str(json).unwrap();
            let error = super::check(&request, defaults(), data).unwrap_err();
            assert_eq!(error.code, code, "{json}");
            assert!(error.message.contains(field), "{json}: {error}");
        };
        check(r#"{"name":"Web"}"#, "bad_name", "`name`");
        check(r#"{"name":""}"#, "bad_name", "`name`");
        check(r#"{"image":"../x"}"#, "bad_name", "`image`");
        check(r#"{"memory":"0"}"#, "bad_size", "`memory`");
        check(r#"{"memory":-1}"#, "bad_size", "`memory`");
        check(r#"{"memory":"10ZB"}"#, "bad_size", "`memory`");
        check(r#"{"memory":"1M"}"#, "bad_size", "`memory`");
        check(r#"{"disk":"1K"}"#, "bad_size", "`disk`");
        check(r#"{"cpus":0}"#, "bad_size", "`cpus`");
        check(r#"{"pids":3}"#, "bad_size", "`pids`");
        check(r#"{"pids":4294967295}"#, "bad_size", "`pids`");
        check(r#"{"tier":"vm"}"#, "unsupported", "VM tier");
        check(r#"{"tier":"x"}"#, "bad_request", "`tier`");
        check(r#"{"env":{"A=B":"c"}}"#, "bad_request", "`env`");
        check(r#"{"labels":{"":"c"}}"#, "bad_request", "`labels`");
        check(r#"{"pool":"No"}"#, "bad_name", "`pool`");
        let volume = |path: &str| format!(r#"{{"volumes":[{{"volume":"data","path":"{path}"}}]}}"#);
        for bad in ["", "data", "/", "//.", "/a/../b", "/a\\nb", "/proc/x", "/dev", "/run/x", "/sys", "/var/run"] {
            check(&volume(bad), "bad_request", "`volumes`");
        }
        for bad in ["/var", "/var/lib/docker", "/var/lib/docker/x", &format!("/{}", "a".repeat(MOUNT_PATH_BYTES_MAX))] {
            check(&volume(bad), "bad_request", "`volumes`");
        }
        check(r#"{"volumes":[{"volume":"no","path":"/a"}]}"#, "volume_not_found", "`no`");
        for twice in ["/a", "/a/b", "/a//b/../c", "//a/./"] {
            let json =
                format!(r#"{{"volumes":[{{"volume":"data","path":"/a"}},{{"volume":"data","path":"{twice}"}}]}}"#);
            check(&json, "bad_request", "`volumes`");
        }
        let many = vec![r#"{"volume":"data","path":"/a"}"#; MOUNTS_MAX + 1].join(",");
        check(&format!(r#"{{"volumes":[{many}]}}"#), "bad_request", "`volumes`");
    }

    #[test]
    fn where_volumes_are_mounted_is_written_one_way() {
        let path = |text: &str| mount_path(text).unwrap();
        assert_eq!(path("//mnt/./data/"), "/mnt/data");
        // Beside what is mounted already, and not below it.
        assert_eq!(path("/process"), "/process");
        assert_eq!(path("/var/lib/docker-data"), "/var/lib/docker-data");
        assert!(!overlap("/a/b", "/a/bc"));
    }
}
