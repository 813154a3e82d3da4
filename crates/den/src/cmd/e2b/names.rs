//! What the daemon writes down of its domain, and what that means to a shell.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::report::Trouble;

/// Its name in the data folder.
pub const FILE: &str = "e2b.json";

/// Where resolv.conf(5) has programs ask.
const DNS_PORT: u16 = 53;

/// The domain of a daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct NamesFile {
    /// With its port, as SDKs take it.
    pub domain: String,
    /// Without.
    pub name: String,
    /// Where its TLS listens.
    pub address: SocketAddr,
    /// Where its names are answered.
    pub dns: Option<SocketAddr>,
    /// The certificate of its authority.
    pub ca: PathBuf,
    /// That and those that the host trusts.
    pub bundle: PathBuf,
}

impl NamesFile {
    /// That of the daemon whose data lie in `data`.
    pub fn find(data: &Path) -> Result<Self, Trouble> {
        let path = data.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Trouble::new("the daemon has no domain of its own")
                .hint("den serve --e2b-domain e2b.test:8443; for one behind a proxy of yours: den e2b env --domain"),
            _ => Trouble::io(path.display(), &error),
        })?;
        serde_json::from_str(&text).map_err(|error| Trouble::new(format_args!("{}: {error}", path.display())))
    }

    /// The variables beside the key.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("E2B_DOMAIN", self.domain.clone()),
            ("SSL_CERT_FILE", self.bundle.display().to_string()),
            ("NODE_EXTRA_CA_CERTS", self.ca.display().to_string()),
        ]
    }

    /// How to have the names resolved, as comments of a shell.
    pub fn advice(&self) -> String {
        let Self { name, dns, .. } = self;
        let Some(dns) = dns else {
            let at = match self.address.ip() {
                all if all.is_unspecified() => "this host".to_owned(),
                one => one.to_string(),
            };
            return format!("# Names are not answered (--e2b-dns off): have {name} and *.{name} lead to {at}.\n");
        };
        let (server, usual) = (dns.ip(), dns.port() == DNS_PORT);
        let asked = if usual { server.to_string() } else { dns.to_string() };
        let mut text = format!(
            "# Names of {name} are answered at {asked} alone: have them asked for there, once, as root.\n\
             # With systemd-resolved, in /etc/systemd/resolved.conf.d/den.conf, then systemctl restart systemd-resolved:\n\
             #   [Resolve]\n\
             #   DNS={asked}\n\
             #   Domains=~{name}\n"
        );
        if usual {
            text.push_str(&format!(
                "# Without it, in /etc/resolv.conf before the servers that are there, which go on to have all other names:\n\
                 #   nameserver {server}\n"
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_the_server_and_the_domain() {
        let file = |dns: Option<&str>| NamesFile {
            domain: "e2b.test:8443".to_owned(),
            name: "e2b.test".to_owned(),
            address: "127.0.0.1:8443".parse().unwrap(),
            dns: dns.map(|dns| dns.parse().unwrap()),
            ca: "/run/den-e2b/ca.pem".into(),
            bundle: "/run/den-e2b/bundle.pem".into(),
        };
        let usual = file(Some("127.0.5.3:53")).advice();
        for line in ["#   DNS=127.0.5.3\n", "#   Domains=~e2b.test\n", "#   nameserver 127.0.5.3\n"] {
            assert!(usual.contains(line), "{usual}");
        }
        let other = file(Some("127.0.5.3:5353")).advice();
        assert!(other.contains("DNS=127.0.5.3:5353") && !other.contains("nameserver"), "{other}");
        let none = file(None).advice();
        assert!(none.contains("*.e2b.test lead to 127.0.0.1"), "{none}");
        assert!([usual, other, none].iter().flat_map(|text| text.lines()).all(|line| line.starts_with('#')));
    }
}
