//! E2B's network settings as a policy of the gate.
//!
//! | E2B | policy |
//! | --- | --- |
//! | nothing | the house's own; of what begins from another its parent's |
//! | everything denied, nothing allowed (`allow_internet_access: false`) | sealed |
//! | everything denied, some allowed | guarded, with those |
//! | some denied | open, without those |

use std::net::Ipv4Addr;

use axum::http::{HeaderValue, uri::Authority};
use den_api::{NetChange, NetRequest};
use serde_json::Value;

use crate::{E2b, error::ApiError, who};

const EVERYTHING: &str = "0.0.0.0/0";

/// Settings that Den has no translation for, and what they are where nothing is wanted of them.
const NOT_HERE: [(&str, &str); 4] =
    [("rules", "{}"), ("egressProxy", "{}"), ("dnsServers", "[]"), ("httpsPorts", "[]")];

/// The setting that has the host which servers inside are told, and what stands in it for the port that is asked for.
const MASK: &str = "maskRequestHost";
const MASK_PORT: &str = "${PORT}";

/// The longest name of a host, and a colon and a port behind it.
const MASK_CHARS_MAX: usize = 253 + ":65535".len();

/// The policy that the settings mean; none: the one that it has without any.
pub(crate) fn policy(internet: Option<bool>, network: Option<&Value>) -> Result<Option<NetRequest>, ApiError> {
    let mut deny = Vec::new();
    let mut allow = Vec::new();
    if let Some(network) = network {
        let Some(fields) = network.as_object() else { return Err(ApiError::bad("network: not an object")) };
        for (field, nothing) in NOT_HERE {
            let given = match fields.get(field) {
                None | Some(Value::Null) => false,
                Some(Value::Array(items)) => nothing != "[]" || !items.is_empty(),
                Some(Value::Object(items)) => nothing != "{}" || !items.is_empty(),
                Some(_) => true,
            };
            if given {
                return Err(ApiError::bad(format!("network.{field}: Den does not have this yet")));
            }
        }
        flag(network, "allowPublicTraffic")?;
        match fields.get(MASK) {
            None | Some(Value::Null) => {}
            Some(mask) if mask.as_str().is_some_and(|mask| masked(mask, u16::MAX).is_some()) => {}
            Some(_) => {
                return Err(ApiError::bad(format!("network.{MASK}: no host; for example `localhost:{MASK_PORT}`")));
            }
        }
        allow = texts(fields.get("allowOut"), "network.allowOut")?;
        deny = texts(fields.get("denyOut"), "network.denyOut")?;
    }
    if internet == Some(false) && !deny.iter().any(|rule| rule == EVERYTHING) {
        deny.push(EVERYTHING.to_owned());
    }
    if let Some(bad) = deny.iter().find(|rule| range(rule).is_none()) {
        return Err(ApiError::bad(format!("network.denyOut: `{bad}` is neither an IPv4 address nor a range of them")));
    }
    let all = deny.iter().any(|rule| rule == EVERYTHING);
    if !all && let Some(name) = allow.iter().find(|rule| range(rule).is_none()) {
        return Err(ApiError::bad(format!(
            "network.allowOut: the domain `{name}` needs `{EVERYTHING}` in denyOut, else it allows nothing new"
        )));
    }
    let open = |deny| NetRequest { posture: Some("open".to_owned()), deny, ..NetRequest::default() };
    Ok(match (all, allow.is_empty(), deny.is_empty()) {
        (false, _, true) if internet == Some(true) || network.is_some() => Some(open(Vec::new())),
        (false, _, true) => None,
        (false, _, false) => {
            let inside = |one: &String, two: &String| match (range(one), range(two)) {
                (Some(one), Some(two)) => one.0 <= two.1 && two.0 <= one.1,
                _ => false,
            };
            if let Some(both) = allow.iter().find(|one| deny.iter().any(|two| inside(one, two))) {
                return Err(ApiError::bad(format!(
                    "network.allowOut: `{both}` lies in what denyOut has; in Den a denial outranks, unless it is of \
                     everything (`{EVERYTHING}`)"
                )));
            }
            Some(open(deny))
        }
        (true, true, _) => Some(NetRequest { posture: Some("sealed".to_owned()), ..NetRequest::default() }),
        (true, false, _) if allow.iter().any(|rule| rule == EVERYTHING) => Some(open(Vec::new())),
        (true, false, _) => {
            Some(NetRequest { posture: Some("guarded".to_owned()), allow, force: true, ..NetRequest::default() })
        }
    })
}

/// The Host that a sandbox's servers are told in place of the one that was asked for; none: that one.
pub(crate) fn host_inside(network: Option<&Value>, port: u16) -> Option<HeaderValue> {
    masked(network?.get(MASK)?.as_str()?, port)
}

/// The settings after an update, which is of what goes out: the host that servers inside are told stays where the
/// update does not name one.
pub(crate) fn changed(old: Option<&Value>, mut new: Value) -> Value {
    if let (Some(mask), Some(fields)) = (old.and_then(|old| old.get(MASK)), new.as_object_mut()) {
        fields.entry(MASK).or_insert_with(|| mask.clone());
    }
    new
}

