//! Rules as people write them, and what they are told where they err.

use super::*;
use proptest::prelude::*;

fn check(text: &str, canonical: &str) {
    let rule: Rule = text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"));
    assert_eq!(rule.as_str(), canonical, "{text:?}");
    assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
    let json = serde_json::to_string(&rule).unwrap();
    assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
}

fn refused(text: &str, code: &str, message: &str, hint: &str) {
    let error = text.parse::<Rule>().expect_err(text);
    assert_eq!((error.code(), error.to_string().as_str()), (code, message), "{text:?}");
    let said = error.hint().unwrap_or_default();
    assert!(said.contains(hint), "{text:?}: hint is {said:?}");
}

#[test]
fn a_rule_has_one_text() {
    check("api.example.com", "api.example.com");
    check("  API.example.com.  ech   dns=real ", "api.example.com dns=real ech");
    check("https://api.example.com", "tls://api.example.com");
    check("TLS://api.example.com:8443", "tls://api.example.com:8443");
    check("http://api.example.com:80", "http://api.example.com:80");
    check("*.example.com:8000-8100", "*.example.com:8000-8100");
    check("api.example.com:0443-443", "api.example.com:443");
    check("*", "*");
    check("tcp://*:22", "tcp://*:22");
    check("tcp://db.example.com:5432", "tcp://db.example.com:5432");
    check("203.0.113.7", "203.0.113.7");
    check("203.0.113.7/32:22", "203.0.113.7:22");
    check("tcp://203.0.113.0/24:1-65535", "203.0.113.0/24:1-65535");
    check("0.0.0.0/0", "0.0.0.0/0");
    check("vm:db:5432", "vm:db:5432");
    check("bücher.example", "xn--bcher-kva.example");
}

