"""E2B's SDK for Python against a house of Den: git, streamed input, and what is not there."""

import os
import threading

import pytest
from e2b import (
    BuildException,
    CommandExitException,
    FileNotFoundException,
    GitUpstreamException,
    InvalidArgumentException,
    PtySize,
    Sandbox,
    SandboxException,
    Secret,
    SecretException,
    Template,
    wait_for_file,
)

from test_sandbox import URL, until


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


# --- git ---


def test_git_from_the_first_commit_to_a_merge(sandbox):
    git = sandbox.git
    git.configure_user("A Name", "a@example.com")
    assert git.get_config("user.name") == "A Name" and git.get_config("no.such") is None
    git.set_config("init.defaultBranch", "main")
    git.init("/home/user/shared", bare=True, initial_branch="main")
    git.init("/home/user/one", initial_branch="main")
    sandbox.files.write("one/a", "1\n")
    status = git.status("/home/user/one")
    assert status.current_branch == "main" and [it.name for it in status.file_status] == ["a"]
    git.add("/home/user/one")
    git.commit("/home/user/one", "the first")
    assert git.status("/home/user/one").is_clean
    git.remote_add("/home/user/one", "origin", "/home/user/shared")
    assert git.remote_get("/home/user/one", "origin") == "/home/user/shared"
    git.push("/home/user/one", "origin", "main")
    git.clone("/home/user/shared", path="/home/user/two")
    assert sandbox.files.read("two/a") == "1\n"
    git.create_branch("/home/user/two", "side")
    git.checkout_branch("/home/user/two", "main")
    branches = git.branches("/home/user/two")
    assert set(branches.branches) >= {"main", "side"} and branches.current_branch == "main"
    git.delete_branch("/home/user/two", "side")
    assert "side" not in git.branches("/home/user/two").branches
    sandbox.files.write("one/a", "2\n")
    git.commit("/home/user/one", "nothing is staged", allow_empty=True)
    git.add("/home/user/one", files=["a"])
    git.commit("/home/user/one", "the next", author_name="B", author_email="b@example.com")
    git.push("/home/user/one", "origin", "main")
    git.pull("/home/user/two", "origin", "main")
    assert sandbox.files.read("two/a") == "2\n"


def test_git_takes_changes_back(sandbox):
    git, path = sandbox.git, "/home/user/back"
    git.init(path, initial_branch="main")
    git.configure_user("A", "a@example.com", scope="local", path=path)
    assert git.get_config("user.email", scope="local", path=path) == "a@example.com"
    sandbox.files.write("back/a", "1")
    git.add(path)
    git.commit(path, "one")
    sandbox.files.write("back/a", "2")
    git.add(path)
    git.restore(path, ["a"], staged=True)
    assert not git.status(path).has_staged
    git.restore(path, ["a"])
    assert sandbox.files.read("back/a") == "1"
    sandbox.files.write("back/a", "3")
    git.reset(path, mode="hard", target="HEAD")
    assert sandbox.files.read("back/a") == "1" and git.status(path).is_clean
    with pytest.raises((GitUpstreamException, CommandExitException)):
        git.pull(path)
    with pytest.raises(CommandExitException):
        git.clone("/no/such/repository", path="/home/user/none")
    git.dangerously_authenticate("u", "p", host="git.example.com")
    assert "u:p@git.example.com" in sandbox.commands.run("cat ~/.git-credentials").stdout


# --- input that is streamed ---


def test_input_is_streamed_to_a_command(sandbox):
    handle = sandbox.commands.run("sha256sum; echo over", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, (b"x" * 100_000 for _ in range(20)))
    sandbox.commands.close_stdin(handle.pid)
    expected = sandbox.commands.run("head -c 2000000 /dev/zero | tr '\\0' x | sha256sum").stdout
    assert handle.wait().stdout == expected + "over\n"
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.stream_input(handle.pid, b"not a stream")


def test_input_is_streamed_to_a_terminal(sandbox):
    seen = []
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    again = sandbox.pty.connect(handle.pid)
    reader = threading.Thread(target=lambda: [seen.append(bytes(pty)) for _, _, pty in again if pty], daemon=True)
    reader.start()
    sandbox.pty.stream_input(handle.pid, iter([b"echo a-$((40", b"+2))\n"]))
    until(lambda: b"a-42" in b"".join(seen))
    assert handle.kill() is True


