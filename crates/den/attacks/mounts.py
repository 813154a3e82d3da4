# Mounts that double, up to the limit of a namespace; all of them go with it, and begin anew.
def mount(i):
    at = b'/tmp/mount%d' % i
    os.makedirs(at, exist_ok=True)

    def double():
        libc.unshare(0x20000)
        libc.mount(b'x', at, b'tmpfs', 0, None)
        libc.mount(None, at, None, 1 << 20, None)
        os.mkdir(at + b'/below')
        n = 0
        while libc.mount(at, at + b'/below', None, 4096 | 16384, None) == 0:
            n += 1
            if i == 0:
                print('doubled', n, flush=True)

    each(double)


storm(4, mount)
