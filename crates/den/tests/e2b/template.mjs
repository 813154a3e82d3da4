// Templates that are built, with E2B's SDK for JavaScript. Runs with any version from 2.45 on.
import assert from 'node:assert/strict'
import { mkdtempSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { createRequire } from 'node:module'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox, Template, BuildError, waitForFile } = require('e2b')

test('a template is built, cached, tagged and used', async () => {
  const root = mkdtempSync(join(tmpdir(), 'den-e2b-'))
  try {
    mkdirSync(join(root, 'src'))
    writeFileSync(join(root, 'src', 'a.txt'), 'copied\n')
    const template = () =>
      Template({ fileContextPath: root })
        .fromImage('base')
        .setEnvs({ A: 'one' })
        .setWorkdir('/srv/js')
        .copy('src', '.')
        .runCmd('echo $A said by a step | tee told')
        .setStartCmd('touch /tmp/started; sleep infinity', waitForFile('/tmp/started'))
    const said = []
    const onBuildLogs = (entry) => said.push(entry.message)
    const built = await Template.build(template(), 'js-mine:v1', { cpuCount: 1, memoryMB: 512, onBuildLogs })
    assert(said.some((line) => line.includes('one said by a step')), said.join('\n'))
    assert.equal(await Template.exists('js-mine'), true)
    assert.equal(await Template.exists('js-none'), false)
    const sandbox = await Sandbox.create('js-mine:v1', { timeoutMs: 120_000 })
    assert.equal((await sandbox.commands.run('pwd; cat told a.txt; echo $A')).stdout, '/srv/js\none said by a step\ncopied\none\n')
    await sandbox.kill()
    said.length = 0
    const again = await Template.build(template(), 'js-mine:v2', { cpuCount: 1, memoryMB: 512, onBuildLogs })
    assert.notEqual(again.buildId, built.buildId)
    assert(said.some((line) => line.includes('CACHED')) && !said.some((line) => line.includes('said by a step')), said.join('\n'))
    const tagged = await Template.assignTags('js-mine:v1', ['stable'])
    assert.equal(tagged.buildId, built.buildId)
    assert.deepEqual((await Template.getTags('js-mine')).map((one) => one.tag).sort(), ['stable', 'v1', 'v2'])
    await Template.removeTags('js-mine', ['v1', 'v2'])
    const stable = await Sandbox.create('js-mine:stable', { timeoutMs: 60_000 })
    assert.equal(await stable.files.read('a.txt'), 'copied\n')
    await stable.kill()
  } finally {
    rmSync(root, { recursive: true })
  }
})

test('a step that fails is an error of its build', async () => {
  const failing = Template().fromImage('base').runCmd('exit 3')
  await assert.rejects(Template.build(failing, 'js-failing'), (error) => {
    assert(error instanceof BuildError, `${error}`)
    assert.match(error.message, /failed to run command 'exit 3': exit status 3/)
    return true
  })
  assert.equal(await Template.exists('js-failing'), false)
})
