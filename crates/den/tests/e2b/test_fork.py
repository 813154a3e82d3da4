"""E2B's SDK for Python against a house of Den that has CRIU: what runs goes on in forks, as upstream's does."""

import json
import os
import subprocess
import threading

import e2b
import pytest
from e2b import Sandbox, SandboxException, Template, wait_for_port

from test_sandbox import proxied, until


def den(*words):
    ran = subprocess.run([os.environ["DEN"], *words], capture_output=True, check=True)
    return ran.stdout.decode()


class Heard:
    """What a command says, read beside the test."""

    def __init__(self, handle):
        self.text, self.over = "", False
        self.thread = threading.Thread(target=self.read, args=[handle], daemon=True)
        self.thread.start()

    def read(self, handle):
        try:
            for out, err, _ in handle:
                self.text += out or err or ""
        except SandboxException:
            pass  # The sandbox was killed.
        finally:
            self.over = True

    def numbers(self):
        return [int(line) for line in self.text.split("\n")[:-1]]


def anew(fork):
    """Why what ran does not go on in a fork. Its event may come after it."""
    found = []

    def told():
        events = [json.loads(line) for line in den("events", "--json").splitlines()]
        found[:] = [event for event in events if event["kind"] == "forked" and event["name"] == fork.sandbox_id]
        return found

    until(told, 60)
    return found[0]["detail"].get("anew")


COUNT = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done"


def test_what_runs_goes_on_in_forks_and_in_the_sandbox():
    sandbox = Sandbox.create(timeout=600, envs={"A": "1"}, metadata={"m": "x"})
    sandbox.files.write("kept", "x")
    sandbox.commands.run("echo x > /dev/shm/kept")
    counter = sandbox.commands.run(COUNT, background=True, timeout=0, cwd="/tmp", envs={"B": "2"})
    heard = Heard(counter)
    cat = sandbox.commands.run("cat", background=True, stdin=True, timeout=0)
    echoed = Heard(cat)
    sandbox.commands.send_stdin(cat.pid, "before\n")
    until(lambda: echoed.text == "before\n" and len(heard.text) > 10)
    watched = sandbox.files.watch_dir("/home/user")

    one, two = sandbox.fork(count=2, timeout=300)
    # The parent's streams go on, and not a line is missing or there twice.
    more = len(heard.numbers()) + 10
    until(lambda: len(heard.numbers()) > more, 60)
    assert not heard.over and heard.numbers() == list(range(1, len(heard.numbers()) + 1))
    sandbox.commands.send_stdin(cat.pid, "parent\n")
    until(lambda: echoed.text == "before\nparent\n", 60)
    sandbox.files.write("later", "x")
    until(lambda: any(event.name == "later" for event in watched.get_new_events()), 60)
    for fork in [one, two]:
        assert fork.sandbox_id != sandbox.sandbox_id and fork.get_info().metadata == {"m": "x"}
        assert fork.files.read("kept") == "x" and fork.files.read("/dev/shm/kept") == "x\n"
        assert not fork.files.exists("later")
        listed = {process.pid: process for process in fork.commands.list()}
        assert set(listed) == {counter.pid, cat.pid}
        assert listed[counter.pid].args[-1] == COUNT and listed[counter.pid].cwd == "/tmp"
        assert listed[counter.pid].envs == {"B": "2"}
        again = Heard(fork.commands.connect(counter.pid))
        until(lambda: len(again.numbers()) > 5, 60)
        first = again.numbers()[0]
        assert first > 1 and again.numbers() == list(range(first, first + len(again.numbers())))
        joined = fork.commands.connect(cat.pid)
        own = Heard(joined)
        fork.commands.send_stdin(cat.pid, "fork\n")
        until(lambda: own.text == "fork\n", 60)
        assert fork.commands.run("echo $A $E2B_SANDBOX_ID").stdout == f"1 {fork.sandbox_id}\n"
        # What ends in one goes on in the others.
        assert fork.commands.kill(counter.pid) is True
        until(lambda: again.over, 60)
        assert [process.pid for process in fork.commands.list()] == [cat.pid]
    assert echoed.text == "before\nparent\n"
    more = len(heard.numbers())
    until(lambda: len(heard.numbers()) > more, 60)
    # A fork of a fork knows as much, and outlives both.
    [deep] = two.fork()
    assert one.kill() and two.kill()
    assert [process.args[-1] for process in deep.commands.list()] == ["cat"]
    assert deep.commands.kill(cat.pid) and deep.kill()
    assert sandbox.commands.kill(counter.pid) and sandbox.kill()


