"""E2B's SDK for Python against a house of Den: a file of 4 GiB, up and down."""

import hashlib
import io

from e2b import Sandbox

SIZE = 4 << 30


class Pattern(io.RawIOBase):
    """Bytes that no page repeats, and none of which is kept."""

    def __init__(self, size):
        self.left, self.count, self.hash = size, 0, hashlib.sha256()

    def readable(self):
        return True

    def read(self, wanted=-1):
        if self.left == 0:
            return b""
        piece = self.count.to_bytes(8, "little") * (1 << 17)
        piece = piece[: self.left]
        self.left -= len(piece)
        self.count += 1
        self.hash.update(piece)
        return piece


def test_a_file_of_four_gib_goes_up_and_down():
    sandbox = Sandbox.create(timeout=3600)
    pattern = Pattern(SIZE)
    sandbox.files.write("large", pattern, request_timeout=0)
    assert sandbox.commands.run("stat -c %s large").stdout == f"{SIZE}\n"
    inside = sandbox.commands.run("sha256sum < large", timeout=0).stdout.split()[0]
    assert inside == pattern.hash.hexdigest()
    down, length = hashlib.sha256(), 0
    for piece in sandbox.files.read("large", format="stream", request_timeout=0):
        down.update(piece)
        length += len(piece)
    assert (length, down.hexdigest()) == (SIZE, inside)
    assert sandbox.kill()
