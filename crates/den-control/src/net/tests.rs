use super::*;

fn policy(posture: Posture, allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Policy { posture, allow: rules(allow), deny: rules(deny), ..Policy::default() }
}

fn texts(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(Rule::to_string).collect()
}

fn list(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn a_change_is_all_or_nothing() {
    let old = policy(Posture::Guarded, &["a.example.com"], &["b.example.com"]);
    let change = NetChange {
        allow_add: list(&["c.example.com:8443", "a.example.com"]),
        deny_add: list(&["d.example.com"]),
        remove: list(&["b.example.com"]),
        limits: Some(NetLimitsChange { flows: Some(7), ..NetLimitsChange::default() }),
        ..NetChange::default()
    };
    let new = changed(&old, &change, &[]).unwrap();
    assert_eq!(texts(&new.allow), ["a.example.com", "c.example.com:8443"]);
    assert_eq!(texts(&new.deny), ["d.example.com"]);
    assert_eq!(new.limits, NetLimits { flows: 7, ..old.limits });
    assert_eq!(new.posture, Posture::Guarded);
    assert_eq!(changed(&old, &NetChange::default(), &[]).unwrap(), old);
}

#[test]
fn each_refusal_has_its_code() {
    let old = policy(Posture::Guarded, &["*.com"], &[]); // Taken by an earlier `force`.
    let check = |change: NetChange, expected: &str| {
        let error = changed(&old, &change, &[]).unwrap_err();
        assert_eq!(error.code, expected, "{error}");
        assert!(error.hint.is_some(), "{error}");
    };
    let allow = |rule: &str| NetChange { allow_add: list(&[rule]), ..NetChange::default() };
    check(allow("api..com"), "bad_rule");
    check(allow("a.example.com:70000"), "bad_rule");
    check(allow("GET a.example.com/**"), "unsupported_rule");
    check(allow("*.github.io"), "wide_rule");
    check(allow("10.0.0.0/8"), "floor_rule");
    check(NetChange { posture: Some("shut".into()), ..NetChange::default() }, "bad_posture");
    check(NetChange { remove: list(&["x.example.com"]), ..NetChange::default() }, "no_such_rule");
    let deny = NetChange { deny_add: list(&["a..b"]), ..allow("good.example.com") };
    check(deny, "bad_rule");
    // What is wide already does not stand in the way of something else.
    assert!(changed(&old, &allow("a.example.com"), &[]).is_ok());
    assert!(changed(&old, &NetChange { force: true, ..allow("*") }, &[]).is_ok());
    let private: PrivateTarget = "10.1.2.3:5432".parse().unwrap();
    assert!(changed(&old, &allow("10.1.2.3:5432"), &[private]).is_ok());
}

#[test]
fn a_policy_that_cannot_be_read_is_sealed() {
    for row in
        [None, Some("nonsense"), Some("{\"posture\":\"ajar\"}"), Some("{\"posture\":\"open\",\"deny\":[\"a..b\"]}")]
    {
        let net = Net::read(row);
        assert_eq!(net.policy.posture, Posture::Sealed, "{row:?}");
        assert!(net.unreadable.is_some(), "{row:?}");
    }
    let kept = Net::new(policy(Posture::Guarded, &["a.example.com"], &["192.0.2.0/24"]));
    assert_eq!(Net::read(Some(&kept.text())), kept);
}

#[test]
fn targets_are_hosts_addresses_and_computers() {
    let check = |text: &str, expected: &str| {
        let Target { place, port } = text.parse().unwrap();
        let shown = match place {
            Place::Address(address) => format!("{address} {port}"),
            Place::Name(name) => format!("{name} {port}"),
        };
        assert_eq!(shown, expected, "{text}");
    };
    check("Example.COM", "example.com 443");
    check("example.com:8443", "example.com 8443");
    check("192.0.2.7:22", "192.0.2.7 22");
    check("192.0.2.7", "192.0.2.7 443");
    check("vm:db:5432", "db.vm.internal 5432");
    for wrong in ["", ":80", "example.com:", "example.com:0", "example.com:70000", "a b", "https://example.com", "::1"]
    {
        let error = wrong.parse::<Target>().unwrap_err();
        assert_eq!(error.code, "bad_target", "{wrong}");
    }
}

#[test]
fn a_check_says_what_the_gate_would() {
    let guarded = policy(
        Posture::Guarded,
        &["a.example.com", "http://h.example.com", "tcp://db.example.com:5432", "192.0.2.0/24", "vm:db:5432"],
        &["bad.example.com"],
    );
    let open = Policy { posture: Posture::Open, ..guarded.clone() };
    let sealed = Policy { posture: Posture::Sealed, ..guarded.clone() };
    let check = |policy: &Policy, target: &str, verdict: &str, why: &str, rule: Option<&str>| {
        let decision = check_target(policy, &target.parse().unwrap(), &[]);
        assert_eq!((decision.verdict.as_str(), decision.why.as_str()), (verdict, why), "{target}");
        assert_eq!(decision.rule.as_deref(), rule, "{target}");
        assert!(decision.verdict == "allow" || decision.provided.is_empty());
    };
    check(&guarded, "a.example.com", "allow", "allowed_rule", Some("a.example.com"));
    check(&guarded, "a.example.com:80", "allow", "allowed_rule", Some("a.example.com"));
    check(&guarded, "a.example.com:22", "deny", "no_rule", None);
    check(&guarded, "h.example.com:80", "allow", "allowed_rule", Some("http://h.example.com"));
    check(&guarded, "db.example.com:5432", "allow", "allowed_rule", Some("tcp://db.example.com:5432"));
    check(&guarded, "other.example.com", "deny", "no_rule", None);
    check(&guarded, "192.0.2.7:22", "allow", "allowed_rule", Some("192.0.2.0/24"));
    check(&guarded, "198.51.100.7:443", "deny", "ip_literal", None);
    check(&guarded, "vm:db:5432", "allow", "allowed_rule", Some("vm:db:5432"));
    check(&guarded, "vm:web:80", "deny", "no_rule", None);
    check(&guarded, "10.0.0.1:80", "deny", "floor", None);
    check(&open, "other.example.com", "allow", "allowed_open", None);
    check(&open, "bad.example.com", "deny", "denied_rule", Some("bad.example.com"));
    check(&open, "169.254.169.254:80", "deny", "floor", None);
    check(&open, "mail.example.com:25", "deny", "smtp", None);
    check(&sealed, "a.example.com", "deny", "sealed", None);
}

#[test]
fn a_create_takes_what_the_house_has() {
    let limits = NetLimits { flows: 9, ..NetLimits::default() };
    let house = HouseNet { posture: Posture::Guarded, limits, ..HouseNet::default() };
    assert_eq!(of_create(None, &house).unwrap(), Policy { posture: Posture::Guarded, limits, ..Policy::default() });
    let request = NetRequest { posture: Some("open".into()), ..NetRequest::default() };
    assert_eq!(of_create(Some(&request), &house).unwrap(), Policy { limits, ..Policy::default() });
    let request = NetRequest { allow: list(&["*"]), ..NetRequest::default() };
    assert_eq!(of_create(Some(&request), &house).unwrap_err().code, "wide_rule");
}
