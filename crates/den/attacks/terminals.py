# Terminals, opened and closed.
def open_all(i):
    while True:
        held = []
        try:
            while True:
                held.append(os.openpty())
        except OSError:
            pass
        for a, b in held:
            os.close(a)
            os.close(b)

storm(4, open_all)