def test_a_fork_has_tokens_and_a_time_of_its_own():
    sandbox = Sandbox.create(timeout=60, network={"allow_public_traffic": False})
    sandbox.commands.run("python3 -m http.server 8123", background=True, timeout=0)
    until(lambda: "8123" in sandbox.commands.run("ss -Htln sport = :8123 || true").stdout)
    [fork] = sandbox.fork(timeout=600)
    assert fork.traffic_access_token and fork.traffic_access_token != sandbox.traffic_access_token
    assert fork._envd_access_token and fork._envd_access_token != sandbox._envd_access_token
    own, info = fork.get_info(), sandbox.get_info()
    assert (own.end_at - info.end_at).total_seconds() > 400
    # The server goes on, and wants the token of the fork.
    headers = {"e2b-traffic-access-token": fork.traffic_access_token}
    assert proxied(fork, 8123, headers=headers).status == 200
    with pytest.raises(Exception, match="403"):
        proxied(fork, 8123, headers={"e2b-traffic-access-token": sandbox.traffic_access_token})
    assert sandbox.kill() and fork.is_running() and fork.kill()


def test_a_sandbox_in_which_nothing_runs_is_forked_by_its_files():
    sandbox = Sandbox.create(timeout=120)
    sandbox.commands.run("true")
    boot = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    [fork] = sandbox.fork()
    assert fork.files.read("/proc/sys/kernel/random/boot_id") != boot
    assert fork.commands.list() == [] and anew(fork) is None
    # What lies in memory alone goes along, though nothing runs.
    sandbox.commands.run("echo x > /dev/shm/kept")
    [other] = sandbox.fork()
    assert other.files.read("/dev/shm/kept") == "x\n" and other.files.read("/proc/sys/kernel/random/boot_id") == boot
    assert fork.kill() and other.kill() and sandbox.kill()


def test_what_cannot_be_copied_begins_anew_and_says_why():
    sandbox = Sandbox.create(timeout=120)
    sandbox.files.write("kept", "x")
    holds = "import ctypes, time; ctypes.CDLL(None).inotify_init(); print('holds', flush=True); time.sleep(1000)"
    handle = sandbox.commands.run(f'python3 -c "{holds}"', background=True, timeout=0)
    heard = Heard(handle)
    until(lambda: heard.text == "holds\n")
    [fork] = sandbox.fork()
    assert fork.files.read("kept") == "x" and fork.commands.list() == []
    assert "inotify" in anew(fork)
    assert not heard.over and sandbox.commands.kill(handle.pid)
    assert fork.kill() and sandbox.kill()


SLOW = """
import os, socket, time
door = socket.create_server(("127.0.0.1", 8125))
print("listens", flush=True)
one, _ = door.accept()
one.recv(10000)
one.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 10\\r\\n\\r\\nfirst")
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
one.sendall(b"-last")
time.sleep(1000)
"""


def test_a_fork_breaks_no_connection_of_its_sandbox():
    sandbox = Sandbox.create(timeout=120)
    sandbox.files.write("slow.py", SLOW)
    heard = Heard(sandbox.commands.run("python3 slow.py", background=True, timeout=0))
    until(lambda: heard.text == "listens\n")
    answer = proxied(sandbox, 8125)
    assert answer.read(5) == b"first"
    [fork] = sandbox.fork()
    assert "a connection to a port" in anew(fork) and fork.commands.list() == []
    sandbox.files.write("/tmp/go", "")
    assert answer.read() == b"-last"
    # Once it is through there is nothing in the way.
    [other] = sandbox.fork()
    assert anew(other) is None and len(other.commands.list()) == 1
    assert fork.kill() and other.kill() and sandbox.kill()


def test_a_start_command_goes_on_in_a_fork_and_begins_anew_in_a_sandbox():
    # Each time that it begins it draws a number.
    serve = "mkdir -p site && cd site && cat /proc/sys/kernel/random/uuid > drawn && exec python3 -m http.server 8124"
    Template.build(Template().from_image("base").set_start_cmd(serve, wait_for_port(8124)), "forked-site")
    sandbox = Sandbox.create("forked-site", timeout=300)
    drawn = proxied(sandbox, 8124, "/drawn").read()
    [fork] = sandbox.fork()
    assert proxied(fork, 8124, "/drawn").read() == drawn
    [service] = json.loads(den("service", "ls", fork.sandbox_id, "--json"))
    assert (service["name"], service["state"], service["restarts"]) == ("start", "running", 0)
    assert fork.commands.run("pgrep -c -f '[h]ttp.server'").stdout == "1\n"
    snapshot = fork.create_snapshot()
    taken = Sandbox.create(snapshot.snapshot_id, timeout=300)
    assert proxied(taken, 8124, "/drawn").read() == drawn
    [service] = json.loads(den("service", "ls", taken.sandbox_id, "--json"))
    assert (service["name"], service["state"], service["restarts"]) == ("start", "running", 0)
    assert taken.kill() and Sandbox.delete_snapshot(snapshot.snapshot_id)
    other = Sandbox.create("forked-site", timeout=300)
    assert proxied(other, 8124, "/drawn").read() != drawn
    assert sandbox.kill() and fork.kill() and other.kill()


