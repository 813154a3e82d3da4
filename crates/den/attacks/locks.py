# Locks on files, message queues and shared memory, made and let go.
import fcntl


def lock(i):
    f = open('/root/lock%d' % i, 'w')
    while True:
        for n in range(5000):
            fcntl.lockf(f, fcntl.LOCK_EX, 1, n * 2)
        fcntl.lockf(f, fcntl.LOCK_UN)
        for n in range(200):
            libc.shmctl(libc.shmget(0, 4096, 0o1666), 0, None)
            libc.msgctl(libc.msgget(0, 0o1666), 0, None)


storm(4, lock)
