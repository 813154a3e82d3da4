// E2B's SDK for JavaScript against the domain of a house: names and TLS, and no address in the environment.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createRequire } from 'node:module'
import { once } from 'node:events'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox } = require('e2b')
const WebSocket = require('ws')

test('a sandbox, its files, its servers and their WebSockets are found by name', async () => {
  assert(!process.env.E2B_API_URL && !process.env.E2B_SANDBOX_URL)
  const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  try {
    assert.equal((await sandbox.commands.run('echo hi')).stdout, 'hi\n')
    const text = 'ü'.repeat(1_000_000)
    await sandbox.files.write('a/b', text)
    assert.equal(await sandbox.files.read('a/b'), text)
    assert.deepEqual((await sandbox.files.list('a')).map((one) => one.name), ['b'])
    const many = await Promise.all([...Array(40).keys()].map((n) => sandbox.commands.run(`echo ${n}`)))
    assert.deepEqual(many.map((one) => one.stdout), [...Array(40).keys()].map((n) => `${n}\n`))

    const url = await sandbox.downloadUrl('a/b')
    assert(url.startsWith(`https://49983-${sandbox.sandboxId}.${process.env.E2B_DOMAIN}/files?`), url)
    assert.equal(await (await fetch(url)).text(), text)

    // RFC 6455 by hand: what comes is sent back.
    await sandbox.files.write('echo.py', `
import base64, hashlib, socket
server = socket.create_server(("127.0.0.1", 8200))
while True:
    conn, _ = server.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        more = conn.recv(4096)
        if not more:
            break
        head += more
    lines = dict(line.split(b": ", 1) for line in head.split(b"\\r\\n") if b": " in line)
    lines = {name.lower(): value for name, value in lines.items()}
    if b"sec-websocket-key" not in lines:
        conn.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nplain")
        conn.close()
        continue
    accept = base64.b64encode(hashlib.sha1(lines[b"sec-websocket-key"] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    conn.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    for _ in range(3):
        head = conn.recv(2, socket.MSG_WAITALL)
        length = head[1] & 127
        mask, data = conn.recv(4, socket.MSG_WAITALL), conn.recv(length, socket.MSG_WAITALL)
        text = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
        conn.sendall(bytes([0x81, len(text)]) + text)
`)
    await sandbox.commands.run('python3 echo.py', { background: true, timeoutMs: 0 })
    await sandbox.commands.run('until ss -Htln sport = :8200 | grep -q .; do sleep 0.05; done')
    const host = sandbox.getHost(8200)
    assert.equal(await (await fetch(`https://${host}/`)).text(), 'plain')
    const socket = new WebSocket(`wss://${host}/x`)
    await once(socket, 'open')
    for (const text of ['hello', 'names', 'bye']) {
      socket.send(text)
      assert.equal((await once(socket, 'message'))[0].toString(), text)
    }
    socket.terminate()
  } finally {
    assert.equal(await sandbox.kill(), true)
  }
})
