# Output without end.
line = b'flood ' * 10000
while going():
    os.write(1, line)
    os.write(2, line)
