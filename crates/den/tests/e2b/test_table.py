"""docs/E2B.md against the SDKs that are installed: its table has every public method, and tests that there are."""

import inspect
import os
import pathlib
import re

import e2b
import e2b_desktop
from e2b.sandbox_sync.commands.command import Commands
from e2b.sandbox_sync.commands.pty import Pty
from e2b.sandbox_sync.filesystem.filesystem import Filesystem
from e2b.template.main import TemplateBuilder
from e2b_desktop.main import _VNCServer

HERE = pathlib.Path(__file__).parent
TABLE = (HERE / "../../../../docs/E2B.md").read_text().split("## Every method", 1)[1].split("\n## ", 1)[0]

# What a name of the table is in Python, and in JavaScript's declarations: of `e2b`, and of `e2b-desktop`.
CLASSES = {
    "Sandbox": ([e2b.Sandbox, e2b.AsyncSandbox], ["SandboxApi", "Sandbox"]),
    "commands": ([Commands], ["Commands"]),
    "pty": ([Pty], ["Pty"]),
    "files": ([Filesystem], ["Filesystem"]),
    "git": ([e2b.Git], ["Git"]),
    "CommandHandle": ([e2b.CommandHandle, e2b.AsyncCommandHandle], ["CommandHandle"]),
    "WatchHandle": ([e2b.WatchHandle, e2b.AsyncWatchHandle], ["WatchHandle"]),
    "Template": ([e2b.Template, e2b.AsyncTemplate, TemplateBuilder], ["TemplateFromImage", "TemplateBuilder", "TemplateBase"]),
    "Volume": ([e2b.Volume, e2b.AsyncVolume], ["Volume"]),
    "Secret": ([e2b.Secret, e2b.AsyncSecret], ["Secret"]),
}
OF_DESKTOP = {
    "desktop": ([e2b_desktop.Sandbox], ["Sandbox"]),
    "stream": ([_VNCServer], ["VNCServer"]),
}


def rows():
    for line in TABLE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].strip("`") in CLASSES | OF_DESKTOP:
            yield cells[0].strip("`"), re.findall(r"`(\w+)`", cells[1]), cells[2], re.findall(r"`(\w+)`", cells[3])


def snake(name):
    """`fromAWSRegistry` is `from_aws_registry`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def of_python(one):
    # The desktop's has all of the sandbox's, which has rows of its own.
    for name in vars(one) if one is e2b_desktop.Sandbox else dir(one):
        static = inspect.getattr_static(one, name)
        if not name.startswith("_") and not inspect.isclass(static) and (callable(getattr(one, name)) or isinstance(static, property)):
            yield name


def of_javascript(declarations, one):
    body = re.search(rf"^(?:declare )?(?:abstract )?(?:class|interface) {one}\b.*?^}}", declarations, re.M | re.S).group(0)
    indent = re.search(r"^ +", body, re.M).group(0)
    for line in body.splitlines():
        found = re.match(indent + r"(?:static )?(?:async )?(?:get )?(\w+)(?:<.*?>)?\(", line)
        if found and found.group(1) != "constructor":
            yield snake(found.group(1))


def test_every_public_method_is_in_the_table():
    known = {}
    for name, methods, state, _ in rows():
        assert state.split(":")[0] in {"yes", "differs", "not yet", "no"}, state
        known.setdefault(name, set()).update(methods)
    declared = [pathlib.Path(os.environ[name]).read_text() for name in ("DEN_E2B_DECLARATIONS", "DEN_E2B_DESKTOP")]
    missing = []
    classes = [(name, *both, text) for text, of in zip(declared, (CLASSES, OF_DESKTOP)) for name, both in of.items()]
    for name, python, javascript, declarations in classes:
        there = {method for one in python for method in of_python(one)}
        assert there, name
        declared_there = [set(of_javascript(declarations, one)) for one in javascript]
        assert all(declared_there), f"{name}: {javascript}"
        of_both = there.union(*declared_there)
        missing += [f"{name}.{method}" for method in sorted(of_both - known[name])]
        gone = known[name] - of_both
        assert not gone, f"{name} has no {gone}"
    assert not missing, f"docs/E2B.md says nothing of {missing}"


def test_every_test_of_the_table_is_there():
    tests = {name for file in HERE.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    for name, methods, state, named in rows():
        assert named and set(named) <= tests, f"{name} {methods}: {set(named) - tests or 'no test'}"
