# Blocks that are flushed one by one, and sync(2), which flushes whatever the host has mounted.
def flush(i):
    f = os.open('/root/flush%d' % i, os.O_CREAT | os.O_WRONLY)
    at = 0
    while True:
        os.pwrite(f, b'x' * 4096, (at % 1000) * 4096)
        at += 1
        os.fsync(f) if i % 2 else os.sync()


storm(8, flush)
