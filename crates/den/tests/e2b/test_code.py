"""E2B's code interpreter SDK for Python against a house of Den. Runs with versions from 2.9.2 on, and
by names with 2.4.1."""

import asyncio
import base64
import re
import threading
import time

import pytest
from e2b_code_interpreter import AsyncSandbox, NotFoundException, Sandbox, SandboxException, TimeoutException


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox.create(timeout=600, envs={"OF_SANDBOX": "there"})
    yield made
    made.kill()


def until(what, holds, seconds=60):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, what
        time.sleep(0.2)


def test_the_first_code_is_run_at_once():
    made = Sandbox.create(timeout=120)
    assert made.run_code("1 + 1").text == "2"
    assert made.kill()


def test_state_is_kept_between_calls(sandbox):
    assert sandbox.run_code("x = 41").results == []
    done = sandbox.run_code("print('said')\nx += 1\nx")
    assert done.text == "42" and done.logs.stdout == ["said\n"] and done.error is None
    assert done.execution_count > 1
    assert sandbox.run_code("'a text'").text == "a text"
    assert sandbox.run_code("import os; os.getcwd()").text == "/home/user"


def test_output_comes_while_the_code_runs(sandbox):
    came, began = [], time.monotonic()
    heard = lambda name: lambda message: came.append((name, getattr(message, "line", message), time.monotonic() - began))
    done = sandbox.run_code(
        "import sys, time\nprint('first', flush=True)\ntime.sleep(2)\nprint('oops', file=sys.stderr)\n3",
        on_stdout=heard("out"),
        on_stderr=heard("err"),
        on_result=heard("result"),
    )
    assert [name for name, _, _ in came] == ["out", "err", "result"]
    assert came[1][2] - came[0][2] > 1, "the first line did not wait for the end"
    assert done.logs.stderr == ["oops\n"]
    text = "ä€😀" * 50_000
    done = sandbox.run_code("print('ä€😀' * 50_000)")
    assert "".join(done.logs.stdout) == text + "\n"


def test_errors_are_told(sandbox):
    told = []
    done = sandbox.run_code("def f():\n    return 1 / 0\nf()", on_error=told.append)
    assert (done.error.name, done.error.value) == ("ZeroDivisionError", "division by zero")
    assert "return 1 / 0" in re.sub(r"\x1b\[[0-9;]*m", "", done.error.traceback) and len(told) == 1
    assert sandbox.run_code("def f(:").error.name == "SyntaxError"
    assert sandbox.run_code("input()").error is not None
    assert sandbox.run_code("1").text == "1"


def chart(sandbox, code):
    done = sandbox.run_code("import matplotlib.pyplot as plt\n" + code + "\nplt.show()")
    assert done.error is None, done.error
    (one,) = [result for result in done.results if result.chart]
    assert base64.b64decode(one.png).startswith(b"\x89PNG")
    return one.chart


def test_charts(sandbox):
    line = chart(sandbox, "plt.plot([1, 2, 3], [1, 4, 9], label='squares'); plt.title('T'); plt.xlabel('X (m)')")
    assert (line.type.value, line.title, line.x_label, line.x_unit) == ("line", "T", "X (m)", "m")
    assert line.elements[0].label == "squares" and line.elements[0].points == [(1, 1), (2, 4), (3, 9)]
    scatter = chart(sandbox, "plt.scatter([1, 2], [3, 4])")
    assert scatter.type.value == "scatter" and scatter.elements[0].points == [(1, 3), (2, 4)]
    bar = chart(sandbox, "plt.bar(['a', 'b'], [1, 2])")
    assert bar.type.value == "bar" and [one.label for one in bar.elements] == ["a", "b"]
    pie = chart(sandbox, "plt.pie([1, 3], labels=['x', 'y'])")
    assert pie.type.value == "pie" and [one.label for one in pie.elements] == ["x", "y"]
    box = chart(sandbox, "plt.boxplot([[1, 2, 3, 4, 5, 6, 7, 30], [1, 5, 6, 9, 12]], patch_artist=True)")
    assert box.type.value == "box_and_whisker" and [one.median for one in box.elements] == [4.5, 6]
    assert box.elements[0].outliers == [30]
    one_box = chart(sandbox, "plt.boxplot([1, 2, 3, 4, 100], patch_artist=True)")
    assert one_box.type.value == "unknown"
    both = chart(sandbox, "_, (a, b) = plt.subplots(1, 2); a.plot([1]); b.bar(['q'], [1])")
    assert both.type.value == "superchart" and len(both.elements) == 2
    other = chart(sandbox, "plt.imshow([[1, 2], [3, 4]])")
    assert other.type.value == "unknown"


