"""Runs code for E2B's code interpreter SDKs: the server of the template `code-interpreter-v1`.

    POST /execute ─► context ─► its turn ─► kernel ─► events, a line of JSON each
    /contexts      create, list, restart, delete

A context is a kernel of its own. It is started when it is first wanted, but for Python's default one, which is started
at once; a request is accepted before that and waits. A kernel that has ended is started anew for the next execution.

Limits: contexts, executions that wait for a context's turn, bytes that a slow client has not read yet, and the time
that interrupted code has to end before its kernel is.
"""

import socket

PORT = 49999

# Before all else is read, which takes a while: clients that come meanwhile wait.
LISTENER = socket.create_server(("0.0.0.0", PORT), backlog=128, reuse_port=False)

import asyncio
import collections
import json
import math
import os
import signal
import sys
import time
import uuid

import tornado.httpserver
import tornado.iostream
import tornado.web

from kernels import JupyterKernel, KernelDied, NodeKernel

HOME = "/home/user"

CONTEXTS_MAX = 64
WAITING_MAX = 64
BODY_BYTES_MAX = 64 << 20
UNREAD_BYTES_MAX = 64 << 20
KEEPALIVE_S = 5.0
INTERRUPT_S = 10.0

# What each language is called, and what else it is called.
LANGUAGES = {
    "python": "python",
    "python3": "python",
    "javascript": "javascript",
    "js": "javascript",
    "typescript": "typescript",
    "ts": "typescript",
    "bash": "bash",
    "r": "r",
    "java": "java",
}

# Kernels of Jupyter's, by language; those of R and Java are there if the template was built with them.
KERNELS = {"python": "python3", "bash": "bash", "r": "ir", "java": "java"}


class Refused(Exception):
    """A request that is answered by a status and a text."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.text = status, text


def is_there(language):
    kernel = KERNELS.get(language)
    return kernel is None or os.path.isdir(os.path.join(sys.prefix, "share/jupyter/kernels", kernel))


def language_of(text):
    found = LANGUAGES.get(text.strip().lower())
    if found is None or not is_there(found):
        known = ", ".join(sorted(filter(is_there, set(LANGUAGES.values()))))
        further = "; `den e2b template code-interpreter --with java` adds it" if found == "java" else ""
        raise Refused(400, f"Language {text[:64]} is not in this template; there are {known}{further}")
    return found


def kernel_of(language, cwd):
    kernel = KERNELS.get(language)
    return NodeKernel(cwd) if kernel is None else JupyterKernel(kernel, cwd)


class Context:
    """A kernel, and whose turn it is."""

    def __init__(self, language, cwd):
        self.id = str(uuid.uuid4())
        self.language, self.cwd = language, cwd
        self.kernel = kernel_of(language, cwd)
        self.turn = asyncio.Lock()
        self.waiting = 0
        self.gone = False

    def view(self):
        return {"id": self.id, "language": self.language, "cwd": self.cwd}


class Contexts:
    """All contexts there are."""

    def __init__(self):
        self.all = {}
        python = self.add("python", HOME)
        javascript = self.add("javascript", HOME)
        # JavaScript and TypeScript have one kernel, and what one defines the other sees.
        self.default = {"python": python, "javascript": javascript, "typescript": javascript}

    def add(self, language, cwd):
        if len(self.all) >= CONTEXTS_MAX:
            raise Refused(429, f"There are {CONTEXTS_MAX} contexts; delete one")
        context = Context(language, cwd)
        self.all[context.id] = context
        return context

    def find(self, context_id):
        found = self.all.get(context_id)
        if found is None:
            raise Refused(404, f"Context {str(context_id)[:64]} not found")
        return found

    def of_language(self, language):
        found = self.default.get(language)
        if found is None or found.gone:
            found = self.default[language] = self.add(language, HOME)
        return found

    async def remove(self, context):
        context.gone = True
        self.all.pop(context.id, None)
        await context.kernel.stop()


def strict(value):
    """What JSON has no words for is null: the SDKs' parsers take no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): strict(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(each) for each in value]
    return value


def line_of(event):
    try:
        text = json.dumps(event, allow_nan=False)
    except ValueError:
        text = json.dumps(strict(event), allow_nan=False, default=str)
    return text + "\n"


class Handler(tornado.web.RequestHandler):
    """What all routes have in common."""

    def initialize(self, contexts):
        self.contexts = contexts

    def body(self):
        try:
            found = json.loads(self.request.body or b"{}")
        except ValueError:
            raise Refused(400, "The body is not JSON") from None
        if not isinstance(found, dict):
            raise Refused(400, "The body is not an object")
        return found

    def text_of(self, body, name):
        found = body.get(name)
        if found is not None and not isinstance(found, str):
            raise Refused(400, f"{name} is not a text")
        return found or None

    def write_error(self, status_code, exc_info=None, **_):
        error = exc_info[1] if exc_info else None
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        if isinstance(error, Refused):
            self.set_status(error.status)
            self.finish(error.text)
        else:
            self.finish(self._reason)

    def log_exception(self, kind, value, trace):
        if not isinstance(value, Refused):
            super().log_exception(kind, value, trace)


class Health(Handler):
    def get(self):
        self.write('"OK"')


