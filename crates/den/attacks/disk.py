# The disk filled to its limit, emptied, and filled again.
most, block, code = 0, os.urandom(1 << 20), 0
while going():
    mib = 0
    try:
        with open('/root/fill', 'wb', 0) as f:
            while going():
                f.write(block)
                mib += 1
    except OSError as e:
        code = e.errno
    most = max(most, mib)
    try:
        os.unlink('/root/fill')
    except OSError as e:
        code = e.errno
print('mib', most)
print('errno', code)
