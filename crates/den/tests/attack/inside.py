# What an attacker inside a computer has: sockets and bytes. Each script of a row begins with this
# file and says what it saw as lines of JSON.
import errno, json, os, socket, ssl, struct, sys, threading, time

GATE = '169.254.1.1'


def say(**facts):
    print(json.dumps(facts), flush=True)


def question(name, kind=1, number=7, edns=True, klass=1):
    """A DNS query. The name is text, or a list of labels as bytes."""
    labels = [part.encode('latin-1') for part in name.rstrip('.').split('.')] if isinstance(name, str) else name
    out = struct.pack('>HHHHHH', number, 0x0100, 1, 0, 0, 1 if edns else 0)
    for label in labels:
        out += bytes([len(label)]) + label
    out += b'\0' + struct.pack('>HH', kind, klass)
    if edns:
        out += b'\0' + struct.pack('>HHIH', 41, 1232, 0, 0)
    return out


def skip(message, at):
    while message[at]:
        if message[at] & 0xc0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def reading(message):
    """An answer as facts: code, extended error, addresses, number of answers."""
    number, flags, questions, answers, authorities, more = struct.unpack('>HHHHHH', message[:12])
    at, ede, addresses = 12, None, []
    for _ in range(questions):
        at = skip(message, at) + 4
    for place in range(answers + authorities + more):
        at = skip(message, at)
        kind, _, _, length = struct.unpack('>HHIH', message[at:at + 10])
        data = message[at + 10:at + 10 + length]
        at += 10 + length
        if place < answers and kind == 1:
            addresses.append(socket.inet_ntoa(data))
        while kind == 41 and len(data) >= 4:
            option, size = struct.unpack('>HH', data[:4])
            if option == 15:
                ede = struct.unpack('>H', data[4:6])[0]
            data = data[4 + size:]
    return dict(code=flags & 15, ede=ede, addresses=addresses, answers=answers, number=number)


def dns(name, kind=1, to=GATE, tcp=False, wait=3, raw=None):
    """Asks; the reading, or how it ended where no answer came."""
    message = question(name, kind) if raw is None else raw
    since = time.monotonic()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as s:
            s.settimeout(wait)
            s.connect((to, 53))
            s.sendall(struct.pack('>H', len(message)) + message if tcp else message)
            if tcp:
                head = s.recv(2, socket.MSG_WAITALL)
                if len(head) < 2:
                    return dict(end='closed', ms=ms(since))
                got = s.recv(struct.unpack('>H', head)[0], socket.MSG_WAITALL)
            else:
                got = s.recv(65535)
            return dict(reading(got), end='answer', ms=ms(since))
    except OSError as e:
        return dict(end=how(e), ms=ms(since))


def ms(since):
    return int((time.monotonic() - since) * 1000)


def how(e):
    if isinstance(e, (socket.timeout, TimeoutError)) and e.errno is None:
        return 'silent'
    return {errno.ECONNREFUSED: 'refused', errno.ECONNRESET: 'reset', errno.EPIPE: 'reset', errno.ETIMEDOUT: 'silent',
            errno.EHOSTUNREACH: 'unreachable', errno.ENETUNREACH: 'unreachable'}.get(e.errno, repr(e))


def fate(address, port, send=b'', wait=3, pieces=None, pause=0.0, enough=None):
    """Connects, sends, reads until the end, silence or `enough`: what came, how it ended, how long."""
    since = time.monotonic()
    got = b''
    try:
        with socket.socket() as s:
            s.settimeout(wait)
            s.connect((address, port))
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces if pieces is not None else [send]:
                if piece:
                    s.sendall(piece)
                if pause:
                    s.settimeout(pause)
                    try:
                        more = s.recv(65536)
                        if not more:
                            return dict(end='closed', got=got.decode('latin-1'), ms=ms(since))
                        got += more
                    except socket.timeout:
                        pass
                    s.settimeout(wait)
            while True:
                if enough is not None and enough in got:
                    return dict(end='enough', got=got.decode('latin-1'), ms=ms(since))
                more = s.recv(65536)
                if not more:
                    return dict(end='closed', got=got.decode('latin-1'), ms=ms(since))
                got += more
    except OSError as e:
        return dict(end=how(e), got=got.decode('latin-1'), ms=ms(since))


