# Memory until the kernel ends who has it, one after the other.
def eat(i):
    held = []
    while True:
        held.append(bytearray(1 << 20))

ended = 0
while going():
    crew(4, eat)
    try:
        while True:
            os.wait()
            ended += 1
            going()
    except ChildProcessError:
        pass
print('ended', ended)
