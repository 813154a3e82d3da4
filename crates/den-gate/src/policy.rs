//! What a computer may reach: its posture, its rules, its limits.
//!
//! ```text
//!            names                          flows (see `decide`)
//! sealed     refused                        refused
//! guarded    allowed ones, virtual          those of an allowed name or block
//! open       all but denied ones, real      all but the floor and what is denied
//! ```
//!
//! Deny beats allow. A policy is checked whole before it replaces another; one that is refused
//! leaves the old one in force.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::decide::Why;
use crate::floor;
use crate::host::Host;
use crate::lint;
use crate::rule::{self, Fault, Ports, Rule, RuleError, Target};

/// Rules of one list, at most.
pub const RULES_MAX: usize = 256;

/// How a computer faces the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Posture {
    /// The public internet, minus the floor and what is denied.
    #[default]
    Open,
    /// Only what a rule allows.
    Guarded,
    /// Nothing.
    Sealed,
}

/// What a computer may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// How it faces the world.
    pub posture: Posture,
    /// What it may, in guarded.
    #[serde(default)]
    pub allow: Vec<Rule>,
    /// What it may not, in any posture. Beats `allow`.
    #[serde(default)]
    pub deny: Vec<Rule>,
    /// How much.
    #[serde(default)]
    pub limits: NetLimits,
}

/// How much of the network a computer may use; 0 means without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetLimits {
    /// Flows that are open at once.
    pub flows: u32,
    /// New flows a second; a burst of four seconds' worth is let through.
    pub new_per_s: u32,
    /// Bits a second, each way.
    pub bits_per_s: u64,
    /// Bytes a day (UTC), both ways together.
    pub bytes_per_day: u64,
    /// DNS queries a second; a burst of four seconds' worth is let through.
    pub dns_per_s: u32,
}

impl Default for NetLimits {
    /// GUARD.md section 11.
    fn default() -> Self {
        Self { flows: 512, new_per_s: 50, bits_per_s: 200_000_000, bytes_per_day: 20_000_000_000, dns_per_s: 50 }
    }
}

/// One target under the floor that the operator has opened: `10.1.2.3:5432`, `10.1.2.0/24:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PrivateTarget {
    /// First address of the block.
    pub address: Ipv4Addr,
    /// Bits of the block's prefix.
    pub prefix: u8,
    /// The port.
    pub port: u16,
}

impl Posture {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Guarded => "guarded",
            Self::Sealed => "sealed",
        }
    }
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Posture {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "open" => Ok(Self::Open),
            "guarded" => Ok(Self::Guarded),
            "sealed" => Ok(Self::Sealed),
            other => Err(RuleError::Posture { text: other.to_owned() }),
        }
    }
}

/// What is answered to a computer that asks for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameVerdict<'a> {
    /// A virtual address, which stands for the name.
    Virtual,
    /// What the resolver says.
    Real,
    /// Nothing, and why: REFUSED, and no query leaves.
    Deny(Why, Option<&'a Rule>),
}

impl Policy {
    /// Whether this may be put in force. `force` lets wide rules through, and nothing else.
    pub fn check(&self, private: &[PrivateTarget], force: bool) -> Result<(), RuleError> {
        for list in [&self.allow, &self.deny] {
            if list.len() > RULES_MAX {
                return Err(RuleError::TooMany { count: list.len() });
            }
        }
        for rule in &self.allow {
            if let Target::Net { address, prefix } = rule.target
                && let Some((block, bits)) = floor::overlaps(address, prefix)
                && !private.iter().any(|target| target.covers(address, prefix, rule.ports))
            {
                return Err(RuleError::Floor { text: rule.to_string(), block, prefix: bits });
            }
            if !force && let Some(reason) = lint::too_wide(rule) {
                return Err(RuleError::Wide { text: rule.to_string(), reason });
            }
        }
        Ok(())
    }

    /// What is answered to a query for this name.
    pub fn may_resolve(&self, name: &Host) -> NameVerdict<'_> {
        if self.posture == Posture::Sealed {
            return NameVerdict::Deny(Why::Sealed, None);
        }
        // A rule that takes one port or one protocol away leaves the name.
        if let Some(rule) = self.deny.iter().find(|rule| rule.is_whole() && rule.names(name)) {
            return NameVerdict::Deny(Why::DeniedRule, Some(rule));
        }
        if self.posture == Posture::Open && !rule::is_computer(name) {
            return NameVerdict::Real;
        }
        let mut verdict = NameVerdict::Deny(Why::NoRule, None);
        for rule in self.allow.iter().filter(|rule| rule.names(name)) {
            if rule.real_dns {
                return NameVerdict::Real;
            }
            verdict = NameVerdict::Virtual;
        }
        verdict
    }

    /// Whether flows are decided by name where the posture alone would not ask for it.
    pub fn denies_names(&self) -> bool {
        self.deny.iter().any(|rule| !matches!(rule.target, Target::Net { .. }))
    }

    /// The rule of `deny` that takes this address away.
    pub fn denies_address(&self, address: Ipv4Addr, port: u16) -> Option<&Rule> {
        self.deny.iter().find(|rule| rule.holds(address) && rule.denies_port(port))
    }
}

impl PrivateTarget {
    /// Whether this address and port is it, or one of it.
    pub fn holds(&self, address: Ipv4Addr, port: u16) -> bool {
        self.port == port && floor::network(address, self.prefix) == self.address
    }

    /// Whether all of a block, at these ports, is of it.
    fn covers(&self, address: Ipv4Addr, prefix: u8, ports: Ports) -> bool {
        prefix >= self.prefix
            && floor::network(address, self.prefix) == self.address
            && ports == Ports::Range { first: self.port, last: self.port }
    }
}

impl FromStr for PrivateTarget {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let refused = |fault| RuleError::Private { text: rule::shown(text), fault };
        let rule: Rule = text.parse().map_err(|error| match error {
            RuleError::Bad { fault, .. } => refused(fault),
            _ => refused(Fault::Empty),
        })?;
        match (rule.target, rule.ports) {
            (Target::Net { address, prefix }, Ports::Range { first, last }) if first == last => {
                Ok(Self { address, prefix, port: first })
            }
            (Target::Net { .. }, _) => Err(refused(Fault::PortNeeded)),
            _ => Err(refused(Fault::Empty)),
        }
    }
}

impl fmt::Display for PrivateTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            32 => write!(f, "{}:{}", self.address, self.port),
            prefix => write!(f, "{}/{prefix}:{}", self.address, self.port),
        }
    }
}

impl TryFrom<String> for PrivateTarget {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<PrivateTarget> for String {
    fn from(target: PrivateTarget) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests;
