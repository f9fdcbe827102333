"""Help, usage, and what they cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobbergate_flows import __version__
from jobbergate_flows.cli.exits import Exit
from tests.cli.command_line import run

MANUAL = Path(__file__).parents[2] / "docs" / "command-line.md"

COMMANDS = [
    "", "demo", "app", "app init", "app check", "app schema", "app render", "app run", "app deploy", "job", "job list",
    "job show", "job efficiency", "job metrics", "job logs", "job cancel", "job fetch",
    "cluster", "cluster check", "blocks", "blocks register",
    "consent", "consent add", "consent list", "consent remove",
    "jobbergate", "jobbergate login", "jobbergate logout", "jobbergate show-token",
    "jobbergate applications", "jobbergate applications list", "jobbergate applications get",
    "jobbergate job-scripts", "jobbergate job-scripts list", "jobbergate job-scripts get",
    "jobbergate job-submissions", "jobbergate job-submissions list", "jobbergate job-submissions get",
    "jobbergate clusters", "jobbergate clusters list", "jobbergate clusters get",
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


def test_the_exit_codes_are_those_of_the_manual_and_of_the_help() -> None:
    codes = [int(code) for code in Exit]
    _, _, section = MANUAL.read_text().partition("## Exit codes\n")
    table = section.partition("\n## ")[0]
    said = " ".join(run("--help").out.split()).partition("Exit codes: ")[2]

    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == codes
    assert [int(code) for code in re.findall(r"\d+", said)] == codes


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
