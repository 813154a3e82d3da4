# Raw frames, raw packets, datagrams, questions for names and flows that nobody finishes, as fast as they go.
def send(i):
    question = b'\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01'
    anywhere = lambda: '192.0.2.%d' % random.randrange(1, 255)
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(('eth0', 0))
    frame = raw.getsockname()[4] * 2 + b'\x08\x00\x45' + os.urandom(1000)
    protocol = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flows, sent = [], 0
    while True:
        try:
            if i % 5 == 0:
                raw.send(frame)
            elif i % 5 == 1:
                protocol.sendto(b'x' * 64, (anywhere(), 0))
            elif i % 5 == 2:
                datagram.sendto(b'x' * 60000, ('127.0.0.1', 9999))
            elif i % 5 == 3:
                datagram.sendto(question, ('169.254.1.1', 53))
            else:
                flow = socket.socket()
                flow.setblocking(False)
                flow.connect_ex((anywhere(), random.randrange(1, 65536)))
                flows.append(flow)
                if len(flows) > 200:
                    flows.clear()
            sent += 1
        except OSError:
            pass
        if sent == 1000:
            print('kind', i, 'sent', flush=True)


storm(5, send)
