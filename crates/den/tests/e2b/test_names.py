"""E2B's SDK for Python against the domain of a house: names, TLS and HTTP/2, and no address in the environment."""

import asyncio
import json
import os
import pathlib
import socket
import ssl
import subprocess
import urllib.request

import pytest
from e2b import AsyncSandbox, Sandbox

DOMAIN = os.environ["E2B_DOMAIN"]

# Says what it is asked, as JSON.
SERVER = """
import http.server, json
class Asked(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        length = int(self.headers.get("content-length") or 0)
        body = json.dumps({
            "path": self.path, "version": self.request_version, "host": self.headers["host"],
            "cookie": self.headers.get_all("cookie"), "body": self.rfile.read(length).decode(),
        }).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-inside", "yes")
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST
http.server.ThreadingHTTPServer(("127.0.0.1", 8123), Asked).serve_forever()
"""


def curl(*words):
    words = ["curl", "--silent", "--show-error", "--fail-with-body", "--cacert", os.environ["NODE_EXTRA_CA_CERTS"], *words]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    assert sandbox.kill()


@pytest.fixture(scope="module")
def server(sandbox):
    sandbox.files.write("server.py", SERVER)
    sandbox.commands.run("python3 server.py", background=True, timeout=0)
    sandbox.commands.run("until ss -Htln sport = :8123 | grep -q .; do sleep 0.05; done", timeout=60)
    return sandbox.get_host(8123)


def test_the_environment_has_no_address():
    assert "E2B_API_URL" not in os.environ and "E2B_SANDBOX_URL" not in os.environ


def test_a_sandbox_is_found_by_its_name(sandbox):
    assert sandbox.sandbox_domain == DOMAIN
    assert sandbox.commands.run("echo $E2B_SANDBOX_ID").stdout == sandbox.sandbox_id + "\n"
    again = Sandbox.connect(sandbox.sandbox_id)
    again.files.write("a/b", "x" * 3_000_000)
    assert sandbox.files.read("a/b") == "x" * 3_000_000
    assert [entry.name for entry in sandbox.files.list("a")] == ["b"]
    assert [one.sandbox_id for one in Sandbox.list().next_items()] == [sandbox.sandbox_id]
    out = []
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "in")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait(on_stdout=out.append).exit_code == 0 and "".join(out) == "in"


def test_many_at_once(sandbox):
    async def run():
        one = await AsyncSandbox.connect(sandbox.sandbox_id)
        results = await asyncio.gather(*[one.commands.run(f"echo {n}; sleep 0.5") for n in range(40)])
        assert [result.stdout for result in results] == [f"{n}\n" for n in range(40)]

    asyncio.run(run())


def test_a_server_inside_has_a_name(server):
    """Python's own client reads SSL_CERT_FILE as well; it speaks HTTP/1.1."""
    assert server.endswith("." + DOMAIN)
    with urllib.request.urlopen(f"https://{server}/x?y=1", data=b"sent") as answer:
        assert answer.headers["x-inside"] == "yes"
        seen = json.load(answer)
    assert seen == {"path": "/x?y=1", "version": "HTTP/1.1", "host": server, "cookie": None, "body": "sent"}


def test_http_2_reaches_the_api_and_servers_inside(server):
    key = "X-API-Key: " + os.environ["E2B_API_KEY"]
    for flag, version in [("--http2", "2"), ("--http1.1", "1.1")]:
        words = [flag, "--header", key, "--write-out", " %{http_version}", f"https://api.{DOMAIN}/v2/sandboxes"]
        body, said = curl(*words).rsplit(" ", 1)
        assert said == version and len(json.loads(body)) == 1
        words = [flag, "--cookie", "a=1; b=2", "--data", "sent", "--write-out", " %{http_version}", f"https://{server}/x"]
        body, said = curl(*words).rsplit(" ", 1)
        seen = json.loads(body)
        assert said == version and seen["version"] == "HTTP/1.1" and seen["host"] == server
        assert (seen["cookie"], seen["body"], seen["path"]) == (["a=1; b=2"], "sent", "/x")


def test_signed_urls_have_the_name(sandbox):
    sandbox.files.write("signed", "s")
    url = sandbox.download_url("signed")
    assert url.startswith(f"https://49983-{sandbox.sandbox_id}.{DOMAIN}/files?")
    assert curl("--http2", url) == "s"
    curl("--http2", "--form-string", "file=sent", sandbox.upload_url("up"))
    assert sandbox.files.read("up") == "sent"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        curl(url + "x")
    assert "401" in caught.value.stderr


def test_a_name_that_leads_nowhere_says_so():
    key = "X-API-Key: " + os.environ["E2B_API_KEY"]
    for host, path, status in [
        (f"api.{DOMAIN}", "/nothing", 404),
        (DOMAIN, "/v1/computers", 404),
        (DOMAIN, "/", 404),
        (f"3000-inone.{DOMAIN}", "/", 502),
        (f"99999-inone.{DOMAIN}", "/", 400),
    ]:
        words = ["--http2", "--header", key, "--write-out", " %{http_code}", f"https://{host}{path}"]
        with pytest.raises(subprocess.CalledProcessError) as caught:
            curl(*words)
        body, said = caught.value.stdout.rsplit(" ", 1)
        assert int(said) == status == json.loads(body)["code"]


def test_only_the_domain_is_answered_for():
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("other.test", 443)
    assert socket.getaddrinfo(f"a.b.{DOMAIN.split(':')[0]}", 443)


def test_the_certificate_is_for_the_domain_alone():
    host, port = DOMAIN.split(":")
    own = pathlib.Path(os.environ["NODE_EXTRA_CA_CERTS"]).read_text()
    assert "PRIVATE" not in own and own in pathlib.Path(os.environ["SSL_CERT_FILE"]).read_text()

    def certificate(name):
        context = ssl.create_default_context(cadata=own)
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
            assert tls.version() == "TLSv1.3" and tls.selected_alpn_protocol() == "h2"
            return tls.getpeercert()

    names = {name for _, name in certificate(f"api.{host}")["subjectAltName"]}
    assert names == {host, f"*.{host}"}
    for name in ["api.other.test", f"a.b.{host}"]:
        with pytest.raises(ssl.SSLCertVerificationError):
            certificate(name)
