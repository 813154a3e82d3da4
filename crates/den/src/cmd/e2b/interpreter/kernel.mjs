// Runs JavaScript and TypeScript, a line of JSON a request, on the socket whose number is given.
//
//     code ─► types taken away ─► imports and declarations of the top made global ─► an async function ─► run
//
// What is declared at the top stays for later executions and may be declared again; `await` and `import` work there.
// The value of the last expression is the result; a promise is waited for.

import { createRequire } from 'node:module'
import { Socket } from 'node:net'
import { pathToFileURL } from 'node:url'
import { inspect } from 'node:util'
import vm from 'node:vm'
import { parse } from 'acorn'
import { transform } from 'sucrase'

const LINE_CHARS_MAX = 256 << 20
const DISPLAY = Symbol.for('Jupyter.display')

const socket = new Socket({ fd: Number(process.argv[2]), readable: true, writable: true })
const here = pathToFileURL(`${process.cwd()}/.cell.mjs`).href

const send = (event) => socket.write(`${JSON.stringify(event)}\n`)

const shown = (value) => inspect(value, { depth: 4, maxArrayLength: 1000, maxStringLength: 1 << 20 })

// A value as a bundle of MIME types.
const bundle = async (value) => {
  const own = value?.[DISPLAY]
  if (typeof own === 'function') return await own.call(value)
  const plain = { 'text/plain': shown(value) }
  const isData = Array.isArray(value) || (value && Object.getPrototypeOf(value) === Object.prototype)
  if (!isData) return plain
  try {
    return { ...plain, 'application/json': JSON.parse(JSON.stringify(value)) }
  } catch {
    return plain
  }
}

const names = (pattern) => {
  switch (pattern?.type) {
    case 'Identifier':
      return [pattern.name]
    case 'ObjectPattern':
      return pattern.properties.flatMap((one) => names(one.type === 'RestElement' ? one.argument : one.value))
    case 'ArrayPattern':
      return pattern.elements.flatMap(names)
    case 'AssignmentPattern':
      return names(pattern.left)
    case 'RestElement':
      return names(pattern.argument)
    default:
      return []
  }
}

// `import` as an assignment to globals.
const imported = (node) => {
  const module = `await __import(${JSON.stringify(node.source.value)})`
  const all = node.specifiers.find((one) => one.type === 'ImportNamespaceSpecifier')
  const some = node.specifiers.filter((one) => one !== all)
  const key = (one) => (one.type === 'ImportDefaultSpecifier' ? 'default' : (one.imported.name ?? one.imported.value))
  const pairs = some.map((one) => `${JSON.stringify(key(one))}: ${one.local.name}`)
  const lines = []
  if (all) lines.push(`${all.local.name} = ${module};`)
  if (some.length > 0) lines.push(`({ ${pairs.join(', ')} } = ${module});`)
  if (lines.length === 0) lines.push(`${module};`)
  return { text: lines.join(' '), names: node.specifiers.map((one) => one.local.name) }
}

// The body of an async function that does what the code says, and the globals that it declares.
const rewrite = (code) => {
  const options = { ecmaVersion: 'latest', sourceType: 'module', allowAwaitOutsideFunction: true, allowHashBang: true }
  let tree
  try {
    tree = parse(code, options)
  } catch (error) {
    // Modules are strict; what is not may still be a script.
    try {
      tree = parse(code, { ...options, sourceType: 'script' })
    } catch {
      throw error
    }
  }
  const globals = []
  let hoisted = ''
  const of = (node) => code.slice(node.start, node.end)
  const declared = (node, isLast) => {
    switch (node.type) {
      case 'ImportDeclaration': {
        const found = imported(node)
        globals.push(...found.names)
        return found.text
      }
      case 'ExportNamedDeclaration':
        return node.declaration ? declared(node.declaration, isLast) : ''
      case 'ExportDefaultDeclaration': {
        const inner = node.declaration
        return inner.id ? declared(inner, isLast) : `(${of(inner)});`
      }
      case 'FunctionDeclaration':
        globals.push(node.id.name)
        // It is one of the wrapper's from its beginning, and global from then on.
        hoisted += `globalThis.${node.id.name} = ${node.id.name};`
        return of(node)
      case 'ClassDeclaration':
        globals.push(node.id.name)
        return `${node.id.name} = ${of(node)};`
      case 'VariableDeclaration':
        return node.declarations
          .map((one) => {
            globals.push(...names(one.id))
            if (one.init) return `(${of(one.id)} = ${of(one.init)});`
            return node.kind === 'var' ? '' : `${of(one.id)} = undefined;`
          })
          .join(' ')
      case 'ExpressionStatement':
        return isLast ? `return { value: (${of(node.expression)}) };` : `;${of(node)};`
      default:
        return of(node)
    }
  }
  // Lines stay where they are, so that traces tell the right ones.
  let out = ''
  let at = 0
  const last = tree.body.filter((node) => node.type !== 'EmptyStatement').at(-1)
  for (const node of tree.body) {
    out += code.slice(at, node.start).replace(/[^\s]/g, '')
    const text = declared(node, node === last)
    const lines = (one) => one.split('\n').length - 1
    out += text + '\n'.repeat(Math.max(0, lines(of(node)) - lines(text)))
    at = node.end
  }
  return { body: hoisted + out, globals }
}

