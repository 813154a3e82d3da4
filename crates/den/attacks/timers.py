# Timers that fire as often as the kernel lets them.
def tick(i):
    held = []
    for n in range(500):
        f = libc.timerfd_create(1, 0)
        if f < 0:
            break
        libc.timerfd_settime(f, 0, struct.pack('qqqq', 0, 1000 + n, 0, 1000), None)
        held.append(f)
    while True:
        for f in held:
            os.read(f, 8)


storm(8, tick)
