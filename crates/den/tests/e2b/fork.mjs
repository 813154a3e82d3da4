// E2B's SDK for JavaScript against a house of Den that has CRIU: what runs goes on in forks.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createRequire } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox } = require('e2b')

const until = async (seen, seconds = 60) => {
  const end = Date.now() + seconds * 1000
  while (!(await seen())) {
    assert(Date.now() < end, 'it does not happen')
    await sleep(20)
  }
}

const whole = (text) => text.split('\n').slice(0, -1).map(Number)
const follows = (numbers) => numbers.every((number, at) => at === 0 || number === numbers[at - 1] + 1)

test('what runs goes on in forks, and in the sandbox', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  let said = ''
  const count = 'n=0; while true; do n=$((n+1)); echo $n; sleep 0.05; done'
  const options = { background: true, timeoutMs: 0, cwd: '/tmp', onStdout: (text) => (said += text) }
  const counter = await sandbox.commands.run(count, options)
  const events = []
  const watch = await sandbox.files.watchDir('/home/user', (event) => events.push(event.name))
  await until(() => whole(said).length > 5)
  const forks = await sandbox.fork({ count: 2, timeoutMs: 300_000 })
  assert.equal(forks.length, 2)
  const stood = whole(said).length
  await until(() => whole(said).length > stood + 10)
  assert(follows(whole(said)) && whole(said)[0] === 1)
  await sandbox.files.write('later', 'x')
  await until(() => events.includes('later'))
  for (const fork of forks) {
    const [listed, ...others] = await fork.commands.list()
    assert.deepEqual([listed.pid, listed.cwd, others], [counter.pid, '/tmp', []])
    let more = ''
    const again = await fork.commands.connect(counter.pid, { onStdout: (text) => (more += text) })
    await until(() => whole(more).length > 5)
    assert(follows(whole(more)) && whole(more)[0] > 1)
    assert.equal(await fork.commands.kill(counter.pid), true)
    await assert.rejects(again.wait())
    assert.equal(await fork.kill(), true)
  }
  await watch.stop()
  assert.equal(await sandbox.commands.kill(counter.pid), true)
  await assert.rejects(counter.wait())
  assert.equal(await sandbox.kill(), true)
})
