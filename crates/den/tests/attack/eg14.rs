//! EG14: two requests that look like one. Whatever can be read in two ways is 400; what passes is
//! written anew, so the server sees the requests that were decided and no others.

use den_testkit::Site;

use crate::world::{World, answered};

#[test]
fn a_request_that_reads_in_two_ways_is_none() {
    let world = World::guarded(&["good.test"]);
    let hidden = "GET /smuggled HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n";
    let head = "POST /outer HTTP/1.1\\r\\nHost: good.test\\r\\n";
    let chunks = format!("0\\r\\n\\r\\n{hidden}");
    let cases = [
        // Length and chunks; chunks twice; chunks that are none; two lengths; lengths that are none.
        format!("{head}Content-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding: chunked\\r\\nContent-Length: 60\\r\\n\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding: chunked\\r\\nTransfer-Encoding: identity\\r\\n\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding: xchunked\\r\\nContent-Length: 5\\r\\n\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding: chunked, identity\\r\\n\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding : chunked\\r\\n\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding:\\x0bchunked\\r\\nContent-Length: 5\\r\\n\\r\\n{chunks}"),
        format!("{head}Content-Length: 5\\r\\nContent-Length: 55\\r\\n\\r\\nhello{hidden}"),
        format!("{head}Content-Length: +5\\r\\n\\r\\nhello{hidden}"),
        format!("{head}Content-Length: 0x5\\r\\n\\r\\nhello{hidden}"),
        format!("{head}Content-Length: 5, 5\\r\\n\\r\\nhello{hidden}"),
        // Folded lines, bare LF, bare CR, a space before the colon, a NUL, no name.
        format!("{head}X: a\\r\\n Transfer-Encoding: chunked\\r\\nContent-Length: 5\\r\\n\\r\\n{chunks}"),
        format!("POST /outer HTTP/1.1\\nHost: good.test\\nContent-Length: 0\\n\\n{hidden}"),
        format!("{head}X: a\\nHost: evil.test\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        format!("{head}X: a\\rTransfer-Encoding: chunked\\r\\nContent-Length: 5\\r\\n\\r\\n{chunks}"),
        format!("{head}Host : evil.test\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        format!("{head}X: a\\0b\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        format!("{head}: empty\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        format!("{head} X: leading\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        // Chunks that lie about their size.
        format!("{head}Transfer-Encoding: chunked\\r\\n\\r\\n-1\\r\\n{hidden}0\\r\\n\\r\\n"),
        format!("{head}Transfer-Encoding: chunked\\r\\n\\r\\n0x1\\r\\na\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding: chunked\\r\\n\\r\\nffffffffffffffff1\\r\\na\\r\\n{chunks}"),
        format!("{head}Transfer-Encoding: chunked\\r\\n\\r\\n1\\na\\n{chunks}"),
        // Another protocol on the way.
        format!(
            "{head}Connection: Upgrade, HTTP2-Settings\\r\\nUpgrade: h2c\\r\\nHTTP2-Settings: AAMAAABkAAQAAP__\\r\\nContent-Length: 0\\r\\n\\r\\n"
        ),
        "GET  /outer HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n".to_owned(),
        "GET /outer HTTP/1.1 HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n".to_owned(),
        "GET /outer\\r\\nHost: good.test\\r\\n\\r\\n".to_owned(),
    ];
    let list: String = cases.iter().map(|case| format!("b'{case}',\n")).collect();
    let seen = world.run(
        "c",
        &format!("good = address('good.test')\nfor case in [{list}]:\n\x20say(**fate(good, 80, case, wait=1.5))"),
    );
    assert_eq!(seen.len(), cases.len());
    let mut passed = 0;
    for (place, seen) in seen.iter().enumerate() {
        let got = seen["got"].as_str().unwrap_or_default();
        // `h2c` may also be passed on without its offer, as an ordinary request.
        if got.starts_with("HTTP/1.1 200") {
            passed += 1;
            assert!(
                cases[place].contains("h2c") || cases[place].contains("5, 5"),
                "case {place} passed: {}\n{seen}",
                cases[place]
            );
            continue;
        }
        let told = ["400", "403", "411", "421", "431", "501", "505"];
        assert!(
            got.is_empty() && ["reset", "closed"].contains(&seen["end"].as_str().unwrap_or_default())
                || told.iter().any(|code| got.starts_with(&format!("HTTP/1.1 {code}"))),
            "case {place}: {}\n{seen}",
            cases[place]
        );
    }
    let requests = world.net.requests_at(Site::Good);
    assert!(
        requests.iter().all(|request| request.line.contains("/outer") && request.host == "good.test"),
        "{requests:?}"
    );
    assert!(requests.len() <= passed, "{} requests arrived, {passed} were answered", requests.len());
    let whole = |needle: &str| {
        requests.iter().any(|request| String::from_utf8_lossy(&request.bytes).to_lowercase().contains(needle))
    };
    assert!(!whole("/smuggled") && !whole("upgrade: h2c") && !whole("http2-settings"), "{requests:?}");
    world.record("c", "a refused request", |record| record["verdict"] == "deny");

    // A body that looks like a request is a body; two requests one behind the other are two.
    let seen = world.run(
        "c",
        "good = address('good.test')\n\
         inner = b'GET /inner HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n'\n\
         say(**fate(good, 80, b'POST /a HTTP/1.1\\r\\nHost: good.test\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(inner) + inner))\n\
         say(**fate(good, 80, b'POST /b HTTP/1.1\\r\\nHost: good.test\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n%x\\r\\n' % len(inner) + inner + b'\\r\\n0\\r\\n\\r\\nGET /c HTTP/1.1\\r\\nHost: good.test\\r\\nConnection: close\\r\\n\\r\\n'))",
    );
    seen.iter().for_each(answered);
    let lines: Vec<_> =
        world.net.requests_at(Site::Good).into_iter().skip(requests.len()).map(|request| request.line).collect();
    assert_eq!(lines, ["POST /a HTTP/1.1", "POST /b HTTP/1.1", "GET /c HTTP/1.1"]);
    world.untouched(Site::Evil);
}
