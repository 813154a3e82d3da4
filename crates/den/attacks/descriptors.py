# Open files at the limit of every process, closed and opened anew.
def hold(i):
    while True:
        held = []
        try:
            while True:
                held.append(os.open('/etc/passwd', 0))
        except OSError:
            pass
        for f in held:
            os.close(f)

while going():
    crew(20, hold)
    time.sleep(0.01)