#[test]
fn bad_rules_name_what_is_wrong_and_what_is_right() {
    let bad = |text, message, hint| refused(text, "bad_rule", message, hint);
    bad("api..com", r#""api..com" is no host name: a label is empty"#, "write `api.com`");
    bad(".example.com", r#"".example.com" is no host name: a label is empty"#, "write `*.example.com`");
    bad("127.1", r#""127.1" is no host name: it ends in a number, as an address does"#, "in full");
    bad("*.0x7f.1", r#""0x7f.1" is no host name: it ends in a number, as an address does"#, "in full");
    bad("a_b!.test", r#""a_b!.test" is no host name: '!' is not allowed in it"#, "api.example.com");
    bad("", "a rule is empty", "api.example.com");
    bad("   ", "a rule is empty", "api.example.com");
    bad("a.*.com", r#"rule "a.*.com": `*` may only stand in front, for all names below"#, "*.example.com");
    bad("*foo.com", r#"rule "*foo.com": `*` may only stand in front, for all names below"#, "*.example.com");
    bad("a.test:0", r#"rule "a.test:0": port "0" is no number from 1 to 65535"#, ":443");
    bad("a.test:70000", r#"rule "a.test:70000": port "70000" is no number from 1 to 65535"#, ":443");
    bad("a.test:", r#"rule "a.test:": port "" is no number from 1 to 65535"#, ":443");
    bad("a.test:+5", r#"rule "a.test:+5": port "+5" is no number from 1 to 65535"#, ":443");
    bad("a.test:https", r#"rule "a.test:https": port "https" is no number from 1 to 65535"#, ":443");
    bad("a.test:90-80", r#"rule "a.test:90-80": port 90 comes after 80"#, "write `:80-90`");
    bad("1.2.3.4:443/24", r#"rule "1.2.3.4:443/24": port "443/24" is no number from 1 to 65535"#, ":443");
    bad("tcp://a.test", r#"rule "tcp://a.test": it needs a port"#, "write `tcp://a.test:PORT`");
    bad("vm:db", r#"rule "vm:db": it needs a port"#, "write `vm:db:PORT`");
    bad("vm:DB:1", r#"rule "vm:DB:1": the name `DB` has `D` in it"#, "vm:NAME:PORT");
    bad("vm::1", r#"rule "vm::1": a name is empty"#, "vm:NAME:PORT");
    bad(
        "db.vm.internal:5432",
        r#"rule "db.vm.internal:5432": names below `vm.internal` are computers, and db.vm.internal is one of them"#,
        "write `vm:db:PORT`",
    );
    bad("1.2.3.4/33", r#"rule "1.2.3.4/33": /33 is no length of a prefix, 0 to 32"#, "203.0.113.0/24");
    bad("1.2.3.4/", r#"rule "1.2.3.4/": / is no length of a prefix, 0 to 32"#, "203.0.113.0/24");
    bad("1.2.3.4/24", r#"rule "1.2.3.4/24": 1.2.3.4 is not the first address of a /24"#, "write `1.2.3.0/24`");
    bad("ftp://a.test", r#"rule "ftp://a.test": `ftp://` is no protocol of rules"#, "tcp://");
    bad("a.test dns=fake", r#"rule "a.test dns=fake": "dns=fake" is no option of rules"#, "dns=real");
    bad("a.test b.test", r#"rule "a.test b.test": "b.test" is no option of rules"#, "one rule");
    bad("1.2.3.4 dns=real", r#"rule "1.2.3.4 dns=real": `dns=real` has no meaning here"#, "host name");
    bad("http://a.test ech", r#"rule "http://a.test ech": `ech` has no meaning here"#, "TLS");
    bad("evil.test\0.good.test", r#""evil.test\0.good.test" is no host name: '\0' is not allowed in it"#, "");
    assert!("a".repeat(600).parse::<Rule>().unwrap_err().to_string().len() < 400);
}

#[test]
fn what_the_gate_cannot_do_is_said_so() {
    let unsupported = |text, message, hint| refused(text, "unsupported_rule", message, hint);
    unsupported(
        "udp://a.test:53",
        r#"rule "udp://a.test:53": UDP does not leave a computer, other than DNS"#,
        "write `a.test:53`",
    );
    unsupported(
        "GET a.test/**",
        r#"rule "GET a.test/**": rules by method need TLS inspection, which is not there yet"#,
        "write `a.test`",
    );
    unsupported(
        "https://a.test/v1",
        r#"rule "https://a.test/v1": rules by path need TLS inspection, which is not there yet"#,
        "write `https://a.test`",
    );
    unsupported(
        "a.test:443/",
        r#"rule "a.test:443/": rules by path need TLS inspection, which is not there yet"#,
        "write `a.test:443`",
    );
    unsupported(
        "[::1]:443",
        r#"rule "[::1]:443": computers have no IPv6, so no address of it can be meant"#,
        "IPv4 address",
    );
    unsupported(
        "2001:db8::/32",
        r#"rule "2001:db8::/32": computers have no IPv6, so no address of it can be meant"#,
        "IPv4 address",
    );
    unsupported(
        "tls://1.2.3.4:443",
        r#"rule "tls://1.2.3.4:443": an address has no name that TLS or HTTP could be held against"#,
        "write `1.2.3.4:443`",
    );
    unsupported(
        "tcp://vm:db:1",
        r#"rule "tcp://vm:db:1": flows to a computer are not looked into, so they have no protocol"#,
        "write `vm:db:1`",
    );
}

#[test]
fn ports_that_are_not_said_depend_on_the_list() {
    let ports = |text: &str, port| {
        let rule: Rule = text.parse().unwrap();
        (rule.allows_port(port), rule.denies_port(port))
    };
    assert_eq!(ports("a.test", 443), (true, true));
    assert_eq!(ports("a.test", 80), (true, true));
    assert_eq!(ports("a.test", 22), (false, true));
    assert_eq!(ports("tls://a.test", 80), (false, true));
    assert_eq!(ports("http://a.test", 443), (false, true));
    assert_eq!(ports("203.0.113.0/24", 22), (true, true));
    assert_eq!(ports("a.test:22-23", 23), (true, true));
    assert_eq!(ports("a.test:22-23", 24), (false, false));
}

#[test]
fn targets_mean_names_and_addresses() {
    let names = |rule: &str, name: &str| rule.parse::<Rule>().unwrap().names(&name.parse().unwrap());
    assert!(names("a.test", "A.test."));
    assert!(!names("a.test", "b.a.test"));
    assert!(names("*.a.test", "c.b.a.test"));
    assert!(!names("*.a.test", "a.test"));
    assert!(names("*", "a.test"));
    assert!(names("vm:db:1", "db.vm.internal"));
    assert!(!names("vm:db:1", "x.db.vm.internal"));
    assert!(!names("*", "db.vm.internal") && !names("*.internal", "db.vm.internal"));
    assert!(names("*", "dbvm.internal"));
    let holds = |rule: &str, address: &str| rule.parse::<Rule>().unwrap().holds(address.parse().unwrap());
    assert!(holds("203.0.113.0/24", "203.0.113.255") && !holds("203.0.113.0/24", "203.0.114.0"));
    assert!(holds("0.0.0.0/0", "8.8.8.8") && !holds("*", "8.8.8.8"));
}

proptest! {
    #[test]
    fn any_text_is_a_rule_that_reads_back_or_has_an_error_with_a_hint(
        text in "\\PC{0,40}|((tls|tcp|https?|udp)://)?(\\*\\.)?[a-z0-9.*:/-]{0,24}( dns=real)?( ech)?|vm:[a-z-]{0,6}:?[0-9-]{0,9}",
    ) {
        match text.parse::<Rule>() {
            Ok(rule) => prop_assert_eq!(rule.as_str().parse::<Rule>().unwrap(), rule.clone()),
            Err(error) => prop_assert!(!error.to_string().is_empty() && error.hint().is_some()),
        }
    }
}
