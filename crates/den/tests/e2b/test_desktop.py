"""E2B's desktop SDK for Python against a house of Den. Runs with versions from 2.4.4 on."""

import io
import os
import re
import socket
import struct
import time
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from e2b_desktop import CommandExitException, Sandbox
from PIL import Image
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

SIZE = (1280, 720)


@pytest.fixture(scope="module")
def desktop():
    made = Sandbox.create(timeout=1800, resolution=SIZE)
    until("XFCE is there", lambda: ends_well(made, "pgrep -x xfwm4 && pgrep -x xfdesktop && pgrep -x xfce4-panel"))
    yield made
    made.kill()


def until(what, holds, seconds=180):
    ends = time.monotonic() + seconds
    while not (seen := holds()):
        assert time.monotonic() < ends, what
        time.sleep(0.3)
    return seen


def ends_well(desktop, script):
    try:
        return desktop.commands.run(script)
    except CommandExitException:
        return None


def windows(desktop, application):
    """The SDK raises where there is none."""
    try:
        return desktop.get_application_windows(application)
    except CommandExitException:
        return []


def window(desktop, application, title):
    titled = lambda: [one for one in windows(desktop, application) if title in desktop.get_window_title(one)]
    return until(f"{application} shows {title}", titled)[0]


def place(desktop, window):
    """Where a window begins, and how large it is."""
    text = desktop.commands.run(f"xdotool getwindowgeometry --shell {window}").stdout
    return [int(re.search(rf"^{name}=(\d+)$", text, re.M).group(1)) for name in ("X", "Y", "WIDTH", "HEIGHT")]


