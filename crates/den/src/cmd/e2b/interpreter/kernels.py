"""Kernels: programs that keep state between executions.

Each has `ready`, `execute`, `interrupt` and `stop`. One that is stopped, or has ended, is started by the next `ready`
or `execute`.
"""

import asyncio
import codecs
import json
import os
import queue
import signal
import socket
import sys
import time

import zmq
import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager

START_S = 60.0
LOOK_S = 1.0
OUT_BYTES = 64 << 10
EVENT_BYTES_MAX = 256 << 20
STOP_S = 3.0

HERE = os.path.dirname(os.path.abspath(__file__))

# What results are called on the wire.
NAMES = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}


class KernelDied(Exception):
    """The kernel is no more; whether somebody asked for that."""

    def __init__(self, why, asked=False):
        super().__init__(why)
        self.asked = asked


def output(name, text):
    return {"type": name, "text": text, "timestamp": time.time_ns()}


def result(bundle, is_main):
    """A bundle of MIME types as the SDKs read it."""
    event = {"type": "result", "is_main_result": is_main}
    extra = {}
    for kind, value in bundle.items():
        name = NAMES.get(kind)
        if name is None:
            extra[kind] = value
        else:
            event[name] = value.strip() if name in ("png", "jpeg", "pdf") and isinstance(value, str) else value
    text = event.get("text")
    # A text that is a result comes as its representation.
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        event["text"] = text[1:-1]
    if extra:
        event["extra"] = extra
    return event


async def with_main(events):
    """Marks the last value among results that are all shown alike; pictures come after it and are none, unless there
    is nothing else."""
    value, picture = None, None
    async for event in events:
        if event["type"] != "result":
            yield event
        elif "png" in event:
            if picture:
                yield picture
            picture = event
        else:
            if value:
                yield value
            value = event
    if value and picture:
        yield picture
        picture = None
    if value or picture:
        yield {**(value or picture), "is_main_result": True}


def exports(env):
    """Lines of bash that set variables, and lines that have them be what they were."""
    before, after = [], []
    for at, (name, value) in enumerate(env.items()):
        if not name.isidentifier() or not name.isascii():
            continue
        quoted = "'" + value.replace("'", "'\\''") + "'"
        before.append(f'if [ "${{{name}+x}}" ]; then __den_{at}="${name}"; fi; export {name}={quoted}')
        after.append(
            f'if [ "${{__den_{at}+x}}" ]; then export {name}="$__den_{at}"; else unset {name}; fi; unset __den_{at}'
        )
    return "\n".join(before), "\n".join(after)


def of_python(env):
    """The same of Python."""
    words = json.dumps(json.dumps(env))
    return f"__import__('den_display').enter({words})", "__import__('den_display').leave()"


def of_r(env):
    """The same of R, whose texts are written as JSON's."""
    texts = {name: [json.dumps(each, ensure_ascii=False) for each in (name, value)] for name, value in env.items()}
    names = ", ".join(name for name, _ in texts.values())
    pairs = ", ".join(f"{name} = {value}" for name, value in texts.values())
    before = f"options(den.kept = Sys.getenv(c({names}), NA, names = TRUE)); do.call(Sys.setenv, list({pairs}))"
    after = """local({
        kept <- getOption("den.kept")
        Sys.unsetenv(names(kept))
        there <- as.list(kept[!is.na(kept)])
        if (length(there)) do.call(Sys.setenv, there)
        options(den.kept = NULL)
    })"""
    return before, after


def of_java(env):
    """The same of Java, where a process cannot change its variables: they are properties."""
    names = ", ".join(map(json.dumps, env))
    values = ", ".join(map(json.dumps, env.values()))
    before = f"""{{
        String[] names = {{{names}}}, values = {{{values}}};
        for (int at = 0; at < names.length; at++) {{
            String kept = System.setProperty(names[at], values[at]);
            if (kept != null) System.setProperty("den.kept." + names[at], kept);
        }}
    }}"""
    after = f"""for (String name : new String[] {{{names}}}) {{
        String kept = (String) System.getProperties().remove("den.kept." + name);
        if (kept == null) System.clearProperty(name); else System.setProperty(name, kept);
    }}"""
    return before, after


