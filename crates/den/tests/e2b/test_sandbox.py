"""E2B's SDK for Python against a house of Den: sandboxes, commands, files. Runs with any version from 2.45 on."""

import asyncio
import hashlib
import os
import threading
import time
import urllib.error
import urllib.request

import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    SandboxQuery,
    TimeoutException,
)
from e2b.sandbox.filesystem.watch_handle import FilesystemEventType

URL = os.environ["E2B_API_URL"]


def until(seen, seconds=10):
    """Waits for what happens elsewhere."""
    end = time.time() + seconds
    while not seen():
        assert time.time() < end, "it does not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox.create(timeout=600, envs={"A": "1"})
    yield sandbox
    sandbox.kill()


# --- sandboxes ---


def test_a_sandbox_lives_and_is_killed():
    sandbox = Sandbox.create(timeout=60, metadata={"k": "v w", "u": "ü/&="})
    assert sandbox.sandbox_id.isalnum() and sandbox.is_running()
    info = sandbox.get_info()
    assert info.metadata == {"k": "v w", "u": "ü/&="} and info.state.value == "running" and info.name == "base"
    assert 50 < (info.end_at - info.started_at).total_seconds() < 70
    found = Sandbox.list(query=SandboxQuery(metadata={"u": "ü/&=", "k": "v w"})).next_items()
    assert [one.sandbox_id for one in found] == [sandbox.sandbox_id]
    assert Sandbox.list(query=SandboxQuery(metadata={"k": "v"})).next_items() == []
    assert sandbox.kill() is True and sandbox.kill() is False
    assert sandbox.is_running() is False
    with pytest.raises(SandboxException):
        sandbox.commands.run("true")


def test_a_sandbox_ends_when_its_time_is_up():
    sandbox = Sandbox.create(timeout=300)
    sandbox.set_timeout(1)
    until(lambda: not sandbox.is_running())
    with pytest.raises(NotFoundException):
        sandbox.get_info()


def test_a_page_goes_on_where_the_one_before_ended():
    made = [Sandbox.create(timeout=60, metadata={"page": "1"}).sandbox_id for _ in range(5)]
    pages = Sandbox.list(query=SandboxQuery(metadata={"page": "1"}), limit=2)
    seen = []
    while pages.has_next:
        seen.append([one.sandbox_id for one in pages.next_items()])
    assert seen == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    for one in made:
        assert Sandbox.kill(one)


def test_a_wrong_key_or_template_is_refused():
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with pytest.raises(SandboxException, match="not found"):
        Sandbox.create("no-such-template")
    with pytest.raises(NotFoundException):
        Sandbox.connect("inosuchsandbox000000")


def test_a_paused_sandbox_keeps_its_processes_and_files():
    sandbox = Sandbox.create(timeout=120)
    sandbox.files.write("kept", "x")
    pid = sandbox.commands.run("sleep 1000", background=True).pid
    shown = f"ps -o args= -p {pid}"
    # The shell of a login reads its files first.
    until(lambda: sandbox.commands.run(shown).stdout.strip() == "sleep 1000")
    for _ in range(3):
        sandbox.pause() if hasattr(sandbox, "pause") else sandbox.beta_pause()
        assert Sandbox.get_info(sandbox.sandbox_id).state.value == "paused"
        assert not sandbox.is_running()
        again = Sandbox.connect(sandbox.sandbox_id, timeout=120)
        assert again.is_running() and again.files.read("kept") == "x"
        assert again.commands.run(shown).stdout.strip() == "sleep 1000"
    assert sandbox.kill()


def test_connecting_never_shortens():
    sandbox = Sandbox.create(timeout=600)
    before = sandbox.get_info().end_at
    sandbox.connect(timeout=10)
    assert sandbox.get_info().end_at == before
    sandbox.set_timeout(20)
    assert sandbox.get_info().end_at < before
    sandbox.kill()


# --- commands ---