fn masked(mask: &str, port: u16) -> Option<HeaderValue> {
    let host = mask.replace(MASK_PORT, &port.to_string());
    let is_host = host.len() <= MASK_CHARS_MAX && !host.contains('@') && host.parse::<Authority>().is_ok();
    is_host.then(|| HeaderValue::from_str(&host).ok()).flatten()
}

/// What is true, false, or not said.
pub(crate) fn flag(network: &Value, name: &str) -> Result<Option<bool>, ApiError> {
    match network.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(ApiError::bad(format!("network.{name}: neither true nor false"))),
    }
}

fn texts(value: Option<&Value>, name: &str) -> Result<Vec<String>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(|text| text.trim().to_owned()))
            .collect::<Option<_>>()
            .ok_or_else(|| ApiError::bad(format!("{name}: not a list of texts"))),
        Some(_) => Err(ApiError::bad(format!("{name}: not a list of texts"))),
    }
}

/// The first and the last address of a range.
fn range(text: &str) -> Option<(u32, u32)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, bits.parse::<u32>().ok().filter(|bits| *bits <= 32)?),
        None => (text, 32),
    };
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
    Some((address & !rest, address | rest))
}

impl E2b {
    /// Puts a policy in force in place of the one there was.
    pub(crate) async fn set_net(&self, id: &str, net: &NetRequest) -> Result<(), ApiError> {
        let old = self.control().net(id).await?;
        let change = NetChange {
            posture: net.posture.clone(),
            allow_add: net.allow.clone(),
            deny_add: net.deny.clone(),
            remove: old.allow.into_iter().chain(old.deny).collect(),
            limits: None,
            force: net.force,
        };
        self.control().change_net(id, change, &who()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_become_a_policy() {
        let check = |internet, network: Value, expected: Option<(&str, &[&str], &[&str])>| {
            let network = Some(network).filter(|network| !network.is_null());
            let found = policy(internet, network.as_ref()).unwrap();
            let found = found.map(|net| (net.posture.unwrap(), net.allow, net.deny));
            let expected = expected.map(|(posture, allow, deny)| {
                let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
                (posture.to_owned(), texts(allow), texts(deny))
            });
            assert_eq!(found, expected, "{internet:?} {network:?}");
        };
        check(None, Value::Null, None);
        check(Some(true), Value::Null, Some(("open", &[], &[])));
        check(Some(false), Value::Null, Some(("sealed", &[], &[])));
        check(None, json!({"denyOut": ["8.8.8.8"]}), Some(("open", &[], &["8.8.8.8"])));
        let some = json!({"denyOut": [EVERYTHING], "allowOut": ["1.1.1.1", "*.example.com"]});
        check(None, some, Some(("guarded", &["1.1.1.1", "*.example.com"], &[])));
        check(None, json!({"rules": {}, "egressProxy": null}), Some(("open", &[], &[])));
    }

    #[test]
    fn servers_inside_are_told_another_host() {
        for (mask, expected) in [
            ("localhost:${PORT}", "localhost:3000"),
            ("localhost", "localhost"),
            ("${PORT}-x.example.com", "3000-x.example.com"),
            ("[::1]:${PORT}", "[::1]:3000"),
        ] {
            let network = json!({ "maskRequestHost": mask });
            assert!(policy(None, Some(&network)).is_ok(), "{mask}");
            assert_eq!(host_inside(Some(&network), 3000).unwrap(), expected);
        }
        for network in [None, Some(json!({})), Some(json!({"maskRequestHost": null}))] {
            assert_eq!(host_inside(network.as_ref(), 3000), None);
        }
        let old = json!({"maskRequestHost": "a", "denyOut": ["8.8.8.8"]});
        assert_eq!(changed(Some(&old), json!({})), json!({"maskRequestHost": "a"}));
        assert_eq!(changed(Some(&old), json!({"maskRequestHost": null})), json!({"maskRequestHost": null}));
        assert_eq!(changed(None, json!({"denyOut": []})), json!({"denyOut": []}));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for network in [
            json!({"allowOut": ["example.com"]}),
            json!({"denyOut": ["example.com"]}),
            json!({"denyOut": "8.8.8.8"}),
            json!({"denyOut": ["8.8.8.0/24"], "allowOut": ["8.8.8.8"]}),
            json!({"egressProxy": {"address": "x"}}),
            json!({"allowPublicTraffic": "no"}),
            json!({"maskRequestHost": {}}),
            json!({"maskRequestHost": ""}),
            json!({"maskRequestHost": "a b"}),
            json!({"maskRequestHost": "http://localhost"}),
            json!({"maskRequestHost": "user@localhost"}),
            json!({"maskRequestHost": "a\r\nx: y"}),
            json!({"maskRequestHost": "a".repeat(260)}),
            json!({"dnsServers": {}}),
            json!([]),
        ] {
            assert_eq!(policy(None, Some(&network)).unwrap_err().status, 400, "{network}");
        }
        assert_eq!(range("10.0.0.0/8"), Some((0x0a00_0000, 0x0aff_ffff)));
        assert_eq!((range("1.2.3.4/33"), range("0.0.0.0/0")), (None, Some((0, u32::MAX))));
    }
}
