// The protocol below the SDKs with the binary codec: Connect's own client, by the descriptors of E2B's SDK.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { after, before, test } from 'node:test'

const require = createRequire(process.env.DEN_E2B_SDK + '/')
const { Sandbox } = require('e2b')
const { createFileRegistry, fromBinary } = require('@bufbuild/protobuf')
const { FileDescriptorProtoSchema, FileDescriptorSetSchema, file_google_protobuf_timestamp: timestamp } = require('@bufbuild/protobuf/wkt')
const { Code, ConnectError, createClient } = require('@connectrpc/connect')
const { createConnectTransport } = require('@connectrpc/connect-node')

const FILE = 1
const DIRECTORY = 2
const SIGTERM = 15
const [CREATE, WRITE] = [1, 2]

const bytes = (text) => new TextEncoder().encode(text)
const text = (bytes) => new TextDecoder().decode(bytes)

// What the SDK is built of has its descriptors as text.
const services = () => {
  const built = readFileSync(require.resolve('e2b'), 'utf8')
  const found = [...built.matchAll(/fileDesc\w*\)?\(\s*"([^"]+)"/g)]
  const file = found.map(([, coded]) => fromBinary(FileDescriptorProtoSchema, Buffer.from(coded, 'base64')))
  return createFileRegistry({ $typeName: FileDescriptorSetSchema.typeName, file: [timestamp.proto, ...file] })
}

const asked = new Set()
let sandbox
let processes
let files
let client

before(async () => {
  sandbox = await Sandbox.create({ timeoutMs: 300_000 })
  const registry = services()
  client = (service, options = {}) => {
    const headers = {
      'e2b-sandbox-id': sandbox.sandboxId,
      'e2b-sandbox-port': '49983',
      'x-access-token': sandbox.envdAccessToken,
      'keepalive-ping-interval': '1',
    }
    const interceptor = (next) => (request) => {
      asked.add(`${request.service.typeName}/${request.method.name}`)
      for (const [name, value] of Object.entries(headers)) request.header.set(name, value)
      return next(request)
    }
    const transport = createConnectTransport({
      baseUrl: process.env.E2B_SANDBOX_URL,
      httpVersion: '1.1',
      useBinaryFormat: true,
      interceptors: [interceptor],
      ...options,
    })
    return createClient(registry.getService(service), transport)
  }
  processes = client('process.Process')
  files = client('filesystem.Filesystem')
})

after(() => sandbox?.kill())

const shell = (script, more = {}) => ({
  process: { cmd: '/bin/sh', args: ['-c', script], envs: { GREETING: 'grüezi' }, cwd: '/tmp' },
  stdin: false,
  ...more,
})

// The number of a process that was begun, and the rest of its stream.
const begun = async (stream) => {
  const events = stream[Symbol.asyncIterator]()
  const { value } = await events.next()
  assert.equal(value.event.event.case, 'start')
  return [value.event.event.value.pid, { [Symbol.asyncIterator]: () => events }]
}

const rest = async (stream) => {
  const said = { stdout: '', stderr: '', pty: '', keepalives: 0, end: null }
  for await (const { event: { event } } of stream) {
    if (event.case === 'data') said[event.value.output.case] += text(event.value.output.value)
    else if (event.case === 'keepalive') said.keepalives += 1
    else if (event.case === 'end') said.end = event.value
  }
  return said
}

const refused = (promise, code, words) =>
  assert.rejects(promise, (error) => {
    assert(error instanceof ConnectError, String(error))
    assert.equal(Code[error.code], Code[code])
    assert.match(error.rawMessage, words)
    return true
  })

test('a command runs, and its end is told', async () => {
  const [pid, stream] = await begun(processes.start(shell('echo $GREETING; pwd; printf "\\000\\377"; echo err >&2; exit 3')))
  assert(pid > 1)
  const said = await rest(stream)
  assert.equal(said.stdout, 'grüezi\n/tmp\n\0\ufffd')
  assert.equal(said.stderr, 'err\n')
  assert.deepEqual([said.end.exitCode, said.end.exited, said.end.error], [3, true, 'exit status 3'])
})

test('much output comes whole', async () => {
  let length = 0
  for await (const { event: { event } } of processes.start(shell('head -c 20000000 /dev/zero'))) {
    if (event.case === 'data') length += event.value.output.value.length
  }
  assert.equal(length, 20_000_000)
})

