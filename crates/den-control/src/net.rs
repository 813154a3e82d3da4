//! What a computer may reach: its policy, kept in its row and held by the gate.
//!
//! ```text
//! create ──┐                       ┌─► row (power-durable)
//! PATCH  ──┴─► whole policy checked┴─► Handle ──► gate: in force on live flows within a second
//! ```
//!
//! Invariants:
//! - A policy that is refused leaves the one before it in force, whole.
//! - A policy that cannot be read means `sealed`, and the view says so.
//! - The gate is told of a policy after its row is on the disk, and reads it from the [`Handle`] when
//!   it is told: what it was told last is never older than what was answered last.
//! - Who changed what when is in the store.
//!
//! `gate` keeps the gate running and told; `records` reads what it wrote down.

pub(crate) mod gate;
pub(crate) mod records;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use den_api::{
    NetChange, NetChangeView, NetCheck, NetDecision, NetLimitsChange, NetLimitsView, NetRequest, NetStatusView, NetView,
};
use den_gate::{
    decide::{Flow, NameOrigin, Peek, Seen, VIRTUAL, decide},
    host::Host,
    policy::{NetLimits, Policy, Posture, PrivateTarget},
    record::Outcome,
    rule::{COMPUTERS, Rule, RuleError, RuleProtocol},
};
use den_model::EventKind;
use den_store::Durability;
use serde_json::json;

use crate::{
    Error, Who,
    control::{Control, now},
    errors::chain,
    handle::Handle,
    undo::What,
};

/// The address inside: that of every computer.
pub(crate) const ADDRESS: &str = "10.0.0.2";
/// Changes that a view shows.
const CHANGES_SHOWN: usize = 10;
/// The port of a check that names none.
const CHECK_PORT: u16 = 443;

/// What holds for all computers of a house.
#[derive(Debug, Clone, Default)]
pub struct HouseNet {
    /// The posture of computers that name none.
    pub posture: Posture,
    /// The limits of computers that name none.
    pub limits: NetLimits,
    /// Targets under the floor that the operator has opened.
    pub private: Vec<PrivateTarget>,
    /// Whom the gate asks for names; none: the host's own resolvers.
    pub resolvers: Vec<IpAddr>,
    /// The program that runs as `gate --run RUN`; none: this house has no gate, and nothing leaves.
    pub program: Option<PathBuf>,
}

/// A computer's policy, as it is in force.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Net {
    pub policy: Policy,
    /// Why it is sealed though nobody asked for that.
    pub unreadable: Option<String>,
}

/// Where a handle keeps it, with the lock that puts changes in order.
pub(crate) struct NetCell {
    now: RwLock<Arc<Net>>,
    changing: tokio::sync::Mutex<()>,
}

impl Net {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, unreadable: None }
    }

    /// From a row.
    pub(crate) fn read(row: Option<&str>) -> Self {
        let read = match row {
            Some(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
            None => Err("it was made before there was a gate".to_owned()),
        };
        match read {
            Ok(policy) => Self::new(policy),
            Err(why) => Self {
                policy: Policy { posture: Posture::Sealed, ..Policy::default() },
                unreadable: Some(format!("its policy cannot be read: {why}")),
            },
        }
    }

    /// As it is kept in a row.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string(&self.policy).expect("a policy is plain data")
    }
}

impl NetCell {
    pub(crate) fn new(net: Net) -> Self {
        Self { now: RwLock::new(Arc::new(net)), changing: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn get(&self) -> Arc<Net> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, net: Net) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(net);
    }
}