# How the variables of one execution are set, and set back, by kernel.
VARIABLES = {"python3": of_python, "bash": exports, "ir": of_r, "java": of_java}


# What is executed in a new kernel. R's would wait for a line that nobody is asked for.
BEGINNING = {
    "python3": "__import__('den_display').load()",
    "ir": """attach(list(readline = function(prompt = "") stop("nobody can be asked here")), name = "den", warn.conflicts = FALSE)""",
}


class Life:
    """From a start of a kernel to its end, and why somebody ended it."""

    def __init__(self):
        self.why = None

    def died(self, why):
        if self.why:
            return KernelDied(self.why, asked=True)
        return KernelDied(f"{why}; the next execution begins with a new one")


class Kernel:
    """What all kernels have in common: one start at a time, and why the last one ended."""

    def __init__(self, cwd):
        self.cwd = cwd
        self.starting = asyncio.Lock()
        self.life = Life()

    async def ready(self):
        """Starts it unless it runs."""
        async with self.starting:
            if not await self.runs():
                await self.clear()
                self.life = Life()
                await self.start()

    async def stop(self, why="The context was deleted"):
        """Ends it; who waits for it is told why."""
        self.life.why = why
        async with self.starting:
            await self.clear()


class JupyterKernel(Kernel):
    """One that speaks Jupyter's protocol."""

    def __init__(self, name, cwd):
        super().__init__(cwd)
        self.name, self.manager, self.client = name, None, None

    async def runs(self):
        return self.manager is not None and await self.manager.is_alive()

    async def start(self):
        context = zmq.asyncio.Context()
        # Without a limit here: what is not taken in time would be lost. The limit is on what clients leave unread.
        context.setsockopt(zmq.RCVHWM, 0)
        manager = AsyncKernelManager(kernel_name=self.name, context=context)
        manager.shutdown_wait_time = STOP_S
        try:
            await manager.start_kernel(cwd=self.cwd)
            client = manager.client()
            client.start_channels()
            self.manager, self.client = manager, client
            await client.wait_for_ready(timeout=START_S)
            if self.name in BEGINNING:
                await self.silently(BEGINNING[self.name])
        except Exception as error:
            await self.clear()
            raise self.life.died(f"it did not start: {error}") from None

    async def clear(self):
        manager, client, self.manager, self.client = self.manager, self.client, None, None
        if client is not None:
            client.stop_channels()
        if manager is not None:
            try:
                await asyncio.wait_for(manager.shutdown_kernel(now=True), STOP_S)
            except Exception as error:
                print(f"a kernel was not ended cleanly: {error!r}", file=sys.stderr, flush=True)
            manager.context.destroy(linger=0)

    async def interrupt(self):
        if self.manager is not None:
            try:
                await self.manager.interrupt_kernel()
            except Exception as error:
                print(f"a kernel was not interrupted: {error!r}", file=sys.stderr, flush=True)

    async def silently(self, code):
        """Executes what nobody is to see."""
        async for _ in self.events(code, silent=True):
            pass

    async def execute(self, code, language, env):
        await self.ready()
        before, after = VARIABLES[self.name](env) if env else ("", "")
        if before:
            await self.silently(before)
        try:
            events = self.events(code)
            async for event in with_main(events) if self.name == "ir" else events:
                yield event
        finally:
            if after and await self.runs():
                await self.silently(after)

    async def events(self, code, silent=False):
        client, life = self.client, self.life
        if client is None:
            raise life.died("The kernel has ended")
        asked = client.execute(code, silent=silent, store_history=not silent, allow_stdin=False)
        while True:
            try:
                message = await client.get_iopub_msg(timeout=LOOK_S)
            except queue.Empty:
                if client is not self.client or not await self.runs():
                    raise life.died("The kernel has ended") from None
                continue
            except asyncio.CancelledError:
                # Its socket was closed.
                if client is self.client:
                    raise
                raise life.died("The kernel has ended") from None
            except Exception:
                raise life.died("The kernel cannot be reached") from None
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            if kind == "stream":
                yield output(content["name"], content["text"])
            elif kind == "execute_input":
                yield {"type": "number_of_executions", "execution_count": content["execution_count"]}
            elif kind in ("display_data", "execute_result"):
                yield result(content["data"], kind == "execute_result")
            elif kind == "error":
                trace = "\n".join(content["traceback"])
                yield {"type": "error", "name": content["ename"], "value": content["evalue"], "traceback": trace}


