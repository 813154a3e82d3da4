// E2B's code interpreter SDK for JavaScript against a house of Den. Runs with versions from 2.7 on.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createRequire } from 'node:module'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox, NotFoundError, TimeoutError } = require('@e2b/code-interpreter')

test('code is run, state kept, and what it says streamed', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, envs: { OF_SANDBOX: 'there' } })
  assert.equal((await sandbox.runCode('x = 41')).results.length, 0)
  const said = []
  const hear = (name) => (one) => said.push([name, one.line ?? one.text])
  const done = await sandbox.runCode('import sys\nprint("ä€😀")\nprint("oops", file=sys.stderr)\nx + 1', {
    onStdout: hear('out'),
    onStderr: hear('err'),
    onResult: hear('result'),
  })
  assert.equal(done.text, '42')
  assert.deepEqual(said, [['out', 'ä€😀\n'], ['err', 'oops\n'], ['result', '42']])
  const failed = await sandbox.runCode('1 / 0')
  assert.equal(failed.error.name, 'ZeroDivisionError')
  const long = await sandbox.runCode('print("ä€😀" * 50000)')
  assert.equal(long.logs.stdout.join(''), 'ä€😀'.repeat(50000) + '\n')
  const envs = await sandbox.runCode('import os; os.environ["A"] + os.environ["OF_SANDBOX"]', { envs: { A: 'b-' } })
  assert.equal(envs.text, 'b-there')
  await sandbox.kill()
})

test('charts, tables, contexts and languages', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  const plot = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.bar(["a", "b"], [1, 2])\nplt.show()')
  const { chart, png } = plot.results.at(-1)
  assert.equal(chart.type, 'bar')
  assert.deepEqual(chart.elements.map((one) => [one.label, one.value]), [['a', 1], ['b', 2]])
  assert.equal(Buffer.from(png, 'base64').subarray(1, 4).toString(), 'PNG')
  const table = await sandbox.runCode('import pandas as pd; pd.DataFrame({"n": [1, None]})')
  assert.deepEqual(table.results[0].data, { n: [1, null] })
  assert.equal((await sandbox.runCode('const a: number = await Promise.resolve(1); a', { language: 'ts' })).text, '1')
  assert.deepEqual((await sandbox.runCode('echo $((6 * 7))', { language: 'bash' })).logs.stdout, ['42\n'])
  const context = await sandbox.createCodeContext({ cwd: '/tmp', language: 'javascript' })
  assert.equal((await sandbox.runCode('process.cwd()', { context })).text, '/tmp')
  assert((await sandbox.listCodeContexts()).some((one) => one.id === context.id))
  await sandbox.restartCodeContext(context)
  await sandbox.removeCodeContext(context)
  await assert.rejects(sandbox.runCode('1', { context }), NotFoundError)
  await sandbox.kill()
})

test('what takes too long is interrupted', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  await sandbox.runCode('kept = 7')
  await assert.rejects(sandbox.runCode('while True: pass', { timeoutMs: 2000 }), TimeoutError)
  assert.equal((await sandbox.runCode('kept')).text, '7')
  await sandbox.kill()
})