def test_rich_results(sandbox):
    (frame,) = sandbox.run_code(
        "import pandas as pd\npd.DataFrame({'n': [1, 2], 'f': [0.5, float('nan')], 't': pd.to_datetime(['2026-01-01', '2026-01-02'])})"
    ).results
    assert frame.is_main_result and "<table" in frame.html and "2026-01-01" in frame.text
    assert frame.data["n"] == [1, 2] and frame.data["f"] == [0.5, None] and frame.data["t"][0].startswith("2026-01-01")
    (picture,) = sandbox.run_code("from PIL import Image\nImage.new('RGB', (2, 2), 'red')").results
    assert base64.b64decode(picture.png).startswith(b"\x89PNG")
    shown = sandbox.run_code(
        "from IPython.display import display, HTML, Markdown, SVG, JSON, Latex, Javascript\n"
        "display(HTML('<b>h</b>'), Markdown('*m*'), SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'), JSON({'a': [1]}), Latex('$x$'), Javascript('1'))\n"
        "display({'text/plain': 'p', 'application/x-own': 'o'}, raw=True)"
    ).results
    html, markdown, svg, json, latex, javascript, own = shown
    assert (html.html, markdown.markdown, latex.latex, javascript.javascript) == ("<b>h</b>", "*m*", "$x$", "1")
    assert svg.svg.startswith("<svg") and json.json == {"a": [1]} and own.extra == {"application/x-own": "o"}
    assert not any(result.is_main_result for result in shown)


def test_environment(sandbox):
    read = "import os; (os.environ.get('OF_SANDBOX'), os.environ.get('OF_CALL'), os.environ.get('E2B_SANDBOX'))"
    assert sandbox.run_code(read).text == "('there', None, 'true')"
    given = {"OF_CALL": "it's", "OF_SANDBOX": "mine"}
    assert sandbox.run_code(read, envs=given).text == "('mine', \"it's\", 'true')"
    assert sandbox.run_code(read).text == "('there', None, 'true')"
    shell = "echo $OF_SANDBOX-$OF_CALL"
    assert sandbox.run_code(shell, language="bash", envs=given).logs.stdout == ["mine-it's\n"]
    assert sandbox.run_code(shell, language="bash").logs.stdout == ["there-\n"]
    script = "console.log(process.env.OF_SANDBOX, process.env.OF_CALL)"
    assert sandbox.run_code(script, language="js", envs=given).logs.stdout == ["mine it's\n"]
    assert sandbox.run_code(script, language="js").logs.stdout == ["there undefined\n"]


def test_contexts(sandbox):
    sandbox.commands.run("mkdir -p /tmp/elsewhere")
    one = sandbox.create_code_context(cwd="/tmp/elsewhere")
    other = sandbox.create_code_context()
    assert (one.language, one.cwd, other.cwd) == ("python", "/tmp/elsewhere", "/home/user")
    sandbox.run_code("y = 'one'", context=one)
    sandbox.run_code("y = 'other'", context=other)
    assert sandbox.run_code("import os; y + os.getcwd()", context=one).text == "one/tmp/elsewhere"
    assert sandbox.run_code("y", context=other).text == "other"
    assert sandbox.run_code("y").error.name == "NameError"
    listed = {context.id: context for context in sandbox.list_code_contexts()}
    assert one.id in listed and listed[one.id].cwd == "/tmp/elsewhere" and len(listed) >= 4
    sandbox.restart_code_context(one)
    assert sandbox.run_code("y", context=one).error.name == "NameError"
    for context in (one, other):
        sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=one)
    with pytest.raises(NotFoundException):
        sandbox.remove_code_context(other.id)
    with pytest.raises(SandboxException):
        sandbox.create_code_context(cwd="/no/such/place")
    with pytest.raises(SandboxException):
        sandbox.create_code_context(language="cobol")
    with pytest.raises(SandboxException, match="--with java"):
        sandbox.run_code("1", language="java")