class NodeKernel(Kernel):
    """JavaScript and TypeScript: `kernel.mjs` in Node.js, over a socket; what is printed comes by pipes."""

    def __init__(self, cwd):
        super().__init__(cwd)
        self.process = self.reader = self.writer = None
        self.pipes = {}
        self.printed = []

    async def runs(self):
        return self.process is not None and self.process.returncode is None

    async def start(self):
        ours, theirs = socket.socketpair()
        words = ["node", os.path.join(HERE, "kernel.mjs"), str(theirs.fileno())]
        reads, writes = zip(*(os.pipe() for _ in range(2)))
        try:
            self.process = await asyncio.create_subprocess_exec(
                *words,
                cwd=self.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writes[0],
                stderr=writes[1],
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            for each in reads:
                os.close(each)
            ours.close()
            raise self.life.died(f"it did not start: {error}") from None
        finally:
            theirs.close()
            for each in writes:
                os.close(each)
        self.pipes = {}
        for name, each in zip(("stdout", "stderr"), reads):
            os.set_blocking(each, False)
            self.pipes[each] = (name, codecs.getincrementaldecoder("utf-8")("replace"))
            asyncio.get_running_loop().add_reader(each, self.read, each)
        self.reader, self.writer = await asyncio.open_connection(sock=ours, limit=EVENT_BYTES_MAX)
        self.printed.clear()
        self.news = asyncio.Event()

    def read(self, pipe):
        """Takes what a pipe has."""
        while pipe in self.pipes:
            try:
                data = os.read(pipe, OUT_BYTES)
            except BlockingIOError:
                return
            name, decoder = self.pipes[pipe]
            text = decoder.decode(data, final=not data)
            if text:
                self.printed.append(output(name, text))
                self.news.set()
            if not data:
                self.close(pipe)
            if len(self.printed) > 256:
                # The rest is read once these are told.
                asyncio.get_running_loop().remove_reader(pipe)
                return

    def close(self, pipe):
        asyncio.get_running_loop().remove_reader(pipe)
        del self.pipes[pipe]
        os.close(pipe)

    async def clear(self):
        process, self.process = self.process, None
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()
            self.writer.close()
        for pipe in list(self.pipes):
            self.close(pipe)

    async def interrupt(self):
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)

    def told(self):
        """What was printed and not told."""
        printed, self.printed = self.printed, []
        for pipe in self.pipes:
            asyncio.get_running_loop().add_reader(pipe, self.read, pipe)
        return printed

    def drained(self):
        """The same, with all that is in the pipes."""
        while True:
            for pipe in list(self.pipes):
                self.read(pipe)
            if not self.printed:
                return
            yield from self.told()

    async def execute(self, code, language, env):
        await self.ready()
        life = self.life
        asked = {"code": code, "typescript": language == "typescript", "env": env}
        try:
            self.writer.write(json.dumps(asked).encode() + b"\n")
            await self.writer.drain()
        except OSError:
            raise life.died("The kernel has ended") from None
        reader, line, news = self.reader, None, None
        try:
            while True:
                line = line or asyncio.ensure_future(reader.readline())
                news = news or asyncio.ensure_future(self.news.wait())
                await asyncio.wait([line, news], return_when=asyncio.FIRST_COMPLETED)
                if news.done():
                    self.news.clear()
                    news = None
                    for event in self.told():
                        yield event
                if not line.done():
                    continue
                data, line = line.result(), None
                # What was printed before an event comes before it.
                for event in self.drained():
                    yield event
                if not data.endswith(b"\n"):
                    raise life.died("The kernel has ended")
                event = json.loads(data)
                if event["type"] == "end":
                    return
                if event["type"] == "result":
                    event = result(event["data"], event["main"])
                yield event
        except (OSError, ValueError):
            raise life.died("The kernel cannot be reached") from None
        finally:
            for task in (line, news):
                if task is not None:
                    task.cancel()
