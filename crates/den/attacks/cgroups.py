# Cgroups made and removed, and processes moved between them, under locks of the whole host's.
def move(i):
    at = '/sys/fs/cgroup/moved%d' % i
    os.makedirs(at, exist_ok=True)
    while True:
        for to in (at, '/sys/fs/cgroup'):
            try:
                with open(to + '/cgroup.procs', 'w') as f:
                    f.write('0')
            except OSError:
                pass


def make(i):
    while True:
        for call in (os.mkdir, os.rmdir):
            for n in range(200):
                try:
                    call('/sys/fs/cgroup/made%d.%d' % (i, n))
                except OSError:
                    pass


crew(4, move)
storm(2, make)
