// E2B's SDK for JavaScript against a house of Den. Runs with any version from 2.45 on.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createRequire } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox, CommandExitError, NotFoundError, FilesystemEventType } = require('e2b')
const WebSocket = require('ws')

const until = async (seen, seconds = 10) => {
  const end = Date.now() + seconds * 1000
  for (;;) {
    const found = await seen()
    if (found) return found
    assert(Date.now() < end, 'it does not happen')
    await sleep(20)
  }
}

const lent = async (use, options = {}) => {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options })
  try {
    await use(sandbox)
  } finally {
    await sandbox.kill()
  }
}

test('a sandbox lives and is killed', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 60_000, metadata: { a: 'b c', 'ü&': '=/' } })
  assert(await sandbox.isRunning())
  const pages = Sandbox.list({ query: { metadata: { a: 'b c', 'ü&': '=/' }, state: ['running'] }, limit: 5 })
  const found = await pages.nextItems()
  assert.deepEqual(found.map((one) => one.sandboxId), [sandbox.sandboxId])
  const info = await sandbox.getInfo()
  assert.equal(info.state, 'running')
  assert.equal((await Sandbox.getFullInfo(sandbox.sandboxId)).sandboxId, sandbox.sandboxId)
  await sandbox.setTimeout(90_000)
  const again = await Sandbox.connect(sandbox.sandboxId)
  assert.equal((await again.commands.run('echo hi')).stdout, 'hi\n')
  assert.equal(await sandbox.kill(), true)
  assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError)
})

test('commands run, fail and are killed', () =>
  lent(async (sandbox) => {
    const result = await sandbox.commands.run('whoami; pwd; echo $A; echo err >&2', { envs: { A: 'ü' } })
    assert.equal(result.stdout, 'user\n/home/user\nü\n')
    assert.equal(result.stderr, 'err\n')
    await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
    const out = []
    const handle = await sandbox.commands.run('cat', { background: true, stdin: true, onStdout: (text) => out.push(text) })
    await sandbox.commands.sendStdin(handle.pid, 'in')
    await until(() => out.join('') === 'in')
    assert((await sandbox.commands.list()).some((one) => one.pid === handle.pid))
    assert.equal(await sandbox.commands.kill(handle.pid), true)
    await assert.rejects(handle.wait())
    await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 500 }))
    const many = await Promise.all([...Array(20).keys()].map((n) => sandbox.commands.run(`echo ${n}`)))
    assert.deepEqual(many.map((one) => one.stdout), [...Array(20).keys()].map((n) => `${n}\n`))
  }))

test('a terminal', () =>
  lent(async (sandbox) => {
    let seen = ''
    const pty = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => (seen += new TextDecoder().decode(data)), timeoutMs: 0 })
    await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('stty size\n'))
    await until(() => seen.includes('24 80'))
    await sandbox.pty.resize(pty.pid, { cols: 100, rows: 30 })
    await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('stty size; exit\n'))
    await until(() => seen.includes('30 100'))
    await pty.wait()
  }))

test('files are written, read, listed and watched', () =>
  lent(async (sandbox) => {
    await sandbox.files.write('a/b.txt', 'hello')
    assert.equal(await sandbox.files.read('a/b.txt'), 'hello')
    const bytes = new Uint8Array(5_000_000).map((_, at) => at % 251)
    await sandbox.files.write('large', new Blob([bytes]))
    assert.deepEqual(new Uint8Array(await sandbox.files.read('large', { format: 'bytes' })), bytes)
    assert.equal(await sandbox.files.exists('no'), false)
    assert.equal(await sandbox.files.makeDir('w'), true)
    assert.equal(await sandbox.files.makeDir('w'), false)
    const events = []
    const watch = await sandbox.files.watchDir('w', (event) => events.push(event), { recursive: true })
    await sandbox.files.write('w/f', '1')
    await until(() => events.length >= 3)
    assert.deepEqual(events.map((event) => event.type), ['create', 'chmod', 'write'])
    assert.equal(events[0].name, 'f')
    await watch.stop()
    assert.deepEqual((await sandbox.files.list('w')).map((one) => one.name), ['f'])
    await sandbox.files.rename('w/f', 'w/g')
    await sandbox.files.remove('w')
    await assert.rejects(sandbox.files.read('w/g'), NotFoundError)
    const response = await fetch(await sandbox.downloadUrl('a/b.txt'))
    assert.equal(await response.text(), 'hello')
  }))

test('a paused sandbox goes on', () =>
  lent(async (sandbox) => {
    await sandbox.files.write('kept', 'x')
    const pause = sandbox.pause ?? sandbox.betaPause
    await pause.call(sandbox)
    assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).state, 'paused')
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.equal(await again.files.read('kept'), 'x')
  }))

test('a WebSocket goes through to a server inside', () =>
  lent(async (sandbox) => {
    // RFC 6455 by hand: what comes is sent back.
    await sandbox.files.write('echo.py', `
import base64, hashlib, socket
server = socket.create_server(("127.0.0.1", 8200))
while True:
    conn, _ = server.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += conn.recv(4096)
    key = [line.split(b": ")[1] for line in head.split(b"\\r\\n") if line.lower().startswith(b"sec-websocket-key")][0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    conn.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    frame = conn.recv(4096)
    length = frame[1] & 127
    mask, data = frame[2:6], frame[6:6 + length]
    text = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
    conn.sendall(bytes([0x81, len(text)]) + text)
`)
    await sandbox.commands.run('python3 echo.py', { background: true, timeoutMs: 0 })
    await until(async () => (await sandbox.commands.run('ss -Htln sport = :8200')).stdout)
    const socket = new WebSocket(process.env.E2B_API_URL.replace('http', 'ws'), {
      headers: { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8200' },
    })
    const answer = await new Promise((resolve, reject) => {
      socket.on('open', () => socket.send('hello'))
      socket.on('message', (data) => resolve(data.toString()))
      socket.on('error', reject)
    })
    assert.equal(answer, 'hello')
    socket.terminate()
  }))
