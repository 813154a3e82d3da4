# More files read and written than memory holds, again and again: reclaim without end.
def churn(i):
    block, at = os.urandom(1 << 20), 0
    f = os.open('/root/cache%d' % i, os.O_CREAT | os.O_RDWR)
    while True:
        os.pwrite(f, block, (at % 100) << 20)
        os.pread(f, 1 << 20, ((at * 37) % 100) << 20)
        at += 1

storm(4, churn)
