"""Volumes: all methods of the SDK, with no sandbox; and what is refused."""

import asyncio
import io
import os

import httpx
import pytest
from e2b import (
    AsyncVolume,
    Sandbox,
    SandboxException,
    Volume,
    VolumeException,
    VolumeNotFoundException,
    VolumePathNotFoundException,
)
from e2b.exceptions import AuthenticationException

URL = os.environ["E2B_API_URL"]


@pytest.fixture
def volume(request):
    made = Volume.create(request.node.name[:100].replace("[", "_").replace("]", "_"))
    yield made
    Volume.destroy(made.volume_id)


def content(volume, what, path, **more):
    headers = {"Authorization": f"Bearer {volume.token}"}
    url = f"{URL}/volumecontent/{volume.volume_id}/{what}"
    return httpx.request(url=url, params={"path": path, **more.pop("params", {})}, headers=headers, **more)


def test_a_volume_is_made_listed_and_destroyed():
    made = Volume.create("made-1")
    assert made.name == "made-1" and made.volume_id and made.token
    listed = {volume.volume_id: volume.name for volume in Volume.list()}
    assert listed[made.volume_id] == "made-1"
    info = Volume.get_info(made.volume_id)
    assert (info.volume_id, info.name, info.token) == (made.volume_id, "made-1", made.token)
    same = Volume.connect(made.volume_id)
    same.write_file("/a", "1")
    assert (same.name, same.token, made.read_file("a")) == ("made-1", made.token, "1")
    other = Volume.create("made-2")
    assert other.token != made.token and not other.exists("/a")
    assert Volume.destroy(other.volume_id) and Volume.destroy(made.volume_id)
    assert not Volume.destroy(made.volume_id)
    with pytest.raises(VolumeNotFoundException):
        Volume.get_info(made.volume_id)
    with pytest.raises(VolumeNotFoundException):
        Volume.connect("no-such-volume")
    assert made.volume_id not in [volume.volume_id for volume in Volume.list()]


def test_names_are_checked(volume):
    with pytest.raises(VolumeException, match="409"):
        Volume.create(volume.name)
    for name in ["", "a b", "../x", "a/b", "ä", "x" * 129, volume.volume_id]:
        with pytest.raises(VolumeException, match="400"):
            Volume.create(name)


def test_files_are_written_and_read(volume):
    written = volume.write_file("/hello.txt", "hello\n")
    assert (written.name, written.path, written.type.value, written.size) == ("hello.txt", "/hello.txt", "file", 6)
    assert (written.mode, written.uid, written.gid, written.target) == (0o644, 1000, 1000, None)
    assert written.mtime.tzinfo is not None and written.ctime and written.atime
    assert volume.read_file("/hello.txt") == "hello\n"
    assert volume.read_file("hello.txt", format="bytes") == b"hello\n"
    assert b"".join(volume.read_file("/hello.txt", format="stream")) == b"hello\n"
    again = volume.write_file("/hello.txt", b"bytes \xff\x00", uid=7, gid=8, mode=0o600)
    assert (again.size, again.uid, again.gid, again.mode) == (8, 7, 8, 0o600)
    # What is not said stays.
    again = volume.write_file("/hello.txt", "text of ü", force=True)
    assert (again.size, again.uid, again.gid, again.mode) == (10, 7, 8, 0o600)
    with pytest.raises(VolumeException, match="409"):
        volume.write_file("/hello.txt", "no", force=False)
    assert volume.read_file("/hello.txt") == "text of ü"
    volume.write_file("/empty", "")
    assert volume.read_file("/empty") == "" and volume.read_file("/empty", format="bytes") == b""
    volume.write_file("/of-text", io.StringIO("of a text"))
    volume.write_file("/of-bytes", io.BytesIO(b"of bytes"))
    assert volume.read_file("/of-text") + volume.read_file("/of-bytes") == "of a textof bytes"
    assert [entry.name for entry in volume.list("/")] == ["empty", "hello.txt", "of-bytes", "of-text"]


def test_large_files_go_through_in_pieces(volume):
    block = os.urandom(1 << 20)

    class Blocks(io.RawIOBase):
        left = 48

        def readable(self):
            return True

        def read(self, _size=-1):
            self.left -= 1
            return block if self.left >= 0 else b""

    assert volume.write_file("/large", Blocks()).size == 48 << 20
    assert volume.read_file("/large", format="bytes") == block * 48
    assert sum(len(part) for part in volume.read_file("/large", format="stream")) == 48 << 20
    volume.remove("/large")