def test_one_at_a_time_and_contexts_side_by_side(sandbox):
    contexts = [sandbox.create_code_context() for _ in range(2)]
    done = []

    def run(context, code):
        done.append(sandbox.run_code(code, context=context).text)

    first = threading.Thread(target=run, args=(contexts[0], "import time; time.sleep(3); z = 1; 'slow'"))
    second = threading.Thread(target=run, args=(contexts[0], "'after ' + str(z)"))
    first.start()
    time.sleep(1)
    second.start()
    assert sandbox.run_code("'beside'", context=contexts[1]).text == "beside"
    assert done == []
    first.join()
    second.join()
    # That the second knows z says that it ran after the first; whose answer is read first is the threads' affair.
    assert sorted(done) == ["after 1", "slow"]
    for context in contexts:
        sandbox.remove_code_context(context)


def test_what_takes_too_long_is_interrupted(sandbox):
    for language, code, after in [
        ("python", "import time\nq = 'kept'\ntime.sleep(600)", "q"),
        ("javascript", "q = 'kept'; while (true) {}", "q"),
        ("javascript", "q = 'kept'; await new Promise(() => {})", "q"),
    ]:
        with pytest.raises(TimeoutException):
            sandbox.run_code(code, language=language, timeout=2)
        began = time.monotonic()
        assert sandbox.run_code(after, language=language).text == "kept", language
        assert time.monotonic() - began < 9, "it was interrupted, not ended"


def test_what_ends_comes_back(sandbox):
    context = sandbox.create_code_context()
    sandbox.run_code("w = 1", context=context)
    died = sandbox.run_code("import os; os._exit(3)", context=context)
    assert died.error.name == "KernelDied"
    assert sandbox.run_code("'w' in globals()", context=context).text == "False"
    assert sandbox.run_code("process.exit(3)", language="js").error.name == "KernelDied"
    assert sandbox.run_code("1 + 1", language="js").text == "2"
    # And the server itself.
    sandbox.commands.run("pkill -9 -f code-interpreter/den/server.py", user="root")
    until("a server runs again", lambda: answers(sandbox))
    assert sandbox.run_code("1 + 1").text == "2"
    assert context.id not in [each.id for each in sandbox.list_code_contexts()]


def answers(sandbox):
    try:
        return sandbox.run_code("1").text == "1"
    except Exception:
        return False


def test_javascript_and_typescript(sandbox):
    run = lambda code, language="javascript": sandbox.run_code(code, language=language)
    done = run("const a = await Promise.resolve(20)\nconsole.log('said'); console.error('oops')\na + 1")
    assert (done.text, done.logs.stdout, done.logs.stderr, done.error) == ("21", ["said\n"], ["oops\n"], None)
    assert run("const a = 2; function twice(x) { return 2 * x }\ntwice(a)").text == "4"
    assert run("import { join } from 'node:path'\nimport fs from 'fs'\njoin('/', 'x')").text == "/x"
    assert run("class P { constructor(x) { this.x = x } }\nlet { x, ...rest } = { x: 1, y: 2 }; [x, rest, new P(3).x]").results[0].json == [1, {"y": 2}, 3]
    assert run("fs.existsSync('/etc/passwd') && require('os').platform()").text == "linux"
    failed = run("const ok = 1\n\nthrow new TypeError('no')").error
    assert (failed.name, failed.value) == ("TypeError", "no") and ":3:" in failed.traceback
    assert run("const = 1").error.name == "SyntaxError"
    typed = run("interface P { x: number }\nenum E { A = 3 }\nconst p: P = { x: E.A }\np.x as number", "typescript")
    assert typed.text == "3", typed
    assert run("p.x + twice(1)", "ts").text == "5"
    context = sandbox.create_code_context(language="typescript", cwd="/tmp")
    assert sandbox.run_code("const d: string = process.cwd(); d", context=context).text == "/tmp"
    sandbox.remove_code_context(context)


