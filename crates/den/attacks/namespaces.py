# Namespaces of every kind, in depth and in number, made and left.
def nest(i):
    def deeper():
        uid, deep = os.getuid(), 0
        while libc.unshare(0x10000000) == 0:
            open('/proc/self/setgroups', 'w').write('deny')
            open('/proc/self/uid_map', 'w').write('0 %d 1' % uid)
            uid, deep = 0, deep + 1
            for flag in (0x40000000, 0x04000000, 0x08000000, 0x20000, 0x02000000):
                libc.unshare(flag)
        if i == 0:
            print('deep', deep, flush=True)

    while i % 2:
        libc.unshare(0x40000000)
    each(deeper)


storm(4, nest)