def test_a_handle_does_what_its_command_takes(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin("through the handle")
    handle.close_stdin()
    assert handle.wait().stdout == "through the handle"
    handle = sandbox.commands.run("sleep 100", background=True)
    assert handle.kill() is True


# --- what templates are built with ---


def test_a_template_of_all_that_needs_no_network(tmp_path):
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    template = (
        Template(file_context_path=tmp_path)
        .from_base_image()
        .skip_cache()
        .copy_items([{"src": "one", "dest": "/home/user/one"}, {"src": "two", "dest": "/home/user/two"}])
        .make_dir("/home/user/made")
        .rename("/home/user/one", "/home/user/made/one")
        .make_symlink("/home/user/made/one", "/home/user/link")
        .remove("/home/user/two")
        .set_start_cmd("touch /tmp/ready; sleep 1000", wait_for_file("/tmp/ready"))
    )
    Template.build(template, "of-all")
    assert Template.exists("of-all") and Template.alias_exists("of-all")
    sandbox = Sandbox.create("of-all", timeout=120)
    assert sandbox.files.read("link") == "1" and sandbox.files.get_info("link").symlink_target == "/home/user/made/one"
    assert not sandbox.files.exists("two")
    assert sandbox.kill()
    of_file = Template().from_dockerfile("FROM base\nENV A=1\nRUN echo $A > /home/user/a\nWORKDIR /srv\n").set_ready_cmd("true")
    Template.build(of_file, "of-file")
    sandbox = Sandbox.create("of-file", timeout=120)
    assert sandbox.commands.run("pwd; cat /home/user/a").stdout == "/srv\n1\n"
    assert sandbox.kill()


# --- files ---


def test_paths_that_the_kernel_does_not_take_are_refused(sandbox):
    sandbox.files.make_dir("outer")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.rename("outer", "outer/inner")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.get_info("x" * 300)
    with pytest.raises(SandboxException, match="in use"):
        sandbox.files.rename("/proc", "/procs")


# --- addresses ---


def test_addresses_have_the_port_and_the_id(sandbox):
    assert sandbox.get_host(3000).startswith(f"3000-{sandbox.sandbox_id}.")
    assert sandbox.get_mcp_url().startswith(f"https://50005-{sandbox.sandbox_id}.")


# --- what is not there ---


def test_what_is_not_there_says_so(sandbox):
    with pytest.raises(SecretException, match="403"):
        Secret.create("mine", value="x")
    with pytest.raises(SandboxException):
        Sandbox.create(mcp={"exa": {"apiKey": "x"}})
    with pytest.raises(FileNotFoundException):
        sandbox.get_mcp_token()
    with pytest.raises(BuildException, match="mcp-gateway"):
        Template.build(Template().from_template("mcp-gateway").add_mcp_server("exa"), "of-mcp")
    with pytest.raises(BuildException, match="den image pull"):
        Template.build(Template().from_node_image("22"), "of-node")


def test_tags_are_counted_looked_for_and_listed():
    from e2b.api.client.api.tags import (
        get_templates_template_id_tags_count,
        get_templates_template_id_tags_exists,
        get_templates_template_id_tags_groups,
        get_templates_template_id_tags_tag_assignments,
    )
    from e2b.api.client.client import AuthenticatedClient
    from e2b.api.client.models import GetTemplatesTemplateIDTagsGroupsSort as Sort

    built = Template.build(Template().from_image("base").set_envs({"A": "1"}), "counted", tags=["v1", "v2"])
    Template.assign_tags("counted:v1", ["later"])
    key = os.environ["E2B_API_KEY"]
    client = AuthenticatedClient(base_url=URL, token=key, auth_header_name="X-API-Key", prefix="")
    count = get_templates_template_id_tags_count.sync("counted", client=client).total
    groups = get_templates_template_id_tags_groups.sync("counted", client=client, sort=Sort.NAME_ASC)
    names = [group.tag for group in groups.tags]
    assert names == ["later", "v1", "v2"] and count == 3 and groups.next_cursor is None
    assert {str(one.build_id) for group in groups.tags for one in group.assignments} == {built.build_id}
    assert get_templates_template_id_tags_groups.sync("counted", client=client).tags[0].tag == "later"
    # Page by page.
    seen, cursor = [], None
    while cursor is not None or not seen:
        page = get_templates_template_id_tags_groups.sync(
            "counted", client=client, tags_limit=2, sort=Sort.NAME_DESC, **({"tags_cursor": cursor} if cursor else {})
        )
        seen += [group.tag for group in page.tags]
        cursor = page.next_cursor
    assert seen == names[::-1]
    found = get_templates_template_id_tags_groups.sync("counted", client=client, search="V")
    assert {group.tag for group in found.tags} == {"v1", "v2"}
    for tag in ["v1", "none"]:
        there = get_templates_template_id_tags_exists.sync("counted", client=client, tag=tag)
        assert (there.exists, there.normalized_tag) == (tag == "v1", tag)
        all = get_templates_template_id_tags_tag_assignments.sync("counted", tag, client=client)
        assert len(all.data) == (1 if tag == "v1" else 0) and all.next_cursor is None
    assert get_templates_template_id_tags_count.sync("base", client=client).total == 1
    assert get_templates_template_id_tags_count.sync("no-such", client=client).code == 404