def test_bash(sandbox):
    run = lambda code: sandbox.run_code(code, language="bash")
    assert run("cd /tmp; A=1; f() { echo in $PWD; }").error is None
    assert run("f; echo $A; whoami").logs.stdout == ["in /tmp\n", "1\n", "root\n"]
    assert run("ls /no/such").error is not None
    assert run("echo on").logs.stdout == ["on\n"]


def test_r(sandbox):
    run = lambda code, **more: sandbox.run_code(code, language="r", **more)
    done = run('x <- 41\nprint("ü€"); message("oops")\nx + 1')
    assert (done.text, done.logs.stdout, done.logs.stderr[0].strip(), done.error) == ("[1] 42", ['[1] "ü€"\n'], "oops", None)
    assert run("x").text == "[1] 41" and run("getwd()").text == '[1] "/home/user"'
    (table,) = run('data.frame(a = 1:2, b = c("x", "ü"))').results
    assert table.is_main_result and "<table" in table.html and "2 ü" in table.text and table.latex and table.markdown
    picture, value = run("plot(1:3); 5").results
    assert base64.b64decode(picture.png).startswith(b"\x89PNG") and not picture.is_main_result
    assert value.is_main_result and value.text == "[1] 5"
    (picture,) = run("plot(1:3)").results
    assert picture.png and picture.is_main_result
    failed = run('f <- function() stop("boom")\nf()').error
    assert failed.name == "ERROR" and "boom" in failed.value and "1. f()" in failed.traceback
    assert "unexpected" in run("1 +* 2").error.value and "nobody" in run('readline("?")').error.value
    read = 'cat(Sys.getenv("OF_CALL"), Sys.getenv("OF_SANDBOX"), Sys.getenv("E2B_SANDBOX"), sep = ";")'
    assert run(read, envs={"OF_CALL": "it's \"ü\"\n", "OF_SANDBOX": "mine"}).logs.stdout == ["it's \"ü\"\n;mine;true"]
    assert run(read).logs.stdout == [";there;true"]
    with pytest.raises(TimeoutException):
        run('q <- "kept"; while (TRUE) {}', timeout=2)
    assert run("q").text == '[1] "kept"'
    context = sandbox.create_code_context(language="r", cwd="/tmp")
    assert sandbox.run_code('c(getwd(), exists("x"))', context=context).text == '[1] "/tmp"  "FALSE"'
    sandbox.remove_code_context(context)


def test_packages_are_found_by_code_and_commands(sandbox):
    sandbox.commands.run("pip install --quiet six", timeout=120)
    assert sandbox.run_code("import six; six.PY3").text == "True"
    assert sandbox.commands.run("python -c 'import pandas, six; print(pandas.__name__)'").stdout == "pandas\n"
    sandbox.files.write("data.csv", "a,b\n1,2\n")
    assert sandbox.run_code("import pandas as pd; int(pd.read_csv('data.csv').b[0])").text == "2"


def test_async():
    async def all_of_it():
        sandbox = await AsyncSandbox.create(timeout=120)
        lines = []

        async def heard(message):
            lines.append(message.line)

        done = await sandbox.run_code("print('a'); 5", on_stdout=heard)
        assert (done.text, lines) == ("5", ["a\n"])
        context = await sandbox.create_code_context(language="js")
        assert (await sandbox.run_code("1 + 1", context=context)).text == "2"
        await sandbox.kill()

    asyncio.run(all_of_it())


def test_what_was_run_goes_on_after_a_pause():
    sandbox = Sandbox.create(timeout=120)
    sandbox.run_code("v = 7")
    sandbox.beta_pause() if not hasattr(sandbox, "pause") else sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.run_code("v").text == "7"
    assert again.kill()
    with pytest.raises((TimeoutException, SandboxException)):
        again.run_code("v")


def test_what_was_run_goes_on_in_a_fork():
    sandbox = Sandbox.create(timeout=600)
    assert sandbox.run_code("x = 41; x").text == "41"
    [fork] = sandbox.fork(timeout=600)
    assert sandbox.run_code("x += 1; x").text == "42"
    assert fork.run_code("x += 100; x").text == "141"
    assert sandbox.kill() and fork.kill()