def test_a_command_runs_as_the_user_in_its_home(sandbox):
    result = sandbox.commands.run("whoami; pwd; echo $A $HOME $E2B_SANDBOX $E2B_SANDBOX_ID; echo err >&2")
    assert result.stdout == f"user\n/home/user\n1 /home/user true {sandbox.sandbox_id}\n"
    assert (result.stderr, result.exit_code, result.error) == ("err\n", 0, None)
    assert sandbox.commands.run("whoami", user="root").stdout == "root\n"
    assert sandbox.commands.run("sudo id -u").stdout == "0\n"
    assert sandbox.commands.run("pwd; echo \"$B\"", cwd="/tmp", envs={"B": "ü\n"}).stdout == "/tmp\nü\n\n"


def test_an_exit_code_is_an_exception(sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 3")
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (3, "out\n", "err\n")
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("no-such-command")
    assert caught.value.exit_code == 127


def test_bad_commands_are_refused(sandbox):
    with pytest.raises(InvalidArgumentException, match="cwd '/no/such' does not exist"):
        sandbox.commands.run("true", cwd="/no/such")
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("true", user="nobody-here")
    assert sandbox.commands.kill(999999) is False
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999999)


def test_a_command_ends_at_its_time(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 100", timeout=1)
    assert "sleep 100" not in sandbox.commands.run("ps -eo args=").stdout.replace("ps -eo args=", "")


def test_output_comes_while_a_command_runs(sandbox):
    seen = []
    handle = sandbox.commands.run("for i in 1 2 3; do echo $i; sleep 0.2; done", background=True)
    for out, _, _ in handle:
        seen.append((time.time(), out))
    assert "".join(out for _, out in seen) == "1\n2\n3\n" and len(seen) == 3
    out, err = [], []
    sandbox.commands.run("echo a; echo b >&2", on_stdout=out.append, on_stderr=err.append)
    assert (out, err) == (["a\n"], ["b\n"])


def test_much_output_comes_whole(sandbox):
    result = sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' 'a'")
    assert len(result.stdout) == 20_000_000 and set(result.stdout) == {"a"}
    result = sandbox.commands.run("for i in $(seq 1000); do printf 'ü€😀'; done")
    assert result.stdout == "ü€😀" * 1000


def test_input_reaches_a_command(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "one ")
    sandbox.commands.send_stdin(handle.pid, "two")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "one two"


def test_processes_are_listed_connected_to_and_killed(sandbox):
    handle = sandbox.commands.run("echo started; sleep 1000", background=True, timeout=0)
    listed = {one.pid: one for one in sandbox.commands.list()}
    assert listed[handle.pid].cmd == "/bin/bash" and listed[handle.pid].args[-1] == "echo started; sleep 1000"
    assert str(handle.pid) in sandbox.commands.run("ps -eo pid=").stdout.split()
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    assert sandbox.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as caught:
        again.wait()
    assert caught.value.exit_code == -1 and "killed" in caught.value.error
    assert sandbox.commands.kill(handle.pid) is False
    assert handle.pid not in [one.pid for one in sandbox.commands.list()]


def test_a_command_goes_on_without_its_client(sandbox):
    handle = sandbox.commands.run("sleep 0.5; echo done > /tmp/went-on", background=True)
    handle.disconnect()
    until(lambda: sandbox.files.exists("/tmp/went-on"))


def test_a_terminal(sandbox):
    from e2b import PtySize

    seen = []
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    reader = threading.Thread(target=lambda: [seen.append(bytes(pty)) for _, _, pty in handle if pty], daemon=True)
    reader.start()
    sandbox.pty.send_stdin(handle.pid, b"stty size; echo $TERM\n")
    until(lambda: b"24 80\r\nxterm-256color" in b"".join(seen))
    sandbox.pty.resize(handle.pid, PtySize(rows=30, cols=100))
    sandbox.pty.send_stdin(handle.pid, b"stty size\n")
    until(lambda: b"30 100" in b"".join(seen))
    assert sandbox.pty.kill(handle.pid) is True


def test_a_killed_sandbox_breaks_its_streams_off():
    sandbox = Sandbox.create(timeout=60)
    handle = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    threading.Timer(0.5, sandbox.kill).start()
    with pytest.raises(SandboxException) as caught:
        handle.wait()
    assert not isinstance(caught.value, CommandExitException)


# --- files ---


def test_files_are_written_and_read(sandbox):
    info = sandbox.files.write("a/b/c.txt", "hello")
    assert (info.name, info.path) == ("c.txt", "/home/user/a/b/c.txt")
    assert sandbox.files.read("a/b/c.txt") == "hello"
    assert sandbox.files.read("~/a/b/c.txt", format="bytes") == b"hello"
    assert b"".join(sandbox.files.read("/home/user/a/b/c.txt", format="stream")) == b"hello"
    owners = sandbox.commands.run("stat -c '%U %G %a' a a/b a/b/c.txt").stdout
    assert owners == "user user 755\nuser user 755\nuser user 644\n"
    sandbox.files.write("a/b/c.txt", "x")
    assert sandbox.files.read("a/b/c.txt") == "x"
    sandbox.files.write("/root/x", "r", user="root")
    assert sandbox.files.read("/root/x", user="root") == "r"
    assert sandbox.commands.run("stat -c %U /root/x", user="root").stdout == "root\n"
    assert len(sandbox.files.read("/proc/sys/kernel/random/boot_id")) == 37


def test_many_files_at_once(sandbox):
    infos = sandbox.files.write_files([{"path": f"many/{n}", "data": str(n)} for n in range(20)])
    assert [info.path for info in infos] == [f"/home/user/many/{n}" for n in range(20)]
    assert sandbox.files.read("many/7") == "7"


def test_a_large_file_is_the_same_afterwards(sandbox):
    data = os.urandom(1 << 20) * 30
    sandbox.files.write("large", data)
    assert sandbox.commands.run("sha256sum < large").stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert sandbox.files.read("large", format="bytes") == data


def test_gzip_both_ways(sandbox):
    try:
        sandbox.files.write("zipped", "z" * 100_000, gzip=True)
    except TypeError:
        pytest.skip("this SDK has no gzip")
    assert sandbox.commands.run("wc -c < zipped").stdout.strip() == "100000"
    assert sandbox.files.read("zipped", gzip=True) == "z" * 100_000


def test_directories(sandbox):
    assert sandbox.files.make_dir("dir/sub") is True and sandbox.files.make_dir("dir/sub") is False
    sandbox.files.write("dir/sub/f", "1")
    sandbox.commands.run("ln -s sub dir/link; ln -s nowhere dir/broken")
    listed = {one.path: one for one in sandbox.files.list("dir", depth=2)}
    assert list(listed) == [f"/home/user/dir/{name}" for name in ["broken", "link", "sub", "sub/f"]]
    assert listed["/home/user/dir/link"].symlink_target == "/home/user/dir/sub"
    assert listed["/home/user/dir/sub/f"].permissions == "-rw-r--r--" and listed["/home/user/dir/sub/f"].size == 1
    assert len(sandbox.files.list("dir")) == 3
    moved = sandbox.files.rename("dir/sub/f", "other/g")
    assert moved.path == "/home/user/other/g" and sandbox.files.read("other/g") == "1"
    info = sandbox.files.get_info("other/g")
    assert (info.owner, info.group, info.mode, info.type.value) == ("user", "user", 0o644, "file")
    sandbox.files.remove("dir")
    assert not sandbox.files.exists("dir")
    sandbox.files.remove("dir")


def test_files_that_are_not_there(sandbox):
    for call in [sandbox.files.read, sandbox.files.list, sandbox.files.get_info]:
        with pytest.raises(NotFoundException):
            call("no/such")
    with pytest.raises(NotFoundException):
        sandbox.files.rename("no/such", "x")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list("/etc/passwd")
    with pytest.raises(Exception, match="is a directory"):
        sandbox.files.read("/tmp")
    with pytest.raises(Exception, match="is a directory"):
        sandbox.files.write("/tmp", "x")


def test_a_watch_tells_exactly_what_happens(sandbox):
    sandbox.files.make_dir("watched")
    watch = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/new.txt", "hello")
    events = []
    until(lambda: events.extend(watch.get_new_events()) or len(events) >= 3)
    time.sleep(0.3)
    events += watch.get_new_events()
    kinds = [(event.type, event.name) for event in events]
    t = FilesystemEventType
    assert kinds == [(t.CREATE, "new.txt"), (t.CHMOD, "new.txt"), (t.WRITE, "new.txt")]
    sandbox.files.make_dir("watched/nested")
    until(lambda: watch.get_new_events())
    sandbox.files.write("watched/nested/file", "x")
    events = []
    until(lambda: events.extend(watch.get_new_events()) or any(e.name == "nested/file" for e in events))
    sandbox.files.rename("watched/new.txt", "watched/old.txt")
    events = []
    until(lambda: events.extend(watch.get_new_events()) or len(events) >= 2)
    assert [(e.type, e.name) for e in events] == [(t.RENAME, "new.txt"), (t.CREATE, "old.txt")]
    sandbox.files.remove("watched/old.txt")
    events = []
    until(lambda: events.extend(watch.get_new_events()) or any(e.type == t.REMOVE for e in events))
    watch.stop()
    with pytest.raises(NotFoundException):
        sandbox.files.watch_dir("no/such")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.watch_dir("/etc/passwd")


def test_signed_urls(sandbox):
    sandbox.files.write("signed", "s")
    get = lambda url: urllib.request.urlopen(url).read()
    assert get(sandbox.download_url("signed")) == b"s"
    assert get(sandbox.download_url("signed", use_signature_expiration=60)) == b"s"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(sandbox.download_url("signed") + "x")
    assert caught.value.code == 401
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(sandbox.download_url("signed", use_signature_expiration=-5))
    assert caught.value.code == 401 and b"signature is already expired" in caught.value.read()


# --- ports ---


def proxied(sandbox, port, path="/", headers=None):
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port), **(headers or {})}
    return urllib.request.urlopen(urllib.request.Request(URL + path, headers=headers))


