"""Help, usage, and what they cost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jobbergate_flows import __version__
from tests.cli.command_line import run

COMMANDS = [
    "", "demo", "app", "app init", "app check", "app schema", "app render", "app run", "app deploy", "job", "job list",
    "job show", "job efficiency", "job metrics", "job logs", "job cancel", "job fetch",
    "cluster", "cluster check", "blocks", "blocks register",
    "consent", "consent add", "consent list", "consent remove",
    "worker", "worker bind", "worker unbind", "worker bindings", "worker unit",
    "worker sudoers", "worker install-deputy",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_without_loading_what_is_slow(command: str) -> None:
    program = (
        "import sys, json\n"
        "from jobbergate_flows.cli.root import run\n"
        f"code = run({[*command.split(), '--help']!r})\n"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    code, modules = json.loads(done.stderr)
    assert code == 0
    assert f"Usage: jobbergate-flows {command}".strip() in done.stdout
    assert not {"prefect", "sqlalchemy", "jinja2", "httpx", "yaml"} & set(modules)


def test_the_version_is_printed() -> None:
    assert run("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["app", "render"], "Missing argument"),
        (["app", "render", ".", "--nonsense"], "No such option: --nonsense"),
        (["job", "list", "--limit", "many"], "--limit"),
        (["cluster", "check", "--cluster", "cray"], "--cluster"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(arguments: list[str], says: str) -> None:
    ended = run(*arguments)

    error, hint = ended.err.splitlines()
    assert ended.code == 2
    assert ended.out == ""
    assert error.startswith("Error: ")
    assert says in error
    assert "--help" in hint
