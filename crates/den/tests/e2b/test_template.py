"""E2B's SDK for Python against a house of Den: templates that are built."""

import json
import os
import subprocess
import urllib.error
import urllib.request

import pytest
from e2b import NotFoundException, Sandbox, SandboxException, Template, wait_for_port

try:
    from e2b.exceptions import BuildException
except ImportError:
    from e2b import BuildException

from test_sandbox import URL, proxied, until


def context(path):
    (path / "app").mkdir()
    (path / "app" / "index.html").write_text("hello from a template\n")
    (path / "app" / "deep").mkdir()
    (path / "app" / "deep" / "one.txt").write_text("1")
    (path / "a.conf").write_text("a")
    (path / "b.conf").write_text("b")
    (path / "run.sh").write_text("#!/bin/sh\necho ran as $(whoami)\n")
    return path


def made(path):
    return (
        Template(file_context_path=str(path))
        .from_image("base")
        .run_cmd("echo first > /tmp/first; date +%s%N > $HOME/when")
        .set_envs({"GREETING": "hi", "WHO": "template"})
        .set_envs({"BOTH": "$GREETING ${WHO}"})
        .set_workdir("/srv/app")
        .copy("app", "site")
        .copy("*.conf", "/etc/myapp/")
        .copy("run.sh", "/usr/local/bin/run-it", user="root", mode=0o755)
        .run_cmd("test \"$BOTH\" = 'hi template' && pwd > where && echo said by a step")
        .run_cmd("id -un > /etc/by-root", user="root")
        .set_user("worker")
        .set_start_cmd("cd /srv/app/site && exec python3 -m http.server 8123", wait_for_port(8123))
    )


def test_a_template_is_built_and_used(tmp_path):
    template, said = made(context(tmp_path)), []
    assert not Template.exists("mine")
    built = Template.build(template, "mine", cpu_count=1, memory_mb=512, on_build_logs=lambda entry: said.append(entry.message))
    assert any("said by a step" in line for line in said), said
    assert Template.exists("mine") and Template.exists("mine:default") and not Template.exists("mine:no")

    sandbox = Sandbox.create("mine", timeout=120)
    run = lambda command, **more: sandbox.commands.run(command, **more).stdout.strip()
    assert run("whoami; pwd; echo $BOTH") == "worker\n/srv/app\nhi template"
    assert run("cat where /etc/by-root") == "/srv/app\nroot"
    assert run("run-it") == "ran as worker" and run("stat -c '%U %a' /usr/local/bin/run-it") == "root 755"
    assert run("ls /etc/myapp") == "a.conf\nb.conf" and run("cat site/deep/one.txt") == "1"
    assert run("stat -c %U /srv/app site/index.html", user="root") == "user\nuser"
    assert sandbox.files.read("site/index.html") == "hello from a template\n"
    until(lambda: "8123" in run("ss -Htln sport = :8123 || true"))
    assert proxied(sandbox, 8123, "/index.html").read() == b"hello from a template\n"
    assert run("echo $GREETING", envs={"GREETING": "own"}) == "own"
    info = sandbox.get_info()
    assert info.template_id == built.template_id and (info.cpu_count, info.memory_mb) == (1, 512)
    when = sandbox.files.read("/home/user/when", user="root")

    # The same again is the same computer, and needs no upload.
    said.clear()
    again = Template.build(made(tmp_path), "mine", cpu_count=1, memory_mb=512, on_build_logs=lambda entry: said.append(entry.message))
    assert again.template_id == built.template_id and again.build_id != built.build_id
    assert any("CACHED" in line for line in said) and not any("said by a step" in line for line in said), said
    assert any("already cached" in line for line in said), said

    # Another last step begins from the state before it.
    more = made(tmp_path)
    other = Template(file_context_path=str(tmp_path)).from_image("base")
    other = other.run_cmd("echo first > /tmp/first; date +%s%N > $HOME/when").run_cmd("echo else > else")
    said.clear()
    Template.build(other, "mine", cpu_count=1, memory_mb=512, on_build_logs=lambda entry: said.append(entry.message))
    assert any(line == "CACHED" for line in said), said
    second = Sandbox.create("mine", timeout=120)
    assert second.files.read("/home/user/when") == when and second.files.read("else") == "else\n"
    assert second.commands.run("whoami; pwd").stdout == "user\n/home/user\n"

    # Without the cache it is done anew.
    Template.build(more, "mine", cpu_count=1, memory_mb=512, skip_cache=True)
    third = Sandbox.create("mine", timeout=120)
    assert third.files.read("/home/user/when", user="root") != when
    for one in [sandbox, second, third]:
        assert one.kill()


