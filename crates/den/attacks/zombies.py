# The dead that nobody fetches, up to the limit of processes, and orphans, which PID 1 has to fetch.
def die(i):
    while True:
        try:
            if os.fork() == 0:
                for _ in range(50):
                    if os.fork() == 0:
                        os._exit(0)
                os._exit(0)
        except OSError:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except OSError:
                pass


storm(4, die)
