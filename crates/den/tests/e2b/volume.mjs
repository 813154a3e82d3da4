// Volumes, by the JavaScript SDK.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'

const at = (path) => pathToFileURL(`${process.env.DEN_E2B_SDK}/node_modules/${path}`)
const { Sandbox, Volume, VolumeError, VolumeNotFoundError, VolumePathNotFoundError, AuthenticationError } = await import(
  at('e2b/dist/index.mjs')
)

test('a volume is made, filled, read and destroyed', async () => {
  const volume = await Volume.create('of-js')
  assert(volume.volumeId && volume.token)
  assert.equal(volume.name, 'of-js')
  const info = await Volume.getInfo(volume.volumeId)
  assert.deepEqual([info.volumeId, info.name, info.token], [volume.volumeId, 'of-js', volume.token])
  assert((await Volume.list()).some((one) => one.volumeId === volume.volumeId && one.name === 'of-js'))

  const written = await volume.writeFile('/hello.txt', 'hello', { uid: 5, gid: 6, mode: 0o640 })
  assert.deepEqual([written.type, written.size, written.uid, written.gid, written.mode], ['file', 5, 5, 6, 0o640])
  assert(written.mtime instanceof Date && !Number.isNaN(written.mtime.getTime()))
  assert.equal(await volume.readFile('/hello.txt'), 'hello')
  assert.deepEqual([...(await volume.readFile('/hello.txt', { format: 'bytes' }))], [...Buffer.from('hello')])
  assert.equal(await (await volume.readFile('/hello.txt', { format: 'blob' })).text(), 'hello')
  const block = new Uint8Array(1 << 20).fill(7)
  let left = 8
  const stream = new ReadableStream({
    pull: (controller) => (left-- > 0 ? controller.enqueue(block) : controller.close()),
  })
  assert.equal((await volume.writeFile('/large', stream)).size, 8 << 20)
  let read = 0
  for await (const part of await volume.readFile('/large', { format: 'stream' })) read += part.length
  assert.equal(read, 8 << 20)
  await volume.writeFile('/blob', new Blob(['of a blob']))
  await volume.writeFile('/buffer', new TextEncoder().encode('of a buffer').buffer)
  assert.equal(await volume.readFile('/blob'), 'of a blob')
  assert.equal(await volume.readFile('/buffer'), 'of a buffer')
  await volume.writeFile('/empty', '')
  assert.equal(await volume.readFile('/empty'), '')

  await assert.rejects(volume.makeDir('/a/b'), VolumePathNotFoundError)
  assert.equal((await volume.makeDir('/a/b', { force: true })).type, 'directory')
  const names = (await volume.list('/', { depth: 2 })).map((entry) => entry.path)
  assert.deepEqual(names, ['/a', '/a/b', '/blob', '/buffer', '/empty', '/hello.txt', '/large'])
  assert.equal((await volume.updateMetadata('/a', { mode: 0o700 })).mode, 0o700)
  assert.equal((await volume.getInfo('/a')).mode, 0o700)
  assert(await volume.exists('/a'))
  await volume.remove('/a')
  assert(!(await volume.exists('/a')))

  const same = await Volume.connect(volume.volumeId)
  assert.equal(await same.readFile('/hello.txt'), 'hello')
  assert(await Volume.destroy(volume.volumeId))
  assert(!(await Volume.destroy(volume.volumeId)))
})

test('what is refused is the error that it is', async () => {
  const volume = await Volume.create('of-js-too')
  await assert.rejects(Volume.create('of-js-too'), VolumeError)
  await assert.rejects(Volume.create('a b'), VolumeError)
  await assert.rejects(Volume.connect('none'), VolumeNotFoundError)
  await assert.rejects(volume.readFile('/none'), VolumePathNotFoundError)
  await assert.rejects(volume.list('/none'), VolumePathNotFoundError)
  await assert.rejects(volume.remove('/none'), VolumePathNotFoundError)
  await assert.rejects(volume.readFile('/'), VolumeError)
  await assert.rejects(volume.readFile('/../x'), VolumeError)
  await assert.rejects(new Volume(volume.volumeId, volume.name, 'wrong').list('/'), AuthenticationError)
  await Volume.destroy(volume.volumeId)
})

test('sandboxes share a volume', async () => {
  const volume = await Volume.create('of-js-shared')
  const volumeMounts = { '/mnt/shared': volume }
  const [first, second] = await Promise.all([1, 2].map(() => Sandbox.create('base', { volumeMounts })))
  try {
    await first.files.write('/mnt/shared/a', 'of the first')
    assert.equal(await second.files.read('/mnt/shared/a'), 'of the first')
    assert.equal(await volume.readFile('/a'), 'of the first')
    await volume.writeFile('/b', 'of the API')
    assert.equal((await second.commands.run('cat /mnt/shared/b')).stdout, 'of the API')
    await assert.rejects(Volume.destroy(volume.volumeId), VolumeError)
  } finally {
    await Promise.all([first.kill(), second.kill()])
  }
  assert(await Volume.destroy(volume.volumeId))
})