def test_a_template_of_a_template():
    Template.build(Template().from_image("base").set_envs({"A": "1"}).run_cmd("echo one > ~/one"), "parent")
    Template.build(Template().from_template("parent").run_cmd("echo $A two > ~/two"), "child")
    sandbox = Sandbox.create("child", timeout=120)
    assert sandbox.commands.run("cat one two; echo $A").stdout == "one\n1 two\n1\n"
    assert sandbox.kill()


def test_failures_name_their_step(tmp_path):
    failing = Template().from_image("base").run_cmd("true").run_cmd("echo why it fails >&2; exit 3")
    said = []
    with pytest.raises(BuildException, match="failed to run command .*exit status 3"):
        Template.build(failing, "failing", on_build_logs=lambda entry: said.append(entry.message))
    assert any("why it fails" in line for line in said), said
    assert not Template.exists("failing")
    with pytest.raises(BuildException, match="invalid username: 'root123'"):
        Template.build(Template().from_image("base").run_cmd("whoami", user="root123"), "failing")
    with pytest.raises(BuildException, match="den image pull"):
        Template.build(Template().from_image("no-such-image:1"), "failing")
    with pytest.raises(BuildException, match="start command failed: exit status 7"):
        Template.build(Template().from_image("base").set_start_cmd("exit 7", "false"), "failing")
    background = Template.build_in_background(failing, "failing")
    until(lambda: Template.get_build_status(background).status.value == "error", 60)
    status = Template.get_build_status(background)
    assert status.reason.step == "2" and any("why it fails" in entry.message for entry in status.log_entries)
    with pytest.raises((SandboxException, NotFoundException)):
        Sandbox.create("failing")
    listed = subprocess.run([os.environ["DEN"], "ls", "--json", "--label", "e2b=template"], capture_output=True, check=True)
    running = [one for one in json.loads(listed.stdout) if one["state"] == "running"]
    assert running == [], "no builder is left"
    for name in ["UPPER", "a b", ":x", "x:"]:
        with pytest.raises(BuildException, match="400"):
            Template.build(Template().from_image("base"), name)


def test_tags_lead_to_builds():
    one = Template.build(Template().from_image("base").run_cmd("echo 1 > ~/n"), "tagged:v1", tags=["stable"])
    two = Template.build(Template().from_image("base").run_cmd("echo 2 > ~/n"), "tagged:v2")
    assert one.template_id == two.template_id and Template.exists("tagged")
    assert Template.assign_tags("tagged:v2", ["latest", "default"]).build_id == two.build_id
    tags = {tag.tag: tag.build_id for tag in Template.get_tags("tagged")}
    assert tags == {"v1": one.build_id, "stable": one.build_id, "v2": two.build_id, "latest": two.build_id, "default": two.build_id}
    for name, expected in [("tagged", "2\n"), ("tagged:stable", "1\n"), (f"{one.template_id}:latest", "2\n")]:
        sandbox = Sandbox.create(name, timeout=60)
        assert sandbox.files.read("n") == expected
        assert sandbox.kill()
    Template.remove_tags("tagged", ["v1", "stable"])
    assert [tag.tag for tag in Template.get_tags("tagged")] == ["default", "latest", "v2"]
    with pytest.raises((SandboxException, NotFoundException)):
        Sandbox.create("tagged:v1")
    for target in [":x", "tagged:", "tagged:none"]:
        with pytest.raises(Exception, match="40[04]"):
            Template.assign_tags(target, ["y"])
    with pytest.raises(Exception, match="400"):
        Template.remove_tags("tagged", ["default"])


def test_files_are_put_with_their_signature_alone():
    for query in ["", "?until=99999999999&signature=" + "0" * 64]:
        request = urllib.request.Request(f"{URL}/templates/t1/uploads/{'a' * 64}{query}", data=b"x", method="PUT")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 403