def get(address, host, path='/', port=80, method='GET', more='', wait=5):
    """One request in the clear."""
    head = f'{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n'
    return fate(address, port, head.encode('latin-1'), wait)


def tls(address, sni, host=None, path='/', port=443, wait=5):
    """One request by TLS with a real client; `sni` None sends none."""
    since = time.monotonic()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout=wait) as plain:
            with context.wrap_socket(plain, server_hostname=sni) as s:
                s.sendall(f'GET {path} HTTP/1.1\r\nHost: {host or sni}\r\nConnection: close\r\n\r\n'.encode())
                got = b''
                while more := s.recv(65536):
                    got += more
                return dict(end='closed', got=got.decode('latin-1'), ms=ms(since))
    except ssl.SSLError as e:
        return dict(end='reset' if 'EOF' in str(e) else f'tls: {e}', got='', ms=ms(since))
    except OSError as e:
        return dict(end=how(e), got='', ms=ms(since))


def extension(kind, data):
    return struct.pack('>HH', kind, len(data)) + data


def hello(sni=None, ech=None, pad=0):
    """A ClientHello by hand, as a handshake message. `ech` is the payload of its 0xfe0d extension."""
    more = b''
    if sni is not None:
        name = sni if isinstance(sni, bytes) else sni.encode()
        more += extension(0, struct.pack('>HBH', len(name) + 3, 0, len(name)) + name)
    more += extension(10, struct.pack('>HHH', 4, 0x001d, 0x0017))
    more += extension(13, struct.pack('>HHHH', 6, 0x0403, 0x0804, 0x0401))
    more += extension(43, b'\x04\x03\x04\x03\x03')
    more += extension(51, struct.pack('>HHH', 36, 0x001d, 32) + os.urandom(32))
    if ech is not None:
        more += extension(0xfe0d, ech)
    if pad:
        more += extension(21, b'\0' * pad)
    body = b'\x03\x03' + os.urandom(32) + b'\x20' + os.urandom(32)
    body += struct.pack('>H', 6) + b'\x13\x01\x13\x02\xc0\x2f' + b'\x01\0'
    body += struct.pack('>H', len(more)) + more
    return b'\x01' + struct.pack('>I', len(body))[1:] + body


def outer_ech(inner=b''):
    """An encrypted ClientHello's outer form: a suite, a config's number, a key, and a payload."""
    payload = inner + os.urandom(144)
    return b'\0' + struct.pack('>HHB', 1, 1, 7) + struct.pack('>H', 32) + os.urandom(32) + struct.pack('>H', len(payload)) + payload


def records(handshake, size=16000):
    """TLS records of at most `size` bytes each."""
    parts = [handshake[at:at + size] for at in range(0, len(handshake), size)]
    return b''.join(b'\x16\x03\x01' + struct.pack('>H', len(part)) + part for part in parts)


def address(name):
    """What the gate says a name's address is."""
    found = dns(name)
    return found['addresses'][0] if found.get('addresses') else None


def checksum(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack(f'>{len(data) // 2}H', data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


def packet(protocol, to, data, source='10.0.0.2', fragment=0, number=1, ttl=64):
    """An IPv4 packet by hand."""
    head = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(data), number, fragment, ttl, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(to))
    return head[:10] + struct.pack('>H', checksum(head)) + head[12:] + data


def udp(to, port, data, source='10.0.0.2'):
    return packet(17, to, struct.pack('>HHHH', 40000, port, 8 + len(data), 0) + data, source)


def syn(to, port, source='10.0.0.2', source_port=40001):
    tcp = struct.pack('>HHIIBBHHH', source_port, port, 1, 0, 0x50, 2, 65535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack('>BBH', 0, 6, len(tcp))
    return packet(6, to, tcp[:16] + struct.pack('>H', checksum(pseudo + tcp)) + tcp[18:], source)


GATE_MAC = b'\x02\0\0\0\0\x01'
OWN_MAC = b'\x02\0\0\0\0\x02'


def wire(device='eth0'):
    """A socket for whole frames."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.bind((device, 0))
    return s


def frame(data, kind=0x0800, to=GATE_MAC, source=OWN_MAC):
    return to + source + struct.pack('>H', kind) + data

