# Sockets with full buffers, and descriptors in flight in them, sockets among those.
import array


def fill(i):
    while True:
        held = []
        try:
            f = os.open('/etc/passwd', 0)
            while len(held) < 4000:
                a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                a.setblocking(False)
                held.append((a, b))
                try:
                    for flying in ([f] * 200, [a.fileno(), b.fileno()]):
                        a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', flying))])
                    while True:
                        a.send(b'x' * 60000)
                except BlockingIOError:
                    pass
        except OSError:
            pass


while going():
    crew(4, fill)
    time.sleep(0.01)