def test_folders_are_made_listed_and_removed(volume):
    made = volume.make_dir("/a", uid=3, gid=4, mode=0o700)
    assert (made.name, made.path, made.type.value) == ("a", "/a", "directory")
    assert (made.uid, made.gid, made.mode) == (3, 4, 0o700)
    with pytest.raises(VolumeException, match="409"):
        volume.make_dir("/a")
    with pytest.raises(VolumePathNotFoundException):
        volume.make_dir("/b/c/d")
    assert volume.make_dir("/b/c/d", force=True).mode == 0o755
    assert volume.make_dir("/b/c/d", force=True).path == "/b/c/d"
    volume.write_file("/b/c/f", "x")
    assert [entry.path for entry in volume.list("/")] == ["/a", "/b"]
    assert [entry.path for entry in volume.list("/b", depth=2)] == ["/b/c", "/b/c/d", "/b/c/f"]
    everything = ["/a", "/b", "/b/c", "/b/c/d", "/b/c/f"]
    assert [entry.path for entry in volume.list("/", depth=9)] == everything
    volume.remove("/b")
    assert not volume.exists("/b/c/f") and not volume.exists("/b") and volume.exists("/a")
    volume.remove("/a")
    assert volume.list("/") == []
    root = volume.get_info("/")
    assert (root.type.value, root.path) == ("directory", "/")


def test_owners_and_modes_are_changed(volume):
    volume.write_file("/f", "x")
    changed = volume.update_metadata("/f", uid=0, gid=5, mode=0o755)
    assert (changed.uid, changed.gid, changed.mode) == (0, 5, 0o755)
    changed = volume.update_metadata("/f", mode=0o640)
    assert (changed.uid, changed.gid, changed.mode) == (0, 5, 0o640)
    found = volume.get_info("/f")
    assert (found.uid, found.gid, found.mode, found.size) == (0, 5, 0o640, 1)
    assert volume.update_metadata("/f").mode == 0o640
    with pytest.raises(VolumePathNotFoundException):
        volume.update_metadata("/none", mode=0o600)
    for wrong in [{"mode": 0o10000}, {"uid": 1 << 20}]:
        with pytest.raises(VolumeException, match="400"):
            volume.update_metadata("/f", **wrong)


def test_what_is_not_there_is_not_found(volume):
    assert not volume.exists("/none") and not volume.exists("/none/below")
    for call in [
        lambda: volume.get_info("/none"),
        lambda: volume.list("/none"),
        lambda: volume.read_file("/none"),
        lambda: list(volume.read_file("/none", format="stream")),
        lambda: volume.remove("/none"),
        lambda: volume.write_file("/none/file", "x"),
    ]:
        with pytest.raises(VolumePathNotFoundException):
            call()
    gone = Volume.create("gone")
    Volume.destroy(gone.volume_id)
    with pytest.raises(VolumePathNotFoundException):
        gone.read_file("/a")


def test_what_makes_no_sense_is_refused(volume):
    volume.make_dir("/folder")
    volume.write_file("/file", "x")
    for call in [
        lambda: volume.read_file("/folder"),
        lambda: volume.write_file("/folder", "x"),
        lambda: volume.list("/file"),
        lambda: volume.list("/", depth=0),
        lambda: volume.remove("/"),
        lambda: volume.write_file("/", "x"),
        lambda: volume.get_info("/file/below"),
        lambda: volume.get_info("/folder/../file"),
        lambda: volume.write_file("../escaped", "x"),
        lambda: volume.get_info("/zero\0byte"),
        lambda: volume.write_file("/" + "n" * 256, "x"),
        lambda: volume.write_file("/file2", "x", mode=0o10000),
    ]:
        with pytest.raises(VolumeException, match="400"):
            call()
    assert [entry.name for entry in volume.list("/")] == ["file", "folder"]


def test_only_its_token_opens_a_volume(volume):
    other = Volume.create("other")
    for token in [other.token, "wrong", "", os.environ["E2B_API_KEY"]]:
        with pytest.raises(AuthenticationException):
            Volume(volume.volume_id, volume.name, token=token or "x").read_file("/a")
    Volume.destroy(other.volume_id)
    assert httpx.get(f"{URL}/volumecontent/{volume.volume_id}/path", params={"path": "/"}).status_code == 401
    assert content(volume, "path", "/", method="GET").status_code == 200
    assert content(volume, "path", "/", method="PUT").status_code == 405


