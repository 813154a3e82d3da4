//! The gate's own resolver: it asks the servers that the operator named, or those of the host.
//!
//! Names are absolute: no search list, no hosts file, nothing of the host's own view of the world
//! but its servers. Answers are cached for all computers together, bounded by number.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

use crate::host::Host;

/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries after the first.
const RETRIES: usize = 1;
/// How long a name may take altogether, over all servers and the links of a chain.
const TIMEOUT: Duration = Duration::from_secs(6);
/// Responses that are kept.
const CACHE_RESPONSES_MAX: u64 = 4096;
/// How long a response is kept at most, whatever it says.
const CACHE_TTL_MAX: Duration = Duration::from_secs(3600);
/// How long "there is no such name" is kept at most.
const CACHE_NEGATIVE_TTL_MAX: Duration = Duration::from_secs(60);

/// Asks for names, from the host's side.
#[derive(Debug, Clone)]
pub struct Resolver {
    inner: TokioResolver,
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The host says no server to ask.
    #[error("the host names no DNS server in /etc/resolv.conf")]
    NoServers {
        /// What stood in the way.
        source: NetError,
    },
    /// There is no such name, or it has no address.
    #[error("`{name}` has no address: {}", whether(.exists))]
    NoAddress {
        /// The name.
        name: Host,
        /// Is there such a name?
        exists: bool,
    },
    /// The servers gave no answer.
    #[error("no server answered for `{name}`")]
    Failed {
        /// The name.
        name: Host,
        /// What stood in the way.
        source: NetError,
    },
}

/// What the servers say of a name and a type.
#[derive(Debug, Clone)]
pub struct Found {
    /// The records, with the chain of CNAME that leads to them; none: [`Found::exists`] says why.
    pub answers: Vec<Record>,
    /// Is there such a name?
    pub exists: bool,
    /// The zone's SOA, where there are no records.
    pub soa: Option<Record>,
}

impl Resolver {
    /// Asks these servers; none: those of the host's resolv.conf.
    ///
    /// # Errors
    /// Where no server is known.
    pub fn new(servers: &[IpAddr]) -> Result<Self, ResolveError> {
        if servers.is_empty() {
            let (system, _) = hickory_resolver::system_conf::read_system_conf()
                .map_err(|source| ResolveError::NoServers { source })?;
            let (_, _, servers) = system.into_parts();
            return Self::build(servers);
        }
        Self::build(servers.iter().map(|server| NameServerConfig::udp_and_tcp(*server)).collect())
    }

    /// Asks servers at other ports than 53.
    ///
    /// # Errors
    /// Where no server is known.
    pub fn at(servers: &[SocketAddr]) -> Result<Self, ResolveError> {
        let server = |address: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            NameServerConfig::new(address.ip(), true, connections.into())
        };
        Self::build(servers.iter().map(server).collect())
    }

    fn build(servers: Vec<NameServerConfig>) -> Result<Self, ResolveError> {
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = TRY_TIMEOUT;
        options.attempts = RETRIES;
        options.cache_size = CACHE_RESPONSES_MAX;
        options.positive_max_ttl = Some(CACHE_TTL_MAX);
        options.negative_max_ttl = Some(CACHE_NEGATIVE_TTL_MAX);
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
        options.preserve_intermediates = true;
        let inner = builder.build().map_err(|source| ResolveError::NoServers { source })?;
        Ok(Self { inner })
    }

    /// Returns the addresses of a name, in the order in which they should be tried: IPv4 if it has
    /// any, else IPv6. None of them was held against the floor.
    ///
    /// # Errors
    /// Where there are none, or no server answers in time.
    pub async fn addresses(&self, name: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        let wanted = absolute(name)?;
        let found = tokio::time::timeout(TIMEOUT, self.inner.lookup_ip(wanted)).await;
        match found.unwrap_or(Err(NetError::Timeout)) {
            Ok(found) => {
                let addresses: Vec<_> = found.iter().collect();
                if addresses.is_empty() {
                    return Err(ResolveError::NoAddress { name: name.clone(), exists: true });
                }
                Ok(addresses)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Err(ResolveError::NoAddress {
                name: name.clone(),
                exists: none.response_code != ResponseCode::NXDomain,
            }),
            Err(source) => Err(ResolveError::Failed { name: name.clone(), source }),
        }
    }

    /// Returns the records of a name of one type.
    ///
    /// # Errors
    /// Where no server answers in time. That there are none is no error.
    pub async fn lookup(&self, name: &Host, kind: RecordType) -> Result<Found, ResolveError> {
        let wanted = absolute(name)?;
        let found = tokio::time::timeout(TIMEOUT, self.inner.lookup(wanted, kind)).await;
        match found.unwrap_or(Err(NetError::Timeout)) {
            Ok(found) => Ok(Found { answers: found.answers().to_vec(), exists: true, soa: None }),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Ok(Found {
                answers: Vec::new(),
                exists: none.response_code != ResponseCode::NXDomain,
                soa: none.soa.map(|soa| {
                    let mut record = Record::from_rdata(soa.name, soa.ttl, RData::SOA(soa.data));
                    record.dns_class = soa.dns_class;
                    record
                }),
            }),
            Err(source) => Err(ResolveError::Failed { name: name.clone(), source }),
        }
    }
}

/// A host as an absolute name, label by label: nothing in it is read a second time.
pub(super) fn absolute(name: &Host) -> Result<Name, ResolveError> {
    let labels = name.as_str().split('.').map(str::as_bytes);
    let mut wanted = Name::from_labels(labels)
        .map_err(|source| ResolveError::Failed { name: name.clone(), source: source.into() })?;
    wanted.set_fqdn(true);
    Ok(wanted)
}

fn whether(exists: &bool) -> &'static str {
    if *exists { "the name exists, but has none" } else { "there is no such name" }
}
