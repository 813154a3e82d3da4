//! E2B's names: where they are answered, the listener that they lead to, and what clients trust it by.
//!
//! ```text
//! bind: TLS, then DNS ─► authority read or made ─► (the house is open) ─► publish ─► serve ─► withdraw
//! ```
//!
//! What clients are told to trust lies beside the run folder, for all to read: the data folder is its owner's alone.

use std::{
    fmt,
    fs::{DirBuilder, Permissions},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::Router;
use den_e2b::{Authority, Domain, Responder};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    settings::{NamesWanted, Settings},
    write_private,
};
use crate::{
    cmd::e2b::names::{FILE, NamesFile},
    report::{Trouble, chain},
};

const CA: &str = "ca.pem";
const BUNDLE: &str = "bundle.pem";

/// The domain, bound and not yet served.
pub struct Names {
    domain: Domain,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    responder: Option<Responder>,
    address: SocketAddr,
    ca: String,
    bundle: String,
}

impl Names {
    /// Takes the addresses, and has the certificates ready.
    ///
    /// Errors: an address that cannot be had, an authority that is of no use.
    pub async fn bind(wanted: &NamesWanted, settings: &Settings) -> Result<Self, Trouble> {
        let NamesWanted { domain, dns } = wanted;
        // On the addresses that the house listens on, by another port.
        let at = SocketAddr::new(settings.listen.ip(), domain.port());
        let bound = TcpListener::bind(at).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|error| {
            let trouble = Trouble::io(format_args!("`e2b_domain`: cannot listen on {at}"), &error);
            match error.kind() {
                io::ErrorKind::AddrInUse => {
                    let name = domain.name();
                    trouble.hint(format_args!("something listens there; take another port: --e2b-domain {name}:PORT"))
                }
                _ => trouble,
            }
        })?;
        let domain = domain.clone().at(address.port());
        let responder = match dns {
            None => None,
            Some(dns) => Some(responder(*dns, &domain, address.ip()).await?),
        };
        let authority =
            Authority::open(&settings.data, &domain).map_err(|error| Trouble::new(chain(&error)).hint(error.hint()))?;
        let (ca, bundle) = (authority.pem(), authority.bundle());
        let tls =
            authority.into_tls().map_err(|error| Trouble::new(format_args!("no certificate for {domain}: {error}")))?;
        Ok(Self { domain, listener, tls: Arc::new(tls), responder, address, ca, bundle })
    }

    /// The domain, with the port that it has.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Serves it until `ended`, then waits for what is under way.
    pub async fn serve(self, router: Router, ended: CancellationToken) {
        let answering = self.responder.map(|responder| tokio::spawn(responder.run()));
        let served = den_server::serve_tls(self.listener, self.tls, router, ended.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "cannot serve the domain");
        }
        if let Some(answering) = answering {
            answering.abort();
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E2B at https://api.{}", self.domain)?;
        match &self.responder {
            Some(responder) => write!(f, ", its names are answered at {}", responder.address()),
            None => Ok(()),
        }
    }
}

async fn responder(at: SocketAddr, domain: &Domain, address: IpAddr) -> Result<Responder, Trouble> {
    // Where all addresses are listened on, that of the responder is one of them.
    let address = if address.is_unspecified() { at.ip() } else { address };
    Responder::bind(at, domain, address).await.map_err(|error| {
        let trouble = Trouble::io(format_args!("`e2b_dns`: cannot answer for {} at {at}", domain.name()), &error);
        let other = "take another address, for example --e2b-dns 127.0.5.4, or --e2b-dns off and have your own \
                     server answer for the domain";
        match error.kind() {
            io::ErrorKind::AddrInUse => trouble.hint(format_args!("something answers there; {other}")),
            io::ErrorKind::AddrNotAvailable => trouble.hint(format_args!("no address of this host; {other}")),
            _ => trouble.hint(other),
        }
    })
}

/// Writes down where the domain is and puts out what clients are to trust; without a domain, removes what an earlier
/// daemon left.
pub fn publish(settings: &Settings, names: Option<&Names>) -> Result<(), Trouble> {
    let Some(names) = names else {
        withdraw(settings);
        return Ok(());
    };
    let folder = public_folder(&settings.run).map_err(|error| Trouble::io(settings.run.display(), &error))?;
    make_public(&folder).map_err(|error| Trouble::io(folder.display(), &error))?;
    for (name, text) in [(CA, &names.ca), (BUNDLE, &names.bundle)] {
        write_public(&folder, name, text).map_err(|error| Trouble::io(folder.join(name).display(), &error))?;
    }
    let file = NamesFile {
        domain: names.domain.to_string(),
        name: names.domain.name().to_owned(),
        address: names.address,
        dns: names.responder.as_ref().map(Responder::address),
        ca: folder.join(CA),
        bundle: folder.join(BUNDLE),
    };
    write_private(&settings.data, FILE, &serde_json::to_string(&file).expect("texts"))
}

/// Removes what [`publish`] made.
pub fn withdraw(settings: &Settings) {
    let Ok(folder) = public_folder(&settings.run) else { return };
    let _ = std::fs::remove_file(settings.data.join(FILE));
    if !is_own(&folder) {
        return;
    }
    for name in [CA, BUNDLE] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    let _ = std::fs::remove_dir(folder);
}

/// Beside the run folder, which is its owner's alone: `/run/den-e2b`.
fn public_folder(run: &Path) -> io::Result<PathBuf> {
    let run = std::path::absolute(run)?;
    let name = run.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    Ok(run.with_file_name(format!("{name}-e2b")))
}

/// Whether it is a folder of this user's, and no link to somewhere else.
fn is_own(folder: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == own)
}

fn make_public(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_own(folder) => {}
        made => made?,
    }
    // Whatever the umask was.
    std::fs::set_permissions(folder, Permissions::from_mode(0o755))
}

fn write_public(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(folder.join(name)).map_err(|error| error.error)?;
    Ok(())
}