impl From<RuleError> for Error {
    fn from(error: RuleError) -> Self {
        let hint = error.hint();
        let told = Self::new(error.code(), 400, error.to_string()).because(error);
        match hint {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

/// The policy of a create.
///
/// Errors: `bad_posture`, `bad_rule`, `unsupported_rule`, `wide_rule`, `floor_rule`.
pub(crate) fn of_create(request: Option<&NetRequest>, house: &HouseNet) -> Result<Policy, Error> {
    let base = Policy { posture: house.posture, limits: house.limits, ..Policy::default() };
    let Some(NetRequest { posture, allow, deny, limits, force }) = request else { return Ok(base) };
    let change = NetChange {
        posture: posture.clone(),
        allow_add: allow.clone(),
        deny_add: deny.clone(),
        remove: Vec::new(),
        limits: *limits,
        force: *force,
    };
    changed(&base, &change, &house.private)
}

/// What `old` becomes by `change`, or why it does not.
fn changed(old: &Policy, change: &NetChange, private: &[PrivateTarget]) -> Result<Policy, Error> {
    let rules = |texts: &[String]| texts.iter().map(|text| text.parse()).collect::<Result<Vec<Rule>, RuleError>>();
    let added = Policy {
        posture: change.posture.as_deref().map_or(Ok(old.posture), str::parse)?,
        allow: rules(&change.allow_add)?,
        deny: rules(&change.deny_add)?,
        limits: old.limits,
    };
    // What is wide by an earlier `force` stays so.
    added.check(private, change.force)?;
    let mut new = Policy { posture: added.posture, ..old.clone() };
    for text in &change.remove {
        let text = text.trim();
        let normal = text.parse::<Rule>().ok().map(|rule| rule.to_string());
        let is = |rule: &Rule| {
            let shown = rule.to_string();
            shown == text || normal.as_ref() == Some(&shown)
        };
        let before = new.allow.len() + new.deny.len();
        new.allow.retain(|rule| !is(rule));
        new.deny.retain(|rule| !is(rule));
        if new.allow.len() + new.deny.len() == before {
            return Err(Error::new("no_such_rule", 404, format!("there is no rule `{text}`"))
                .hint("a rule is taken out as it was written; the view of the policy has all"));
        }
    }
    for (list, added) in [(&mut new.allow, added.allow), (&mut new.deny, added.deny)] {
        for rule in added {
            if !list.contains(&rule) {
                list.push(rule);
            }
        }
    }
    if let Some(limits) = &change.limits {
        set_limits(&mut new.limits, limits);
    }
    new.check(private, true)?;
    Ok(new)
}

fn set_limits(limits: &mut NetLimits, change: &NetLimitsChange) {
    let NetLimitsChange { flows, new_per_s, bits_per_s, bytes_per_day, dns_per_s } = *change;
    limits.flows = flows.unwrap_or(limits.flows);
    limits.new_per_s = new_per_s.unwrap_or(limits.new_per_s);
    limits.bits_per_s = bits_per_s.unwrap_or(limits.bits_per_s);
    limits.bytes_per_day = bytes_per_day.unwrap_or(limits.bytes_per_day);
    limits.dns_per_s = dns_per_s.unwrap_or(limits.dns_per_s);
}

impl Control {
    /// What a computer may reach, and what its link has carried.
    ///
    /// Errors: `computer_not_found`, `ambiguous_id`.
    pub async fn net(&self, computer: &str) -> Result<NetView, Error> {
        let handle = self.0.registry.find_any(computer)?;
        let is_running = handle.status.borrow().machine.is_some();
        let status = if is_running { self.0.gate.status(handle.id).await } else { None };
        self.net_view(&handle, status).await
    }

    async fn net_view(&self, handle: &Handle, status: Option<den_gate::wire::Status>) -> Result<NetView, Error> {
        let net = handle.net.get();
        let (gate, gate_reason) = self.0.gate.state();
        let changes = self.0.store.net_changes(handle.id, CHANGES_SHOWN).await?;
        let texts = |rules: &[Rule]| rules.iter().map(Rule::to_string).collect();
        Ok(NetView {
            posture: net.policy.posture.to_string(),
            sealed_because: net.unreadable.clone(),
            allow: texts(&net.policy.allow),
            deny: texts(&net.policy.deny),
            limits: limits_view(&net.policy.limits),
            private: self.0.net.private.iter().map(PrivateTarget::to_string).collect(),
            address: ADDRESS.to_owned(),
            gate: gate.to_owned(),
            gate_reason,
            status: status.map(|status| NetStatusView {
                flows: status.flows,
                allowed: status.allowed,
                denied: status.denied,
                limited: status.limited,
                up_bytes: status.up_bytes,
                down_bytes: status.down_bytes,
                day_bytes: status.day_bytes,
            }),
            changes: changes
                .into_iter()
                .map(|change| {
                    let policy = Net::read(Some(&change.net)).policy;
                    NetChangeView {
                        at: change.at,
                        who: change.who,
                        posture: policy.posture.to_string(),
                        rules: policy.allow.len() + policy.deny.len(),
                    }
                })
                .collect(),
        })
    }

    /// Changes what a computer may reach: all of it or nothing. In force, on live flows too, when this
    /// returns, if the gate is up; else when it comes back.
    ///
    /// Errors: `computer_not_found`, `bad_posture`, `bad_rule`, `unsupported_rule`, `wide_rule`,
    /// `floor_rule`, `no_such_rule`.
    pub async fn change_net(&self, computer: &str, change: NetChange, who: &Who) -> Result<NetView, Error> {
        self.0.open_for_work()?;
        let handle = self.0.registry.find(computer)?;
        let private = self.0.net.private.clone();
        self.put_net(&handle, who, None, move |old| changed(old, &change, &private)).await
    }

    /// Puts another policy in force, which `next` makes of the one before; `takes_back` is the change that it undoes.
    pub(crate) async fn put_net(
        &self,
        handle: &Arc<Handle>,
        who: &Who,
        takes_back: Option<u64>,
        next: impl FnOnce(&Policy) -> Result<Policy, Error> + Send + 'static,
    ) -> Result<NetView, Error> {
        handle.plugged()?;
        // A task of its own: a client that goes away does not leave a row that the gate was not told of.
        let (control, handle, who) = (self.clone(), Arc::clone(handle), who.clone());
        let changing = self.0.tasks.spawn(async move {
            let _in_order = handle.net.changing.lock().await;
            let old = handle.net.get();
            let policy = next(&old.policy)?;
            policy.check(&control.0.net.private, true)?;
            let nothing_new = policy == old.policy && old.unreadable.is_none();
            if !nothing_new {
                let net = Net::new(policy);
                let at = now();
                let (before, after) = (Box::new(old.policy.clone()), Box::new(net.policy.clone()));
                let undo = What::Net { before, after }.record(&handle, &who.0, at, takes_back);
                let recorded = den_store::NetChange { at, who: who.0.clone(), net: net.text() };
                control.0.store.set_net(handle.id, recorded, undo, Durability::Power).await?;
                tracing::info!(
                    computer = %handle.id, name = %handle.name(), who = who.0, posture = %net.policy.posture,
                    allow = net.policy.allow.len(), deny = net.policy.deny.len(), "what a computer may reach has changed"
                );
                let detail = json!({
                    "posture": net.policy.posture.to_string(),
                    "allow": net.policy.allow.len(),
                    "deny": net.policy.deny.len(),
                });
                handle.net.set(net);
                control.0.gate.policy(handle.id).await;
                control.0.events.tell(EventKind::PolicyChanged, Some(&handle), Some(&who.0), detail);
            }
            let status = control.0.gate.status(handle.id).await;
            control.net_view(&handle, status).await
        });
        changing.await.map_err(|error| Error::internal("a task panicked").because(error))?
    }

    /// What would be decided about a flow to `HOST[:PORT]` or `ADDRESS[:PORT]`. Nothing is sent, no
    /// name is resolved.
    ///
    /// Errors: `computer_not_found`, `bad_target`.
    pub async fn check_net(&self, computer: &str, check: &NetCheck) -> Result<NetDecision, Error> {
        let handle = self.0.registry.find_any(computer)?;
        let target = check.target.parse()?;
        Ok(check_target(&handle.net.get().policy, &target, &self.0.net.private))
    }
}

fn limits_view(limits: &NetLimits) -> NetLimitsView {
    let NetLimits { flows, new_per_s, bits_per_s, bytes_per_day, dns_per_s } = *limits;
    NetLimitsView { flows, new_per_s, bits_per_s, bytes_per_day, dns_per_s }
}

/// Where a flow would go.
#[derive(Debug, PartialEq)]
enum Place {
    Address(Ipv4Addr),
    Name(Host),
}

#[derive(Debug, PartialEq)]
struct Target {
    place: Place,
    port: u16,
}

impl std::str::FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: String| {
            Error::new("bad_target", 400, format!("`{text}` is no target: {why}"))
                .hint("a target looks like `example.com:443`, `192.0.2.7:22` or `db.vm.internal:5432`")
        };
        let text = text.trim();
        // `vm:db:5432` is how a rule says it.
        let (text, is_computer) = text.strip_prefix("vm:").map_or((text, false), |rest| (rest, true));
        let (place, port) = match text.rsplit_once(':') {
            None => (text, CHECK_PORT),
            Some((place, port)) => match port.parse() {
                Ok(0) | Err(_) => return Err(bad(format!("`{port}` is no port from 1 to 65535"))),
                Ok(port) => (place, port),
            },
        };
        let place = match place.parse() {
            Ok(address) if !is_computer => Place::Address(address),
            _ => {
                let name = if is_computer { format!("{place}.{COMPUTERS}") } else { place.to_owned() };
                Place::Name(name.parse().map_err(|error| bad(chain(&error)))?)
            }
        };
        Ok(Self { place, port })
    }
}

/// As the gate would decide, with what it would see on the wire taken to be as the rule wants it.
fn check_target(policy: &Policy, target: &Target, private: &[PrivateTarget]) -> NetDecision {
    let Target { place, port } = target;
    let (address, name, origin, shown) = match place {
        Place::Address(address) => (*address, None, NameOrigin::None, format!("{address}:{port}")),
        Place::Name(name) => (VIRTUAL.0, Some(name), NameOrigin::Virtual, format!("{name}:{port}")),
    };
    let flow = |seen| Flow { target: SocketAddrV4::new(address, *port), name, origin, seen };
    let first = decide(policy, &flow(Seen::Nothing), private);
    let is_tls = match first.rule.map(|rule| rule.protocol) {
        Some(RuleProtocol::Tls) => true,
        Some(RuleProtocol::Http) => false,
        _ => *port != 80,
    };
    let seen = if is_tls { Seen::Tls { sni: name, ech: false } } else { Seen::Http { host: name } };
    let decision = match first.obligations.peek {
        Peek::No => first,
        Peek::Must | Peek::IfWeb => decide(policy, &flow(seen), private),
    };
    let mut provided = Vec::new();
    if decision.verdict == Outcome::Allow
        && let Some(name) = name
    {
        if first.obligations.peek == Peek::Must {
            provided.push(match is_tls {
                true => format!("TLS is spoken, and names `{name}`"),
                false => format!("HTTP is spoken, for the host `{name}`"),
            });
        }
        if let Some(computer) = decision.obligations.computer {
            provided.push(format!("the computer `{computer}` runs, and listens there"));
        } else if decision.obligations.resolve {
            provided.push(format!("`{name}` has an address, and none that no computer may reach"));
        }
    }
    NetDecision {
        target: shown,
        verdict: match decision.verdict {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
            Outcome::Ask => "ask",
        }
        .to_owned(),
        why: decision.why.as_str().to_owned(),
        rule: decision.rule.map(Rule::to_string),
        provided,
    }
}

#[cfg(test)]
mod tests;
