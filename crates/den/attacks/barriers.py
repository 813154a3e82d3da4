# Barriers of memory: interrupts at all processors, and grace periods of RCU.
def barrier(i):
    libc.syscall(324, 4, 0, 0)
    while True:
        libc.syscall(324, 2 if i % 2 else 1, 0, 0)


storm(8, barrier)