def test_a_broken_upload_leaves_what_was(volume):
    volume.write_file("/f", "before")

    def breaks():
        yield b"x" * (1 << 20)
        raise ConnectionError("on the way")

    with pytest.raises(ConnectionError):
        content(volume, "file", "/f", method="PUT", content=breaks())
    assert volume.read_file("/f") == "before"
    assert [entry.name for entry in volume.list("/")] == ["f"]


def test_the_asynchronous_ones():
    async def run():
        volume = await AsyncVolume.create("async-1")
        written = await volume.write_file("/a/b".replace("/b", ""), b"1" * 1000)
        assert written.size == 1000
        await volume.make_dir("/d/e", force=True)
        assert await volume.exists("/d/e") and not await volume.exists("/d/f")
        assert (await volume.get_info("/d")).type.value == "directory"
        assert [entry.path for entry in await volume.list("/", depth=2)] == ["/a", "/d", "/d/e"]
        assert (await volume.update_metadata("/a", mode=0o600)).mode == 0o600
        assert await volume.read_file("/a", format="bytes") == b"1" * 1000
        parts = [part async for part in await volume.read_file("/a", format="stream")]
        assert b"".join(parts) == b"1" * 1000
        await volume.remove("/d")
        same = await AsyncVolume.connect(volume.volume_id)
        assert [entry.name for entry in await same.list("/")] == ["a"]
        assert volume.volume_id in [info.volume_id for info in await AsyncVolume.list()]
        assert await AsyncVolume.destroy(volume.volume_id)
        assert not await AsyncVolume.destroy(volume.volume_id)

    asyncio.run(run())


def mounts_of(sandbox):
    found = httpx.get(f"{URL}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": os.environ["E2B_API_KEY"]}).json()
    return [(mount["name"], mount["path"]) for mount in found["volumeMounts"]]


def test_sandboxes_share_a_volume(volume):
    mounts = {"/mnt/shared": volume}
    first = Sandbox.create("base", timeout=300, volume_mounts=mounts)
    second = Sandbox.create("base", timeout=300, volume_mounts={"/data": volume.name})
    try:
        first.files.write("/mnt/shared/from-first", "of the first")
        assert second.files.read("/data/from-first") == "of the first"
        assert volume.read_file("/from-first") == "of the first"
        volume.write_file("/from-outside", "of the API")
        volume.make_dir("/folder", mode=0o775)
        assert first.commands.run("cat /mnt/shared/from-outside").stdout == "of the API"
        # They run as the user that new files belong to.
        second.commands.run("echo more >> /data/from-outside && touch /data/folder/x && mkfifo /data/pipe")
        assert volume.read_file("/from-outside") == "of the APImore\n"
        assert volume.get_info("/folder/x").uid == 1000
        assert volume.get_info("/pipe").type.value == "unknown"
        with pytest.raises(VolumeException, match="400"):
            volume.read_file("/pipe")
        assert mounts_of(first) == [(volume.name, "/mnt/shared")]
        with pytest.raises(VolumeException, match="409"):
            Volume.destroy(volume.volume_id)
        # What a sandbox's links lead to is its own, not the host's.
        second.commands.run("ln -s /etc/hostname /data/link && ln -s ../../../../etc /data/up")
        assert volume.get_info("/link").target == "/etc/hostname"
        for call in [lambda: volume.read_file("/link"), lambda: volume.list("/up"), lambda: volume.write_file("/up/x", "")]:
            with pytest.raises(VolumeException, match="400"):
                call()
        # It outlives them.
        first.kill()
        assert second.files.read("/data/from-first") == "of the first"
    finally:
        first.kill()
        second.kill()
    assert volume.read_file("/from-first") == "of the first"


def test_mounts_that_make_no_sense_are_refused(volume):
    for mounts, code in [({"/mnt/v": "no-such-volume"}, "404"), ({"relative": volume}, "400"), ({"/": volume}, "400")]:
        with pytest.raises(SandboxException, match=code):
            Sandbox.create("base", timeout=60, volume_mounts=mounts)
