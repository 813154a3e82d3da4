//! What a policy answers, and which policies are refused.

use super::*;

fn rules(list: &[&str]) -> Vec<Rule> {
    list.iter().map(|text| text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))).collect()
}

fn policy(posture: Posture, allow: &[&str], deny: &[&str]) -> Policy {
    Policy { posture, allow: rules(allow), deny: rules(deny), limits: NetLimits::default() }
}

fn check(policy: &Policy, name: &str, expected: NameVerdict<'_>) {
    assert_eq!(policy.may_resolve(&name.parse().unwrap()), expected, "{name}");
}

#[test]
fn eg01_names_are_answered_by_posture_and_rules() {
    let nothing = NameVerdict::Deny(Why::NoRule, None);
    let sealed = policy(Posture::Sealed, &["good.test", "vm:db:1"], &[]);
    check(&sealed, "good.test", NameVerdict::Deny(Why::Sealed, None));
    check(&sealed, "db.vm.internal", NameVerdict::Deny(Why::Sealed, None));

    let allow = ["good.test", "*.wild.test", "real.test dns=real", "*.real.test", "tcp://db.test:5432", "vm:db:1"];
    let deny = ["bad.wild.test", "half.wild.test:22", "http://web.wild.test"];
    let guarded = policy(Posture::Guarded, &allow, &deny);
    check(&guarded, "good.test", NameVerdict::Virtual);
    check(&guarded, "secret.evil.test", nothing);
    check(&guarded, "a.b.wild.test", NameVerdict::Virtual);
    check(&guarded, "wild.test", nothing);
    check(&guarded, "bad.wild.test", NameVerdict::Deny(Why::DeniedRule, Some(&guarded.deny[0])));
    check(&guarded, "half.wild.test", NameVerdict::Virtual);
    check(&guarded, "web.wild.test", NameVerdict::Virtual);
    check(&guarded, "real.test", NameVerdict::Real);
    check(&guarded, "a.real.test", NameVerdict::Virtual);
    check(&guarded, "db.test", NameVerdict::Virtual);
    check(&guarded, "db.vm.internal", NameVerdict::Virtual);
    check(&guarded, "other.vm.internal", nothing);

    let open = policy(Posture::Open, &["vm:db:1"], &["*.evil.test"]);
    check(&open, "good.test", NameVerdict::Real);
    check(&open, "evil.test", NameVerdict::Real);
    check(&open, "a.evil.test", NameVerdict::Deny(Why::DeniedRule, Some(&open.deny[0])));
    check(&open, "db.vm.internal", NameVerdict::Virtual);
    check(&open, "other.vm.internal", nothing);
    check(&open, "vm.internal", nothing);
}

#[test]
fn eg21_wide_rules_need_force() {
    for rule in ["*", "*.com", "*.github.io", "*.s3.amazonaws.com"] {
        let wide = policy(Posture::Guarded, &[rule], &[]);
        let error = wide.check(&[], false).unwrap_err();
        assert_eq!(error.code(), "wide_rule", "{rule}");
        assert!(error.hint().unwrap().contains("--force"));
        assert_eq!(wide.check(&[], true), Ok(()));
        assert_eq!(policy(Posture::Open, &[], &[rule]).check(&[], false), Ok(()), "denying much is no risk");
    }
    let error = policy(Posture::Guarded, &["*.github.io"], &[]).check(&[], false).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"rule "*.github.io" is too wide: anybody can get a name below `github.io` (public suffix list, private section)"#
    );
}

#[test]
fn rules_for_the_floor_are_refused_unless_it_is_opened_there() {
    let private = ["10.1.2.0/24:5432".parse().unwrap()];
    let check = |rule: &str, expected: Option<&str>| {
        for force in [false, true] {
            let error = policy(Posture::Guarded, &[rule], &[]).check(&private, force).err();
            assert_eq!(error.as_ref().map(RuleError::to_string).as_deref(), expected, "{rule}");
            assert!(error.is_none_or(|e| e.code() == "floor_rule" && e.hint().is_some()));
        }
    };
    check(
        "169.254.169.254",
        Some(r#"rule "169.254.169.254" reaches into 169.254.0.0/16, which no computer may reach"#),
    );
    check("0.0.0.0/0", Some(r#"rule "0.0.0.0/0" reaches into 0.0.0.0/8, which no computer may reach"#));
    check("10.1.2.3:5432", None);
    check("10.1.2.0/24:5432", None);
    check("10.1.2.3", Some(r#"rule "10.1.2.3" reaches into 10.0.0.0/8, which no computer may reach"#));
    check("10.1.2.3:5433", Some(r#"rule "10.1.2.3:5433" reaches into 10.0.0.0/8, which no computer may reach"#));
    check("10.1.0.0/16:5432", Some(r#"rule "10.1.0.0/16:5432" reaches into 10.0.0.0/8, which no computer may reach"#));
    check("203.0.113.0/24", None);
    let many = Policy { allow: rules(&["a.test"; RULES_MAX + 1]), ..Policy::default() };
    assert_eq!(many.check(&[], true).unwrap_err().to_string(), "257 rules in one list; at most 256 are kept");
}

#[test]
fn private_targets_read_back() {
    let check = |text: &str, expected: Result<&str, &str>| {
        let got = text.parse::<PrivateTarget>();
        let shown = got.as_ref().map(PrivateTarget::to_string).map_err(RuleError::to_string);
        assert_eq!(shown.as_deref().map_err(String::as_str), expected, "{text}");
    };
    check("10.1.2.3:5432", Ok("10.1.2.3:5432"));
    check("10.1.2.0/24:443", Ok("10.1.2.0/24:443"));
    check("10.1.2.3/32:443", Ok("10.1.2.3:443"));
    check("10.1.2.3", Err(r#"private target "10.1.2.3": it needs a port"#));
    check("10.1.2.3:1-9", Err(r#"private target "10.1.2.3:1-9": it needs a port"#));
    check("10.1.2.3/24:443", Err(r#"private target "10.1.2.3/24:443": 10.1.2.3 is not the first address of a /24"#));
    check("10.1.2.3:0", Err(r#"private target "10.1.2.3:0": port "0" is no number from 1 to 65535"#));
    check("db.test:443", Err(r#""db.test:443" is no private target: an IPv4 address is missing"#));
    check("", Err(r#""" is no private target: an IPv4 address is missing"#));
    let json = r#"{"posture":"guarded","allow":["api.test"],"limits":{"flows":8}}"#;
    let policy: Policy = serde_json::from_str(json).unwrap();
    assert_eq!((policy.allow[0].as_str(), policy.limits.flows, policy.limits.dns_per_s), ("api.test", 8, 50));
    assert!(serde_json::from_str::<Policy>(r#"{"posture":"guarded","allow":["a..b"]}"#).is_err());
    assert_eq!("Open".parse::<Posture>().unwrap_err().hint().as_deref(), Some("write `open`"));
}