class All(Handler):
    def get(self):
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps([context.view() for context in self.contexts.all.values()]))

    async def post(self):
        body = self.body()
        language = language_of(self.text_of(body, "language") or "python")
        cwd = os.path.join(HOME, self.text_of(body, "cwd") or HOME)
        if "\0" in cwd or not os.path.isdir(cwd):
            raise Refused(400, f"There is no directory {cwd[:1024]!r}")
        context = self.contexts.add(language, cwd)
        try:
            await context.kernel.ready()
        except KernelDied as died:
            await self.contexts.remove(context)
            raise Refused(500, f"The context's kernel did not start: {died}") from None
        self.write(context.view())


class One(Handler):
    async def delete(self, context_id):
        await self.contexts.remove(self.contexts.find(context_id))
        self.set_status(204)


class Restart(Handler):
    async def post(self, context_id):
        context = self.contexts.find(context_id)
        await context.kernel.stop("The context was restarted")
        await context.kernel.ready()
        self.set_status(204)


class Execute(Handler):
    """One execution: its events, as they come."""

    def prepare(self):
        self.left = asyncio.Event()
        self.lines = collections.deque()
        self.unread = 0
        self.news = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    def on_connection_close(self):
        self.left.set()
        self.room.set()
        self.news.set()

    async def put(self, event):
        """Has an event sent; waits while the client has much to read."""
        if self.left.is_set():
            return
        line = line_of(event)
        self.lines.append(line)
        self.unread += len(line)
        self.news.set()
        if self.unread > UNREAD_BYTES_MAX:
            self.room.clear()
            await self.room.wait()

    async def send(self):
        """Sends what is put, and now and then that nothing was, until the end."""
        ended = False
        while not ended and not self.left.is_set():
            if not self.lines:
                self.news.clear()
                try:
                    await asyncio.wait_for(self.news.wait(), KEEPALIVE_S)
                except asyncio.TimeoutError:
                    self.write(line_of({"type": "keepalive"}))
            while self.lines:
                line = self.lines.popleft()
                if line is None:
                    ended = True
                    break
                self.unread -= len(line)
                self.write(line)
            try:
                await self.flush()
            except tornado.iostream.StreamClosedError:
                self.left.set()
            if self.unread <= UNREAD_BYTES_MAX:
                self.room.set()

    def context(self, body):
        context_id, language = self.text_of(body, "context_id"), self.text_of(body, "language")
        if context_id and language:
            raise Refused(400, "Only one of context_id or language can be provided")
        if context_id:
            found = self.contexts.find(context_id)
            return found, found.language
        language = language_of(language or "python")
        return self.contexts.of_language(language), language

    async def post(self):
        body = self.body()
        code = body.get("code")
        if not isinstance(code, str):
            raise Refused(400, "code is not a text")
        env = body.get("env_vars") or {}
        fits = isinstance(env, dict) and all(
            isinstance(value, str) and "\0" not in key + value and key and "=" not in key for key, value in env.items()
        )
        if not fits:
            raise Refused(400, "env_vars are not texts by names")
        context, language = self.context(body)
        if context.waiting >= WAITING_MAX:
            raise Refused(429, f"{WAITING_MAX} executions wait for this context")
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("X-Accel-Buffering", "no")
        await self.flush()
        sender = asyncio.ensure_future(self.send())
        context.waiting += 1
        try:
            await self.in_turn(context, code, language, env)
        finally:
            context.waiting -= 1
            self.lines.append(None)
            self.news.set()
            await sender

    async def in_turn(self, context, code, language, env):
        turn = asyncio.ensure_future(context.turn.acquire())
        left = asyncio.ensure_future(self.left.wait())
        try:
            await asyncio.wait([turn, left], return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                return
            if not self.left.is_set():
                await self.run(context, code, language, env, left)
        finally:
            left.cancel()
            if turn.done() or not turn.cancel():
                context.turn.release()

    async def run(self, context, code, language, env, left):
        kernel = context.kernel
        work = asyncio.ensure_future(self.pump(context, code, language, env))
        await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            # Nobody waits for it any more.
            await kernel.interrupt()
            await asyncio.wait([work], timeout=INTERRUPT_S)
            if not work.done():
                await kernel.stop("The execution did not end when it was interrupted")
        await work

    async def pump(self, context, code, language, env):
        try:
            if context.gone:
                raise KernelDied("The context was deleted")
            async for event in context.kernel.execute(code, language, env):
                await self.put(event)
        except KernelDied as died:
            name = "ContextRestarted" if died.asked else "KernelDied"
            await self.put({"type": "error", "name": name, "value": str(died), "traceback": f"{name}: {died}"})
        await self.put({"type": "end_of_execution"})


async def main():
    contexts = Contexts()
    given = {"contexts": contexts}
    application = tornado.web.Application(
        [
            ("/health", Health, given),
            ("/execute", Execute, given),
            ("/contexts", All, given),
            (r"/contexts/([^/]+)/restart", Restart, given),
            (r"/contexts/([^/]+)", One, given),
        ],
        log_function=lambda _: None,
    )
    server = tornado.httpserver.HTTPServer(application, max_body_size=BODY_BYTES_MAX, max_buffer_size=2 * BODY_BYTES_MAX)
    LISTENER.setblocking(False)
    server.add_socket(LISTENER)
    print(f"listening on {PORT}", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    started = time.monotonic()
    try:
        await contexts.of_language("python").kernel.ready()
        print(f"Python is ready after {time.monotonic() - started:.2f} s", flush=True)
    except KernelDied as died:
        print(f"Python did not start: {died}", file=sys.stderr, flush=True)
    await ended.wait()
    await asyncio.gather(*(context.kernel.stop() for context in contexts.all.values()))


if __name__ == "__main__":
    asyncio.run(main())