test('a process is listed, connected to, written to and ended', async () => {
  const [pid, first] = await begun(processes.start(shell('cat; echo over', { stdin: true, tag: 'cat' })))
  const { processes: listed } = await processes.list({})
  const one = listed.find((one) => one.pid === pid)
  assert.deepEqual([one.tag, one.config.cmd, one.config.envs.GREETING, one.config.cwd], ['cat', '/bin/sh', 'grüezi', '/tmp'])
  const process = { selector: { case: 'tag', value: 'cat' } }
  const [same, second] = await begun(processes.connect({ process }))
  assert.equal(same, pid)
  await processes.sendInput({ process, input: { input: { case: 'stdin', value: bytes('one ') } } })
  await processes.streamInput(
    (async function* () {
      yield { event: { case: 'start', value: { process } } }
      yield { event: { case: 'keepalive', value: {} } }
      for (const word of ['two ', 'three\n']) {
        yield { event: { case: 'data', value: { input: { input: { case: 'stdin', value: bytes(word) } } } } }
      }
    })(),
  )
  await processes.closeStdin({ process })
  for (const stream of [first, second]) {
    const said = await rest(stream)
    assert.equal(said.stdout, 'one two three\nover\n')
    assert.deepEqual([said.end.exitCode, said.end.status], [0, 'exit status 0'])
  }
})

test('a silent stream says that it is there, and a signal ends it', async () => {
  const [pid, stream] = await begun(processes.start(shell('exec sleep 1000')))
  const process = { selector: { case: 'pid', value: pid } }
  const iterator = stream[Symbol.asyncIterator]()
  assert.equal((await iterator.next()).value.event.event.case, 'keepalive')
  await processes.sendSignal({ process, signal: SIGTERM })
  const said = await rest({ [Symbol.asyncIterator]: () => iterator })
  assert.deepEqual([said.end.exitCode, said.end.exited, said.end.status], [-1, false, 'signal: terminated'])
})

test('a terminal is resized', async () => {
  const pty = (cols, rows) => ({ size: { cols, rows } })
  const [pid, stream] = await begun(processes.start({ process: { cmd: '/bin/sh' }, pty: pty(80, 24) }))
  const process = { selector: { case: 'pid', value: pid } }
  await processes.update({ process, pty: pty(101, 31) })
  await processes.sendInput({ process, input: { input: { case: 'pty', value: bytes('stty size; exit\n') } } })
  const said = await rest(stream)
  assert.match(said.pty, /31 101/)
  assert.equal(said.end.exitCode, 0)
})

test('a deadline ends a command', async () => {
  await refused(
    rest(processes.start(shell('exec sleep 1000', { tag: 'late' }), { timeoutMs: 3000 })),
    Code.DeadlineExceeded,
    /./,
  )
  // The client sees its own deadline; the command is ended by the daemon.
  for (;;) {
    const { processes: listed } = await processes.list({})
    if (!listed.some((one) => one.tag === 'late')) break
  }
})

test('refusals have their code in single calls and in streams', async () => {
  const nobody = { process: { selector: { case: 'pid', value: 999_999 } } }
  await refused(processes.sendSignal({ ...nobody, signal: SIGTERM }), Code.NotFound, /999999/)
  await refused(rest(processes.connect(nobody)), Code.NotFound, /999999/)
  await refused(rest(processes.start({ process: { cmd: '/bin/sh', cwd: '/none' } })), Code.InvalidArgument, /\/none/)
  const streamed = processes.streamInput((async function* () {
    yield { event: { case: 'start', value: nobody } }
  })())
  await refused(streamed, Code.NotFound, /999999/)
  await refused(files.stat({ path: '/none' }), Code.NotFound, /\/none/)
  await refused(files.listDir({ path: '/etc/passwd' }), Code.InvalidArgument, /passwd/)
  await refused(files.removeWatcher({ watcherId: 'none' }), Code.NotFound, /none/)
})