def focus(desktop, window):
    def clicked():
        x, y, width, height = place(desktop, window)
        desktop.left_click(x + width // 2, y + height // 2)
        return desktop.get_current_window_id() == window

    until("it has the keyboard", clicked)


def text_of(desktop, path):
    return desktop.files.read(path) if desktop.files.exists(path) else ""


def test_the_screen(desktop):
    assert desktop.get_screen_size() == SIZE
    image = Image.open(io.BytesIO(desktop.screenshot()))
    assert (image.format, image.size) == ("PNG", SIZE)
    assert b"".join(desktop.screenshot(format="stream")).startswith(b"\x89PNG")
    colours = lambda: len(Image.open(io.BytesIO(desktop.screenshot())).convert("RGB").getcolors(SIZE[0] * SIZE[1]))
    until("panel and icons are drawn", lambda: colours() > 100)
    assert not ends_well(desktop, "ls /tmp/screenshot-*"), "none is left"


def test_keys_reach_a_terminal(desktop):
    desktop.launch("xfce4-terminal")
    terminal = window(desktop, "xfce4-terminal", "user@")
    focus(desktop, terminal)
    desktop.write("sleep 1000")
    desktop.press("enter")
    until("it sleeps", lambda: ends_well(desktop, "pgrep -x sleep"))
    desktop.press(["ctrl", "c"])
    until("it is interrupted", lambda: not ends_well(desktop, "pgrep -x sleep"))
    desktop.write('echo "It\'s $((6 * 7)); {typed} | <here>" > ~/typed', chunk_size=10, delay_in_ms=20)
    desktop.press("enter")
    until("it is written", lambda: text_of(desktop, "/home/user/typed") == "It's 42; {typed} | <here>\n")


def test_the_mouse_reaches_a_window(desktop):
    desktop.move_mouse(700, 30)
    assert desktop.get_cursor_position() == (700, 30)
    # It writes down each event that its window gets.
    desktop.commands.run("stdbuf -oL xev >/tmp/events", background=True, timeout=0)
    tester = until("xev is there", lambda: ends_well(desktop, "xdotool search --onlyvisible --name 'Event Tester'")).stdout
    focus(desktop, tester.strip())
    x, y, width, height = place(desktop, tester)
    middle = (x + width // 2, y + height // 2)
    pressed = lambda: re.findall(r"ButtonPress.*?button (\d)", desktop.files.read("/tmp/events"), re.S)

    def buttons(act, expected):
        before = len(pressed())
        act()
        until(f"buttons {expected}", lambda: pressed()[before:] == expected)

    buttons(lambda: desktop.left_click(*middle), ["1"])
    buttons(lambda: desktop.double_click(*middle), ["1", "1"])
    buttons(lambda: desktop.middle_click(*middle), ["2"])
    buttons(lambda: desktop.right_click(*middle), ["3"])
    buttons(lambda: desktop.scroll("up", 2), ["4", "4"])
    buttons(lambda: desktop.scroll("down", 3), ["5", "5", "5"])
    buttons(lambda: desktop.mouse_press("right"), ["3"])
    desktop.mouse_release("right")
    until("as many go up", lambda: desktop.files.read("/tmp/events").count("ButtonRelease") == len(pressed()))
    held = lambda: re.findall(r"MotionNotify.*?state (0x\w+)", desktop.files.read("/tmp/events"), re.S)
    before = len(held())
    buttons(lambda: desktop.drag(middle, (middle[0] + 20, middle[1] + 30)), ["1"])
    until("the button is held while it moves", lambda: "0x100" in held()[before:])
    assert desktop.get_cursor_position() == (middle[0] + 20, middle[1] + 30)
    desktop.commands.run("pkill xev")


def test_files_and_applications_are_opened(desktop):
    desktop.files.write("/home/user/note.txt", "the first line\n")
    desktop.open("/home/user/note.txt")
    focus(desktop, window(desktop, "mousepad", "note.txt"))
    desktop.press(["ctrl", "home"])
    desktop.write("typed before ")
    desktop.press(["ctrl", "s"])
    until("it is saved", lambda: text_of(desktop, "/home/user/note.txt") == "typed before the first line\n")
    desktop.launch("thunar", "/usr/share")
    window(desktop, "thunar", "share")


def test_a_page_is_opened_in_the_browser(desktop):
    desktop.commands.run("mkdir -p ~/pages && echo '<title>Of Den</title>a page' >~/pages/index.html")
    desktop.commands.run("python3 -u -m http.server 8000 -d ~/pages 2>~/asked", background=True, timeout=0)
    until("it listens", lambda: ends_well(desktop, "netstat -tln | grep ':8000 '"))
    desktop.open("http://localhost:8000/")
    window(desktop, "firefox", "Of Den")
    assert "GET / " in desktop.files.read("/home/user/asked")
    assert not ends_well(desktop, "pgrep -x xev")


@contextmanager
def vnc(desktop, port):
    """A client of what is streamed, through Den by the sandbox's name."""
    den = urlsplit(os.environ["E2B_SANDBOX_URL"])
    connection = socket.create_connection((den.hostname, den.port), 60)
    with connect(f"ws://{desktop.get_host(port)}/websockify", sock=connection, open_timeout=60, max_size=None) as server:
        yield Vnc(server)


class Vnc:
    """RFC 6143, as far as the first picture."""

    def __init__(self, server):
        self.server, self.stream = server, b""
        assert self.take(12) == b"RFB 003.008\n"
        self.server.send(b"RFB 003.008\n")
        self.kinds = list(self.take(self.take(1)[0]))

    def take(self, count):
        while len(self.stream) < count:
            self.stream += self.server.recv(timeout=60)
        taken, self.stream = self.stream[:count], self.stream[count:]
        return taken

    def size(self):
        """Enters without a password; returns the size of what is shown."""
        self.server.send(b"\x01")
        assert self.take(4) == bytes(4), "it is let in"
        self.server.send(b"\x01")
        return struct.unpack(">HH", self.take(4))

    def pixels(self, width, height):
        """What is shown, raw; the kind of pixel is the server's own."""
        bits = self.take(16)[0]
        self.take(struct.unpack(">I", self.take(4))[0])
        self.server.send(struct.pack(">BBHi", 2, 0, 1, 0) + struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        kind, count = struct.unpack(">BxH", self.take(4))
        assert kind == 0 and count > 0
        x, y, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
        assert encoding == 0
        return self.take(width * height * bits // 8)


def stop(desktop):
    desktop.stream.stop()
    until("it is over", lambda: not ends_well(desktop, "pgrep -x x11vnc"))


def test_the_screen_is_streamed(desktop):
    desktop.stream.start()
    with pytest.raises(RuntimeError, match="already running"):
        desktop.stream.start()
    url = desktop.stream.get_url(view_only=True)
    assert url == f"https://{desktop.get_host(6080)}/vnc.html?autoconnect=true&view_only=true&resize=scale"
    den = os.environ["E2B_SANDBOX_URL"]
    page = urllib.request.Request(f"{den}/vnc.html", headers={"Host": desktop.get_host(6080)})
    assert b"noVNC" in urllib.request.urlopen(page, timeout=60).read()
    with vnc(desktop, 6080) as seen:
        assert seen.kinds == [1], "nobody is asked for a password"
        assert seen.size() == SIZE
        assert len(set(seen.pixels(*SIZE))) > 1, "it is not of one colour"
    stop(desktop)
    with pytest.raises((WebSocketException, OSError)):
        with vnc(desktop, 6080):
            pass


def test_a_stream_of_one_window_with_a_password(desktop):
    with pytest.raises(RuntimeError):
        desktop.stream.get_auth_key()
    terminal = windows(desktop, "xfce4-terminal")[0]
    desktop.stream.start(vnc_port=5901, port=6081, window_id=terminal)
    with vnc(desktop, 6081) as seen:
        shown = seen.size()
    assert list(shown) == place(desktop, terminal)[2:] and shown != SIZE
    stop(desktop)
    desktop.stream.start(require_auth=True)
    word = desktop.stream.get_auth_key()
    assert len(word) == 16 and f"password={word}" in desktop.stream.get_url(auth_key=word)
    with vnc(desktop, 6081) as seen:
        assert seen.kinds == [2], "a password is asked for"
    stop(desktop)


def test_windows_stay_over_a_pause(desktop):
    before = windows(desktop, "xfce4-terminal")
    desktop.move_mouse(123, 45)
    desktop.pause()
    desktop.connect()
    assert desktop.get_cursor_position() == (123, 45)
    assert before and windows(desktop, "xfce4-terminal") == before
    desktop.wait(100)
