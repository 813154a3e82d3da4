// E2B's desktop SDK for JavaScript against a house of Den. Runs with versions from 2.3.3 on.
import assert from 'node:assert/strict'
import { createCipheriv } from 'node:crypto'
import { test } from 'node:test'
import { createRequire } from 'node:module'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox } = require('@e2b/desktop')
const WebSocket = require('ws')

const until = async (what, holds) => {
  for (const ends = Date.now() + 180_000; ; await new Promise((done) => setTimeout(done, 300))) {
    const seen = await holds()
    if (seen) return seen
    assert(Date.now() < ends, what)
  }
}

const ran = (desktop, script) => desktop.commands.run(script).catch(() => null)

const windowOf = (desktop, application, title) =>
  until(`${application} shows ${title}`, async () => {
    for (const one of await desktop.getApplicationWindows(application).catch(() => [])) {
      if ((await desktop.getWindowTitle(one)).includes(title)) return one
    }
  })

// What a VNC server sends, through Den by the sandbox's id.
const vnc = async (desktop, port) => {
  const headers = { 'E2b-Sandbox-Id': desktop.sandboxId, 'E2b-Sandbox-Port': String(port) }
  const socket = new WebSocket(process.env.E2B_SANDBOX_URL.replace('http', 'ws') + '/websockify', { headers })
  let come = Buffer.alloc(0)
  let wake = () => {}
  let broken = null
  socket.on('message', (bytes) => ((come = Buffer.concat([come, bytes])), wake()))
  socket.on('error', (error) => ((broken = error), wake()))
  socket.on('close', () => ((broken ??= new Error('it is closed')), wake()))
  const take = async (count) => {
    while (come.length < count) {
      if (broken) throw broken
      await new Promise((done) => (wake = done))
    }
    const taken = come.subarray(0, count)
    come = come.subarray(count)
    return taken
  }
  assert.equal((await take(12)).toString(), 'RFB 003.008\n')
  socket.send(Buffer.from('RFB 003.008\n'))
  const kinds = [...(await take((await take(1))[0]))]
  return { kinds, take, send: (bytes) => socket.send(Buffer.from(bytes)), close: () => socket.close() }
}

// RFC 6143 section 7.2.2: DES by the password, whose bits are the other way round. Three times the same key is DES.
const answer = (password, challenge) => {
  const turned = (byte) => [...Array(8).keys()].reduce((all, bit) => all | (((byte >> bit) & 1) << (7 - bit)), 0)
  const key = Buffer.alloc(8)
  Buffer.from(password).copy(key)
  const cipher = createCipheriv('des-ede3-ecb', Buffer.concat(Array(3).fill(key.map(turned))), null)
  return cipher.setAutoPadding(false).update(challenge)
}

test('a desktop is seen and used', async () => {
  const desktop = await Sandbox.create({ timeoutMs: 1_800_000, resolution: [800, 600] })
  await until('XFCE is there', () => ran(desktop, 'pgrep -x xfwm4 && pgrep -x xfdesktop && pgrep -x xfce4-panel'))
  assert.deepEqual(await desktop.getScreenSize(), { width: 800, height: 600 })
  const shot = Buffer.from(await desktop.screenshot())
  assert.equal(shot.subarray(1, 4).toString(), 'PNG')
  assert.deepEqual([shot.readUInt32BE(16), shot.readUInt32BE(20)], [800, 600])
  await desktop.moveMouse(300, 200)
  assert.deepEqual(await desktop.getCursorPosition(), { x: 300, y: 200 })
  await desktop.launch('xfce4-terminal')
  const terminal = await windowOf(desktop, 'xfce4-terminal', 'user@')
  await until('it has the keyboard', async () => {
    await desktop.leftClick(300, 300)
    return (await desktop.getCurrentWindowId()) === terminal
  })
  await desktop.write('echo "$((6 * 7)) of {JavaScript}" > ~/typed', { chunkSize: 20, delayInMs: 20 })
  await desktop.press('enter')
  await until('it is written', () => ran(desktop, 'grep -x "42 of {JavaScript}" ~/typed'))
  await desktop.drag([300, 300], [350, 320])
  await desktop.scroll('up')
  await desktop.doubleClick(300, 300)
  await desktop.press(['ctrl', 'shift', 't'])
  await until('a second tab has a shell', () => ran(desktop, '[ $(pgrep -x bash -t pts/0,pts/1 | wc -l) = 2 ]'))
  await desktop.files.write('/home/user/note.txt', 'a note')
  await desktop.open('/home/user/note.txt')
  await windowOf(desktop, 'mousepad', 'note.txt')

  await assert.rejects(async () => desktop.stream.getUrl(), /not running/)
  await desktop.stream.start()
  await assert.rejects(desktop.stream.start(), /already running/)
  const url = `https://6080-${desktop.sandboxId}.e2b.app/vnc.html?autoconnect=true&resize=scale`
  assert.equal(desktop.stream.getUrl(), url)
  const open = await vnc(desktop, 6080)
  assert.deepEqual(open.kinds, [1])
  open.close()
  await desktop.stream.stop()
  await until('it is over', async () => !(await ran(desktop, 'pgrep -x x11vnc')))

  await desktop.stream.start({ requireAuth: true })
  const password = desktop.stream.getAuthKey()
  for (const [given, taken] of [[password, 0], ['wrong', 1]]) {
    const shut = await vnc(desktop, 6080)
    assert.deepEqual(shut.kinds, [2])
    shut.send([2])
    shut.send(answer(given, await shut.take(16)))
    assert.equal((await shut.take(4)).readUInt32BE(), taken, `${given} is ${taken ? 'refused' : 'let in'}`)
    shut.close()
  }
  await desktop.stream.stop()
  await desktop.kill()
})
