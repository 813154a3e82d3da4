# Watches on files, and what they have to say, without number.
def watch(i):
    os.makedirs('/tmp/w%d' % i, exist_ok=True)
    while True:
        held = []
        while True:
            f = libc.inotify_init1(0)
            if f < 0 or libc.inotify_add_watch(f, b'/tmp/w%d' % i, 0xfff) < 0:
                break
            held.append(f)
        for n in range(100):
            open('/tmp/w%d/%d' % (i, n), 'w').close()
            os.unlink('/tmp/w%d/%d' % (i, n))
        for f in held:
            os.close(f)

storm(4, watch)