test('files are made, listed, moved and removed', async () => {
  const { entry } = await files.makeDir({ path: 'tree/b' })
  assert.deepEqual([entry.name, entry.type, entry.path, entry.owner], ['b', DIRECTORY, '/home/user/tree/b', 'user'])
  await refused(files.makeDir({ path: 'tree/b' }), Code.AlreadyExists, /tree/)
  await sandbox.files.write('tree/a', 'four', { metadata: { kind: 'text' } })
  await sandbox.commands.run('ln -s a tree/c; touch -d @1700000000.5 tree/a; touch -d @900000000000 tree/b')
  const { entries } = await files.listDir({ path: 'tree', depth: 2 })
  assert.deepEqual(entries.map((one) => one.name), ['a', 'b', 'c'])
  const [a, b, c] = entries
  assert.deepEqual([a.type, a.size, a.mode, a.permissions, a.metadata.kind], [FILE, 4n, 0o644, '-rw-r--r--', 'text'])
  assert.deepEqual([a.modifiedTime.seconds, a.modifiedTime.nanos], [1_700_000_000n, 500_000_000])
  assert(b.modifiedTime.seconds > 200_000_000_000n, 'a year that has no name is the last that has')
  assert.equal(c.symlinkTarget, '/home/user/tree/a')
  assert.equal((await files.move({ source: 'tree/a', destination: 'tree/d' })).entry.name, 'd')
  assert.equal((await files.stat({ path: 'tree/d' })).entry.size, 4n)
  await files.remove({ path: 'tree' })
  await refused(files.stat({ path: 'tree' }), Code.NotFound, /tree/)
})

test('a watch tells what happens, asked for and streamed', async () => {
  await files.makeDir({ path: 'watched' })
  const { watcherId } = await files.createWatcher({ path: 'watched', recursive: true })
  const watching = new AbortController()
  const asks = { path: 'watched', includeEntry: true }
  const stream = files.watchDir(asks, { signal: watching.signal })[Symbol.asyncIterator]()
  assert.equal((await stream.next()).value.event.case, 'start')
  assert.equal((await stream.next()).value.event.case, 'keepalive')
  await sandbox.files.write('watched/new', 'x')
  let seen = []
  while (!seen.some((event) => event.type === WRITE)) {
    const { event } = (await stream.next()).value
    if (event.case === 'filesystem') seen.push(event.value)
  }
  assert.deepEqual([seen[0].name, seen[0].type, seen[0].entry.path], ['new', CREATE, '/home/user/watched/new'])
  watching.abort()
  seen = []
  while (!seen.some((event) => event.type === WRITE)) {
    seen.push(...(await files.getWatcherEvents({ watcherId })).events)
  }
  assert.deepEqual([seen[0].name, seen[0].type], ['new', CREATE])
  await files.removeWatcher({ watcherId })
})

test('every method was asked by the binary codec', () => {
  const all = [processes, files].flatMap((client) => Object.keys(client))
  assert.equal(asked.size, all.length, [...asked].join())
})

test('bytes that are no message, and what is not taken', async () => {
  const post = (path, kind, body, more = {}) =>
    fetch(`${process.env.E2B_SANDBOX_URL}/${path}`, {
      method: 'POST',
      body,
      headers: {
        'content-type': kind,
        'e2b-sandbox-id': sandbox.sandboxId,
        'e2b-sandbox-port': '49983',
        'x-access-token': sandbox.envdAccessToken,
        ...more,
      },
    })
  const bad = await post('filesystem.Filesystem/Stat', 'application/proto', bytes('{"path":"/"}'))
  assert.equal(bad.status, 400)
  assert.equal((await bad.json()).code, 'invalid_argument')
  const streamed = await post('process.Process/Start', 'application/connect+proto', new Uint8Array([0, 0, 0, 0, 1, 0xff]))
  assert.equal(streamed.status, 200)
  assert.equal(streamed.headers.get('content-type'), 'application/connect+proto')
  const frame = new Uint8Array(await streamed.arrayBuffer())
  assert.equal(frame[0], 2)
  assert.equal(JSON.parse(text(frame.slice(5))).error.code, 'invalid_argument')
  const huge = await post('process.Process/Start', 'application/connect+proto', new Uint8Array([0, 255, 255, 255, 255]))
  assert.equal(JSON.parse(text(new Uint8Array(await huge.arrayBuffer()).slice(5))).error.code, 'resource_exhausted')
  const coded = await post('process.Process/List', 'application/proto', '', { 'content-encoding': 'br' })
  assert.deepEqual([coded.status, (await coded.json()).code], [501, 'unimplemented'])
  for (const kind of ['application/grpc', 'application/grpc+proto', 'application/grpc-web+proto']) {
    assert.equal((await post('process.Process/List', kind, '')).status, 415)
  }
})

test('a stream breaks off with its sandbox', async () => {
  const [, stream] = await begun(processes.start(shell('exec sleep 1000')))
  const ends = assert.rejects(rest(stream), ConnectError)
  assert(await sandbox.kill())
  await ends
})
