//! Rules that allow more than their author may see: names that anyone can register, below which a
//! stranger's server is as allowed as the one that was meant.
//!
//! The list of public suffixes (crate `psl`) holds both registries (`com`, `co.uk`) and, in its
//! private section, hosts that give names below theirs to everybody (`github.io`).

use crate::host::Host;
use crate::rule::{Rule, Target};

/// Names above public suffixes of one host, which the list has no entry for themselves.
const ABOVE_SUFFIXES: [&str; 5] =
    ["amazonaws.com", "amazonaws.com.cn", "windows.net", "core.windows.net", "cloudapp.azure.com"];
/// Bits of a prefix below which a block is a good part of the internet.
const PREFIX_MIN: u8 = 8;

/// What is too wide about a rule, for a person to weigh.
pub fn too_wide(rule: &Rule) -> Option<String> {
    match &rule.target {
        Target::Any => Some("`*` is every host there is".into()),
        Target::Under(parent) => wide_above(parent),
        Target::Net { prefix, .. } if *prefix < PREFIX_MIN => {
            Some(format!("a /{prefix} is more than 16 million addresses"))
        }
        Target::Net { .. } | Target::Host(_) | Target::Computer(_) => None,
    }
}

fn wide_above(parent: &Host) -> Option<String> {
    let name = parent.as_str();
    let suffix = psl::suffix(name.as_bytes())?;
    if suffix.as_bytes().len() == name.len() {
        return Some(match (name.contains('.'), suffix.typ()) {
            (false, _) => format!("`{name}` is a top-level domain"),
            (true, Some(psl::Type::Private)) => {
                format!("anybody can get a name below `{name}` (public suffix list, private section)")
            }
            (true, _) => format!("anybody can register a name below `{name}` (public suffix list)"),
        });
    }
    ABOVE_SUFFIXES
        .contains(&name)
        .then(|| format!("hosts below `{name}` give names to anybody (public suffix list, private section)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &str, expected: Option<&str>) {
        let reason = too_wide(&rule.parse().unwrap());
        match expected {
            None => assert_eq!(reason, None, "{rule}"),
            Some(part) => assert!(reason.as_deref().is_some_and(|r| r.contains(part)), "{rule}: {reason:?}"),
        }
    }

    #[test]
    fn eg21_wide_rules_have_a_reason() {
        check("*", Some("every host"));
        check("tcp://*:22", Some("every host"));
        check("*.com", Some("top-level domain"));
        check("*.test", Some("top-level domain"));
        check("*.internal", Some("top-level domain"));
        check("*.co.uk", Some("register"));
        check("*.github.io", Some("private section"));
        check("*.GitHub.IO:443", Some("private section"));
        check("*.s3.amazonaws.com", Some("private section"));
        check("*.vercel.app", Some("private section"));
        check("*.amazonaws.com", Some("private section"));
        check("*.blob.core.windows.net", Some("private section"));
        check("*.core.windows.net", Some("private section"));
        check("*.foo.ck", Some("register"));
        check("*.xn--p1ai", Some("top-level domain"));
        check("0.0.0.0/1", Some("16 million"));
    }

    #[test]
    fn narrow_rules_have_none() {
        for rule in [
            "github.io",
            "*.example.com",
            "*.good.test",
            "*.den.github.io",
            "*.bucket.s3.amazonaws.com",
            "203.0.113.0/24",
            "vm:db:5432",
            "com",
        ] {
            check(rule, None);
        }
    }
}
