# Every file of /proc and /sys, opened for reading and for writing, and read.
def probe(i):
    while True:
        for root, dirs, files in os.walk(('/proc', '/sys')[i % 2]):
            for name in files:
                for how in (os.O_RDONLY, os.O_WRONLY):
                    try:
                        f = os.open(root + '/' + name, how | os.O_NONBLOCK)
                    except OSError:
                        continue
                    try:
                        if how == os.O_RDONLY:
                            os.read(f, 65536)
                    except OSError:
                        pass
                    os.close(f)


storm(4, probe)
