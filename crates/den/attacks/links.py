# Links of the network, made and removed, many at a time.
import subprocess


def link(i):
    made = ''.join('link add v%d.%d type veth peer name w%d.%d\n' % (i, n, i, n) for n in range(200))
    gone = ''.join('link del v%d.%d\n' % (i, n) for n in range(200))
    while True:
        for words in (made, gone):
            subprocess.run(['ip', '-force', '-batch', '-'], input=words, text=True, capture_output=True)


storm(4, link)
