# Keyrings, the kernel's log, the clock, programs for the kernel, io_uring: calls that are refused, without end.
def call(i):
    while True:
        libc.syscall(248, b'user', b'x', b'y', 1, -3)  # add_key
        libc.syscall(250, 0, -3, 0)  # keyctl
        libc.syscall(103, 3, None, 0)  # syslog
        libc.syscall(227, 0, bytes(16))  # clock_settime
        libc.syscall(321, 0, None, 0)  # bpf
        libc.syscall(425, 1, None)  # io_uring_setup


storm(4, call)