def test_a_server_inside_is_reached(sandbox):
    sandbox.files.write("www/index.html", "from inside")
    sandbox.commands.run("python3 -m http.server 8123 --bind 127.0.0.1", background=True, cwd="/home/user/www", timeout=0)
    until(lambda: "8123" in sandbox.commands.run("ss -Htln sport = :8123 || true").stdout)
    assert proxied(sandbox, 8123).read() == b"from inside"
    label = urllib.request.Request(URL, headers={"Host": f"8123-{sandbox.sandbox_id}.e2b.test"})
    assert urllib.request.urlopen(label).read() == b"from inside"
    assert sandbox.get_host(8123).startswith(f"8123-{sandbox.sandbox_id}.")
    with pytest.raises(urllib.error.HTTPError) as caught:
        proxied(sandbox, 8124)
    assert caught.value.code == 502 and b"port is not open" in caught.value.read()
    with pytest.raises(urllib.error.HTTPError) as caught:
        proxied(type("Gone", (), {"sandbox_id": "igone"}), 80)
    assert caught.value.code == 502 and b"The sandbox was not found" in caught.value.read()


# --- asynchronously ---


def test_the_asynchronous_client():
    async def run():
        sandbox = await AsyncSandbox.create(timeout=60)
        results = await asyncio.gather(*[sandbox.commands.run(f"echo {n}") for n in range(20)])
        assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]
        await sandbox.files.make_dir("w")
        events = []
        watch = await sandbox.files.watch_dir("w", on_event=events.append)
        await sandbox.files.write("w/f", "1")
        for _ in range(200):
            await asyncio.sleep(0.02)
            if len(events) >= 3:
                break
        assert [event.type.value for event in events] == ["create", "chmod", "write"]
        await watch.stop()
        assert await sandbox.kill()

    asyncio.run(run())
