"""Java, of a code interpreter that was built with it."""

import pytest
from e2b_code_interpreter import Sandbox, TimeoutException


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox.create(timeout=600, envs={"OF_SANDBOX": "there"})
    yield made
    made.kill()


def test_java(sandbox):
    run = lambda code, **more: sandbox.run_code(code, language="java", **more)
    done = run('int x = 41;\nSystem.out.println("ü€"); System.err.println("oops");\nx + 1')
    assert (done.text, done.logs.stdout, done.logs.stderr, done.error) == ("42", ["ü€\n"], ["oops\n"], None)
    assert run("import java.util.stream.*;\nrecord P(int a) {}\nnew P(IntStream.range(0, x).sum())").text == "P[a=820]"
    failed = run('throw new IllegalStateException("boom");').error
    assert "IllegalStateException" in failed.value and "boom" in failed.traceback
    assert run("int y = ;").error.name == "CompilationException"
    # Variables of one execution are properties: a process of Java's cannot change its environment.
    read = 'System.getProperty("OF_CALL") + System.getProperty("user.home") + System.getenv("OF_SANDBOX")'
    assert run(read, envs={"OF_CALL": "it's \"ü\"", "user.home": "/x"}).text == 'it\'s "ü"/xthere'
    assert run(read).text == "null/rootthere"
    with pytest.raises(TimeoutException):
        run('var q = "kept"; while (true) {}', timeout=10)
    assert run("q").text == "kept"
    assert run("System.exit(3)").error.name == "KernelDied"
    assert run("1 + 1").text == "2"


def test_a_context_of_java(sandbox):
    context = sandbox.create_code_context(language="java", cwd="/tmp")
    assert sandbox.run_code('new java.io.File(".").getCanonicalPath()', context=context).text == "/tmp"
    sandbox.remove_code_context(context)
