"""E2B's SDK for Python against a house of Den: many at once, and clients that hang or vanish."""

import asyncio
import threading

import pytest
from e2b import AsyncSandbox, Sandbox, SandboxException

from test_sandbox import until


def test_fifty_at_once():
    async def one(number):
        sandbox = await AsyncSandbox.create(timeout=300, metadata={"n": str(number)})
        result = await sandbox.commands.run(f"echo {number}")
        assert result.stdout == f"{number}\n"
        assert await sandbox.kill()
        return sandbox.sandbox_id

    async def run():
        return await asyncio.gather(*[one(number) for number in range(50)])

    assert len(set(asyncio.run(run()))) == 50
    assert Sandbox.list().next_items() == []


def test_a_hundred_watchers_of_one_folder():
    sandbox = Sandbox.create(timeout=300)
    sandbox.files.make_dir("w")
    watchers = [sandbox.files.watch_dir("w") for _ in range(100)]
    sandbox.files.write("w/f", "1")
    for watcher in watchers:
        seen = []
        until(lambda: seen.extend(watcher.get_new_events()) or len(seen) >= 3, 60)
        assert [event.type.value for event in seen] == ["create", "chmod", "write"]
        watcher.stop()
    assert sandbox.kill()


def test_a_hundred_streams_of_events_of_one_folder():
    async def run():
        sandbox = await AsyncSandbox.create(timeout=300)
        await sandbox.files.make_dir("w")
        seen = [[] for _ in range(100)]
        watches = [await sandbox.files.watch_dir("w", on_event=events.append) for events in seen]
        await sandbox.files.write("w/f", "1")
        for _ in range(3000):
            if all(len(events) >= 3 for events in seen):
                break
            await asyncio.sleep(0.02)
        for events in seen:
            assert [event.type.value for event in events] == ["create", "chmod", "write"]
        for watch in watches:
            await watch.stop()
        assert await sandbox.kill()

    asyncio.run(run())


def test_output_goes_on_after_a_pause():
    sandbox = Sandbox.create(timeout=300)
    script = "for n in $(seq 100000); do echo $n; sleep 0.05; done"
    handle = sandbox.commands.run(script, background=True, timeout=0)
    before = []
    for out, _, _ in handle:
        before.append(out)
        if len(before) == 3:
            break
    assert "".join(before).split()[:3] == ["1", "2", "3"]
    sandbox.pause()
    with pytest.raises(SandboxException):
        for _ in handle:
            pass
    again = sandbox.connect()
    after = []
    for out, _, _ in again.commands.connect(handle.pid):
        after.extend(out.split())
        if len(after) >= 3:
            break
    # It is the same count, and nothing of what comes now came before.
    assert int(after[0]) > 3 and int(after[2]) == int(after[0]) + 2
    assert again.commands.kill(handle.pid) is True
    assert again.kill()


def test_a_client_that_does_not_read_holds_nobody_up():
    sandbox = Sandbox.create(timeout=300)
    # Its output is not read from here on; far more than what sockets hold.
    hung = sandbox.commands.run("head -c 100000000 /dev/zero | tr '\\0' a; echo done > ~/done", background=True, timeout=0)
    until(lambda: sandbox.files.exists("done"), 60)
    assert sandbox.commands.run("cat done").stdout == "done\n"
    got = sum(len(out) for out, _, _ in hung)
    assert got == 100_000_000, "what it has to say is all there"
    assert sandbox.kill()


def test_a_client_that_vanishes_stops_nothing():
    sandbox = Sandbox.create(timeout=300)
    script = "for n in $(seq 100000); do echo $n; sleep 0.02; done"
    pids = []
    for _ in range(20):
        handle = sandbox.commands.run(script, background=True, timeout=0)
        pids.append(handle.pid)
        handle.disconnect()
    running = {one.pid for one in sandbox.commands.list()}
    assert running >= set(pids)
    seen = threading.Event()
    handle = sandbox.commands.connect(pids[7])
    for out, _, _ in handle:
        if out:
            seen.set()
            break
    assert seen.is_set()
    assert all(sandbox.commands.kill(pid) for pid in pids)
    assert sandbox.kill()
