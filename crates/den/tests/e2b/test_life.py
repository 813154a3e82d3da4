"""E2B's SDK for Python against a house of Den: what newer versions have beside commands and files."""

import json
import os
import subprocess
import urllib.error
import urllib.request

import pytest
from e2b import CommandExitException, NotFoundException, Sandbox, SandboxException, Template

from test_sandbox import URL, proxied, until


def test_templates_are_the_houses_images():
    assert Template.exists("base") and not Template.exists("no-such-template")


def test_files_outlive_a_pause_without_memory():
    sandbox = Sandbox.create(timeout=120)
    sandbox.files.write("kept", "x")
    handle = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    sandbox.pause(keep_memory=False)
    again = sandbox.connect()
    assert again.files.read("kept") == "x"
    with pytest.raises(CommandExitException):
        again.commands.run("pgrep -x sleep")
    assert again.kill()


def test_pausing_twice_is_said():
    sandbox = Sandbox.create(timeout=120)
    assert sandbox.pause() is not False
    assert sandbox.pause() is False
    assert sandbox.kill()


def test_a_sandbox_pauses_when_its_time_is_up_and_traffic_wakes_it():
    sandbox = Sandbox.create(timeout=300, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.files.write("kept", "x")
    sandbox.set_timeout(1)
    until(lambda: Sandbox.get_info(sandbox.sandbox_id).state.value == "paused")
    assert sandbox.files.read("kept") == "x"
    assert sandbox.get_info().state.value == "running"
    assert sandbox.kill()


def test_a_fork_begins_as_its_sandbox_is():
    sandbox = Sandbox.create(timeout=120, envs={"A": "1"})
    sandbox.files.write("kept", "x")
    forks = sandbox.fork(count=2)
    assert len(forks) == 2
    for fork in forks:
        fork = fork.sandbox if hasattr(fork, "sandbox") else fork
        assert fork.sandbox_id != sandbox.sandbox_id and fork.files.read("kept") == "x"
        assert fork.commands.run("echo $A $E2B_SANDBOX_ID").stdout == f"1 {fork.sandbox_id}\n"
        fork.files.write("kept", "y")
        assert fork.kill()
    assert sandbox.files.read("kept") == "x"
    assert sandbox.kill()


def test_a_snapshot_outlives_its_sandbox():
    sandbox = Sandbox.create(timeout=120)
    sandbox.files.write("kept", "x")
    snapshot = sandbox.create_snapshot()
    named = sandbox.create_snapshot(name="mine")
    assert sandbox.kill()
    listed = [one.snapshot_id for one in Sandbox.list_snapshots().next_items()]
    assert listed == [named.snapshot_id, snapshot.snapshot_id] and named.snapshot_id == "mine:default"
    for template in [snapshot.snapshot_id, "mine"]:
        again = Sandbox.create(template, timeout=120)
        assert again.files.read("kept") == "x"
        with pytest.raises(SandboxException):
            Sandbox.delete_snapshot(snapshot.snapshot_id if template != "mine" else named.snapshot_id)
        assert again.kill()
    for one in [snapshot, named]:
        assert Sandbox.delete_snapshot(one.snapshot_id) is True
        assert Sandbox.delete_snapshot(one.snapshot_id) is False
    with pytest.raises(SandboxException):
        Sandbox.create(snapshot.snapshot_id)


def test_metrics_come():
    sandbox = Sandbox.create(timeout=120)
    sandbox.commands.run("head -c 100000000 /dev/zero > /dev/null")
    until(lambda: sandbox.get_metrics(), 30)
    metric = sandbox.get_metrics()[-1]
    assert metric.mem_used > 0 and metric.mem_total > metric.mem_used and metric.cpu_count >= 1
    assert sandbox.kill()


def test_a_sandbox_without_internet_is_sealed():
    sandbox = Sandbox.create(timeout=120, allow_internet_access=False)
    shown = subprocess.run([os.environ["DEN"], "net", sandbox.sandbox_id, "--json"], capture_output=True, check=True)
    assert json.loads(shown.stdout)["posture"] == "sealed"
    assert sandbox.kill()


def test_the_network_changes_while_a_sandbox_runs():
    sandbox = Sandbox.create(timeout=120)
    sandbox.update_network({"deny_out": ["8.8.8.8"]})
    shown = subprocess.run([os.environ["DEN"], "net", sandbox.sandbox_id, "--json"], capture_output=True, check=True)
    assert json.loads(shown.stdout)["deny"] == ["8.8.8.8"] and json.loads(shown.stdout)["posture"] == "open"
    with pytest.raises(SandboxException, match="400"):
        sandbox.update_network({"allow_out": ["example.com"]})
    assert sandbox.kill()


def test_a_server_inside_is_told_the_host_that_was_set():
    with pytest.raises(SandboxException, match="400"):
        Sandbox.create(network={"mask_request_host": "no host"})
    sandbox = Sandbox.create(timeout=120, network={"mask_request_host": "localhost:${PORT}"})
    assert sandbox.get_info().network["mask_request_host"] == "localhost:${PORT}"
    server = """
import http.server
class Asked(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.headers["host"].encode())
http.server.HTTPServer(("127.0.0.1", 8123), Asked).serve_forever()
"""
    sandbox.files.write("server.py", server)
    sandbox.commands.run("python3 server.py", background=True, timeout=0)
    until(lambda: "8123" in sandbox.commands.run("ss -Htln sport = :8123 || true").stdout)
    assert proxied(sandbox, 8123).read() == b"localhost:8123"
    sandbox.update_network({"deny_out": ["8.8.8.8"]})
    assert proxied(sandbox, 8123).read() == b"localhost:8123"
    assert sandbox.kill()


def test_files_are_put_together():
    sandbox = Sandbox.create(timeout=120)
    token = sandbox.connection_config.sandbox_headers["X-Access-Token"]

    def compose(**body):
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
        return urllib.request.Request(URL + "/files/compose", json.dumps(body).encode(), headers)

    large = "x" * 3_000_000
    sandbox.files.write("parts/1", "one ")
    sandbox.files.write("parts/2", large)
    with urllib.request.urlopen(compose(source_paths=["parts/1", "/home/user/parts/2", "parts/1"], destination="to/all")) as answer:
        assert json.load(answer) == {"path": "/home/user/to/all", "name": "all", "type": "file"}
    assert sandbox.files.read("to/all") == f"one {large}one "
    assert sandbox.files.list("parts") == []
    assert sandbox.commands.run("stat -c '%U %a' to to/all").stdout == "user 755\nuser 644\n"
    sandbox.files.write("kept", "x")
    for status, body in [
        (400, {"source_paths": [], "destination": "a"}),
        (400, {"source_paths": ["kept"]}),
        (400, {"source_paths": ["kept", "to"], "destination": "a"}),
        (400, {"source_paths": ["kept"], "destination": "./kept"}),
        (400, {"source_paths": ["kept"], "destination": "to"}),
        (401, {"source_paths": ["/home/user/kept"], "destination": "/a", "username": "nobody-here"}),
        (404, {"source_paths": ["/home/user/kept", "none"], "destination": "a"}),
    ]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(compose(**body))
        assert caught.value.code == status == json.load(caught.value)["code"], body
    assert sandbox.files.read("kept") == "x" and not sandbox.files.exists("a")
    assert sandbox.kill()


def test_private_ports_want_their_token():
    sandbox = Sandbox.create(timeout=120, network={"allow_public_traffic": False})
    assert sandbox.traffic_access_token
    sandbox.commands.run("python3 -m http.server 8123", background=True, timeout=0)
    until(lambda: "8123" in sandbox.commands.run("ss -Htln sport = :8123 || true").stdout)
    with pytest.raises(urllib.error.HTTPError) as caught:
        proxied(sandbox, 8123)
    assert caught.value.code == 403 and b"is missing" in caught.value.read()
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "8123",
        "e2b-traffic-access-token": sandbox.traffic_access_token,
    }
    assert urllib.request.urlopen(urllib.request.Request(URL, headers=headers)).status == 200
    assert sandbox.kill()


def test_files_keep_what_is_said_of_them():
    sandbox = Sandbox.create(timeout=120)
    info = sandbox.files.write("said", "x", metadata={"Key": "a value", "n": "1"})
    assert info.metadata == {"key": "a value", "n": "1"}
    assert sandbox.files.get_info("said").metadata == {"key": "a value", "n": "1"}
    listed = {one.name: one.metadata for one in sandbox.files.list("/home/user")}
    assert listed["said"] == {"key": "a value", "n": "1"} and not listed[".bashrc"]
    sandbox.files.write("said", "y", metadata={"n": "2"})
    assert sandbox.files.get_info("said").metadata == {"n": "2"}
    sandbox.files.write("said", "z")
    assert not sandbox.files.get_info("said").metadata
    assert sandbox.kill()
