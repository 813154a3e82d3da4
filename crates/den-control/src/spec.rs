//! What a create asks for, checked field by field before anything is made.

use std::{collections::BTreeMap, str::FromStr};

use den_api::{CreateComputer, computer::Amount};
use den_model::{Bytes, ComputerName, ImageName, Limits, PoolName, SizeError};

use crate::{
    Error,
    errors::too_long,
    limits::{COMMAND_BYTES_MAX, LABEL_BYTES_MAX, LABELS_MAX, PIDS_MAX},
    pools::pool_name,
};

/// The image of a create that names none.
pub(crate) const IMAGE_DEFAULT: &str = "base";

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
}

/// Checks a create.
///
/// Errors: `bad_name`, `bad_size`, `bad_request`, each with its field's name; `unsupported`.
pub(crate) fn check(request: &CreateComputer, defaults: Limits) -> Result<Wanted, Error> {
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
    if request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()) {
        return Err(Error::new("unsupported", 501, "`volumes`: none can be mounted yet"));
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
    })
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
    use den_model::Cpus;

    use super::*;

    fn defaults() -> Limits {
        Limits { cpus: Cpus(2000), memory: Bytes::gib(4), disk: Bytes::gib(20), pids: 4096 }
    }

    #[test]
    fn what_is_left_out_is_made_definite() {
        let wanted = check(&CreateComputer::default(), defaults()).unwrap();
        assert_eq!((wanted.limits, wanted.image.as_str(), wanted.name), (defaults(), "base", None));
    }

    #[test]
    fn each_refusal_names_its_field() {
        let check = |json: &str, code: &str, field: &str| {
            let request: CreateComputer = serde_json::from_str(json).unwrap();
            let error = super::check(&request, defaults()).unwrap_err();
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
    }
}
