# What every attack begins with. Its words: for how many seconds it goes on.
import ctypes, errno, os, random, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
until = time.time() + float(sys.argv[1])
first, rounds, told = os.getpid(), 0, time.time()


def going():
    # Counts a round, and says now and then that it goes on: whoever watches sees that it does.
    global rounds, told
    rounds, now = rounds + 1, time.time()
    if now - told > 0.1 and os.getpid() == first:
        told = now
        print('round', rounds, flush=True)
    return now < until


def crew(count, work):
    # That many processes at the same time; ends with this one.
    for i in range(count):
        try:
            if os.fork() == 0:
                libc.prctl(1, signal.SIGKILL)
                # The first process gets its turns beside them, and where memory ends one of these goes first.
                os.nice(19)
                open('/proc/self/oom_score_adj', 'w').write('1000')
                try:
                    work(i)
                finally:
                    os._exit(0)
        except OSError:
            return


def storm(count, work):
    # A crew, until the time is over.
    crew(count, work)
    while going():
        time.sleep(0.01)


def each(work):
    # Again and again, each time in a process of its own.
    while True:
        if os.fork() == 0:
            work()
            os._exit(0)
        os.wait()


def gives(call):
    # The errno of a call, 0 when it was allowed.
    ctypes.set_errno(0)
    return ctypes.get_errno() if call() < 0 else 0
