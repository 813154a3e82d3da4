# Tracing: each process stops another at every call.
def trace(i):
    child = os.fork()
    if child == 0:
        libc.prctl(1, signal.SIGKILL)
        libc.ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            os.getppid()
    while True:
        os.waitpid(child, 0)
        libc.ptrace(24, child, 0, 0)

storm(8, trace)