let interrupted = () => {}
process.on('SIGINT', () => interrupted())
process.on('uncaughtException', (error) => process.stderr.write(`Uncaught ${shown(error)}\n`))
process.on('unhandledRejection', (error) => process.stderr.write(`Uncaught (in promise) ${shown(error)}\n`))

const require = createRequire(here)
Object.assign(globalThis, {
  require,
  __import: async (name) => {
    const isPath = name.startsWith('./') || name.startsWith('../') || name.startsWith('/')
    if (isPath) return await import(new URL(name, here).href)
    try {
      return await import(name.startsWith('node:') ? name : pathToFileURL(require.resolve(name)).href)
    } catch (error) {
      if (require('node:module').builtinModules.includes(name)) return await import(name)
      throw error
    }
  },
  display: async (value) => send({ type: 'result', main: false, data: await bundle(value) }),
})

const failed = (error) => {
  const isError = error instanceof Error || typeof error?.stack === 'string'
  // What comes after the code's own lines is this program's.
  const stack = isError ? String(error.stack).split(/\n\s+at (?:.*kernel\.mjs|.*node:(?:vm|internal))/)[0] : shown(error)
  send({
    type: 'error',
    name: isError ? String(error.name) : typeof error,
    value: isError ? String(error.message) : shown(error),
    traceback: stack,
  })
}

const execute = async (code, count) => {
  const { body, globals } = rewrite(code)
  const fresh = globals.filter((name) => !(name in globalThis))
  if (fresh.length > 0) vm.runInThisContext(`var ${[...new Set(fresh)].join(', ')}`)
  const options = {
    filename: `cell-${count}`,
    columnOffset: -'(async () => {'.length,
    breakOnSigint: true,
    importModuleDynamically: (name) => globalThis.__import(name),
  }
  return await vm.runInThisContext(`(async () => {${body}\n})()`, options)
}

let count = 0
const one = async ({ code, typescript, env }) => {
  count += 1
  send({ type: 'number_of_executions', execution_count: count })
  const before = Object.keys(env).map((name) => [name, process.env[name]])
  Object.assign(process.env, env)
  const interruption = new Promise((_, reject) => {
    interrupted = () => {
      const error = new Error('The execution was interrupted')
      error.name = 'KeyboardInterrupt'
      error.stack = `${error.name}: ${error.message}`
      reject(error)
    }
  })
  interruption.catch(() => {})
  try {
    const plain = typescript
      ? transform(code, { transforms: ['typescript'], keepUnusedImports: true, disableESTransforms: true }).code
      : code
    const done = await Promise.race([execute(plain, count), interruption])
    const value = await Promise.race([done?.value, interruption])
    if (value !== undefined) send({ type: 'result', main: true, data: await bundle(value) })
  } catch (error) {
    failed(error)
  } finally {
    interrupted = () => {}
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
  send({ type: 'end' })
}

let text = ''
let queue = Promise.resolve()
socket.setEncoding('utf8')
socket.on('data', (data) => {
  text += data
  if (text.length > LINE_CHARS_MAX) process.exit(1)
  for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
    const request = JSON.parse(text.slice(0, end))
    text = text.slice(end + 1)
    queue = queue.then(() => one(request))
  }
})
// Whoever asked is gone.
socket.on('close', () => process.exit(0))
socket.on('error', () => process.exit(0))
