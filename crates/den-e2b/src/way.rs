//! Whom a request is for.
//!
//! ```text
//! Host is an address, `localhost` or `sandbox.…` ─► E2b-Sandbox-Id and -Port ─► data plane
//!                                                └─► neither ─► by path: control plane, or Den
//! Host begins `<port>-<id>.` ─► data plane           Host begins `api.` ─► control plane
//! ```

use std::net::IpAddr;

use axum::{extract::Request, http::HeaderMap};

use crate::domain::Domain;

/// Whom a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Den's own router.
    Den,
    /// The control plane.
    Control,
    /// A port of a sandbox.
    Data {
        /// The sandbox's id.
        sandbox: String,
        /// The port.
        port: u16,
    },
    /// A file, of the sandbox whose signature is in the URL.
    Signed,
    /// Nobody, and why.
    Refused(String),
}

/// First parts of the control plane's paths; Den's own are under `/v1`.
const CONTROL: [&str; 12] = [
    "sandboxes",
    "v2",
    "v3",
    "templates",
    "snapshots",
    "volumes",
    "volumecontent",
    "secrets",
    "teams",
    "api-keys",
    "default-templates",
    "nodes",
];

/// The host that `request` names, with or without a port.
fn host(request: &Request) -> &str {
    request.uri().host().or_else(|| request.headers().get("host")?.to_str().ok()).unwrap_or("")
}

/// Whether `request` was led here by a name of someone else's: neither by an address nor by a name of `domain`.
pub(crate) fn is_elsewhere(request: &Request, domain: &Domain) -> bool {
    let name = without_port(host(request));
    !is_address(name) && !domain.has(name)
}

/// Whom `request` is for.
pub(crate) fn of(request: &Request) -> Way {
    decide(host(request), request.headers(), request.uri().path(), request.uri().query().unwrap_or(""))
}

fn decide(host: &str, headers: &HeaderMap, path: &str, query: &str) -> Way {
    let label = host.split('.').next().unwrap_or("");
    let name = without_port(host);
    if is_address(name) || label == "sandbox" {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        return match (header("e2b-sandbox-id"), header("e2b-sandbox-port")) {
            (Some(id), Some(port)) => data(id, port),
            (Some(_), None) => Way::Refused("missing header: E2b-Sandbox-Port".to_owned()),
            (None, Some(_)) => Way::Refused("missing header: E2b-Sandbox-Id".to_owned()),
            (None, None) => by_path(path, query),
        };
    }
    if label == "api" {
        return Way::Control;
    }
    match label.split_once('-') {
        Some((port, id)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => data(id, port),
        _ => by_path(path, query),
    }
}

fn by_path(path: &str, query: &str) -> Way {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    if first == "files" && query.split('&').any(|pair| pair.starts_with("signature=")) {
        return Way::Signed;
    }
    if CONTROL.contains(&first) || path == "/health" { Way::Control } else { Way::Den }
}

fn data(id: &str, port: &str) -> Way {
    // Older SDKs have the client's id after a `-`.
    let id = id.split('-').next().unwrap_or("");
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Way::Refused("Invalid host: the sandbox's id is not of a-z and 0-9".to_owned());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Way::Data { sandbox: id.to_owned(), port },
        _ => Way::Refused(format!("Invalid host: `{port}` is no port")),
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(host, |(name, _)| name),
    }
}

fn is_address(name: &str) -> bool {
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, headers: &[(&'static str, &str)], path: &str, expected: Way) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        assert_eq!(decide(host, &map, path, query), expected, "{host} {headers:?} {path}");
    }

    fn data(port: u16) -> Way {
        Way::Data { sandbox: "iab1".to_owned(), port }
    }

    #[test]
    fn headers_decide_where_the_host_is_an_address() {
        let both = [("e2b-sandbox-id", "iab1"), ("e2b-sandbox-port", "49983")];
        for host in ["127.0.0.1:7878", "localhost", "[::1]:80", "sandbox.e2b.test:8443"] {
            check(host, &both, "/files", data(49983));
        }
        check("127.0.0.1", &[("e2b-sandbox-id", "iab1-6532622b"), ("e2b-sandbox-port", "1")], "/", data(1));
        check("3000-iab1.e2b.test", &both, "/", data(3000));
        for headers in [&both[..1], &both[1..]] {
            assert!(matches!(decide_with(headers), Way::Refused(why) if why.contains("missing header")));
        }
    }

    fn decide_with(headers: &[(&'static str, &str)]) -> Way {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        decide("127.0.0.1", &map, "/", "")
    }

    #[test]
    fn names_decide_elsewhere() {
        check("api.e2b.test:8443", &[], "/anything", Way::Control);
        check("49983-iab1.e2b.test:8443", &[], "/files", data(49983));
        for host in ["99999-iab1.x", "0-iab1.x", "80-IAB.x", "80-.x"] {
            assert!(matches!(decide(host, &HeaderMap::new(), "/", ""), Way::Refused(_)), "{host}");
        }
        check("den.example.com", &[], "/v1/computers", Way::Den);
        check("my-host.example.com", &[], "/v1/computers", Way::Den);
    }

    #[test]
    fn a_name_of_another_domain_is_elsewhere() {
        let domain: Domain = "e2b.test:8443".parse().unwrap();
        let check = |host: &str, expected: bool| {
            let request = Request::builder().uri("/sandboxes").header("host", host).body(axum::body::Body::empty());
            assert_eq!(is_elsewhere(&request.unwrap(), &domain), expected, "{host}");
        };
        for host in ["127.0.0.1:7878", "localhost:1", "[::1]:1", "api.e2b.test:8443", "api.e2b.test", "e2b.test:1"] {
            check(host, false);
        }
        for host in ["api.example.com", "sandbox.example.com:8443", "api.e2b.test.example.com"] {
            check(host, true);
        }
    }

    #[test]
    fn paths_decide_last() {
        for path in ["/sandboxes", "/v2/sandboxes", "/v3/templates", "/templates/aliases/base", "/health"] {
            check("127.0.0.1:1", &[], path, Way::Control);
        }
        for path in ["/v1/computers", "/healthz", "/metrics", "/", "/files?path=a"] {
            check("127.0.0.1:1", &[], path, Way::Den);
        }
        check("127.0.0.1:1", &[], "/files?path=a&signature=v1_x", Way::Signed);
    }
}