def test_what_runs_goes_on_from_a_snapshot():
    sandbox = Sandbox.create(timeout=600, envs={"A": "1"})
    sandbox.commands.run("echo x > /dev/shm/kept")
    counter = sandbox.commands.run(COUNT, background=True, timeout=0, cwd="/tmp", envs={"B": "2"})
    heard = Heard(counter)
    cat = sandbox.commands.run("cat", background=True, stdin=True, timeout=0)
    until(lambda: len(heard.text) > 10)
    snapshot = sandbox.create_snapshot()
    # It goes on, and not a line is missing or there twice.
    more = len(heard.numbers()) + 10
    until(lambda: len(heard.numbers()) > more, 60)
    assert not heard.over and heard.numbers() == list(range(1, len(heard.numbers()) + 1))
    last = heard.numbers()[-1]
    assert sandbox.kill()
    # Each begins where the sandbox was then, however often, and after another daemon's start.
    for one in range(2):
        other = Sandbox.create(snapshot.snapshot_id, timeout=300, network={"deny_out": ["0.0.0.0/0"]})
        assert other.files.read("/dev/shm/kept") == "x\n"
        assert {process.pid for process in other.commands.list()} == {counter.pid, cat.pid}
        [listed] = [process for process in other.commands.list() if process.pid == counter.pid]
        assert listed.args[-1] == COUNT and listed.cwd == "/tmp" and listed.envs == {"B": "2"}
        again = Heard(other.commands.connect(counter.pid))
        until(lambda: len(again.numbers()) > 5, 60)
        first = again.numbers()[0]
        assert 1 < first < last and again.numbers() == list(range(first, first + len(again.numbers())))
        own = Heard(other.commands.connect(cat.pid))
        other.commands.send_stdin(cat.pid, f"sandbox {one}\n")
        until(lambda: own.text == f"sandbox {one}\n", 60)
        assert other.commands.run("echo $A $E2B_SANDBOX_ID").stdout == f"1 {other.sandbox_id}\n"
        assert json.loads(den("net", other.sandbox_id, "--json"))["posture"] == "sealed"
        # A snapshot of it, and of nothing that runs.
        assert other.commands.kill(counter.pid) and other.commands.kill(cat.pid)
        other.commands.run("rm /dev/shm/kept; echo y > kept")
        still = other.create_snapshot()
        assert other.kill()
        third = Sandbox.create(still.snapshot_id, timeout=300)
        assert third.files.read("kept") == "y\n" and third.commands.list() == []
        assert third.kill() and Sandbox.delete_snapshot(still.snapshot_id)
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False


def test_what_cannot_be_kept_begins_anew_from_a_snapshot():
    sandbox = Sandbox.create(timeout=120)
    sandbox.files.write("kept", "x")
    holds = "import ctypes, time; ctypes.CDLL(None).inotify_init(); print('holds', flush=True); time.sleep(1000)"
    heard = Heard(sandbox.commands.run(f'python3 -c "{holds}"', background=True, timeout=0))
    until(lambda: heard.text == "holds\n")
    snapshot = sandbox.create_snapshot()
    assert not heard.over
    other = Sandbox.create(snapshot.snapshot_id, timeout=120)
    assert other.files.read("kept") == "x" and other.commands.list() == []
    assert other.kill() and sandbox.kill() and Sandbox.delete_snapshot(snapshot.snapshot_id)


@pytest.mark.skipif(not hasattr(e2b, "Volume"), reason="an SDK without volumes")
def test_what_runs_on_a_volume_goes_on_from_a_snapshot():
    volume = e2b.Volume.create("beneath")
    sandbox = Sandbox.create(timeout=600, volume_mounts={"/mnt/data": volume})
    says = "n=0; exec >> /mnt/data/said; while true; do n=$((n+1)); echo $n; sleep 0.05; done"
    counter = sandbox.commands.run(says, background=True, timeout=0)
    until(lambda: volume.exists("/said") and len(volume.read_file("/said")) > 20, 60)
    snapshot = sandbox.create_snapshot()
    assert sandbox.kill()
    other = Sandbox.create(snapshot.snapshot_id, timeout=300)
    assert [process.pid for process in other.commands.list()] == [counter.pid]
    was = len(volume.read_file("/said"))
    until(lambda: len(volume.read_file("/said")) > was + 20, 60)
    # Without the volume it cannot go on, and has the files.
    bare = e2b.Volume.create("another")
    third = Sandbox.create(snapshot.snapshot_id, timeout=300, volume_mounts={"/mnt/data": bare})
    assert third.commands.list() == [] and third.files.list("/mnt/data") == []
    assert other.kill() and third.kill() and Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert e2b.Volume.destroy(volume.volume_id) and e2b.Volume.destroy(bare.volume_id)
