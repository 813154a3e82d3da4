# Files without number, each with a long name, until the disk takes no more; they are removed, and made anew.
import shutil


def fill(i):
    at, n = '/root/many%d' % i, 0
    while True:
        try:
            if n % 1000 == 0:
                os.makedirs(at + '/%d' % n)
            f = os.open(at + '/%d/%0200d' % (n - n % 1000, n), os.O_CREAT | os.O_WRONLY)
            os.write(f, b'x')
            os.close(f)
            n += 1
        except OSError as e:
            print('errno', e.errno, flush=True)
            print('names', n, flush=True)
            shutil.rmtree(at, ignore_errors=True)
            n = 0


storm(4, fill)
