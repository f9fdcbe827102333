"""What needs a Prefect server: `app deploy` and `blocks register`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from tests.cli.command_line import application, run
from tests.cluster.prefect_server import PrefectServer

SERVERLESS = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return application(tmp_path / "greeter", "echo {{ name }}", 'Text("name", "Whom?", default="you")')


@pytest.fixture
def server(prefect_server: PrefectServer) -> dict[str, str]:
    return {"PREFECT_API_URL": prefect_server.api_url}


@pytest.fixture
def pool(prefect_server: PrefectServer, request: pytest.FixtureRequest) -> str:
    name = f"pool-{request.node.name[:40]}-{os.getpid()}"
    made = httpx.post(f"{prefect_server.api_url}/work_pools/", json={"name": name, "type": "process"}, timeout=60)
    assert made.status_code == 201
    return name


def test_an_application_is_deployed_with_its_form(
    folder: Path, prefect_server: PrefectServer, server: dict[str, str], pool: str
) -> None:
    ended = run(
        "app", "deploy", folder, "--pool", pool, "--answer", "name=Ada", "--sbatch=--time=5", "--tag", "greeting",
        "--cron", "0 2 * * *", "--paused", "--concurrency-limit", "1", "--json", env=server,
    )  # fmt: skip

    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    deployment = httpx.get(f"{prefect_server.api_url}/deployments/{told['id']}", timeout=60).json()
    assert deployment["name"] == told["name"].partition("/")[2] == "greeter"
    assert deployment["work_pool_name"] == pool
    assert deployment["tags"] == ["greeting"]
    assert deployment["parameters"]["answers"] == {"name": "Ada"}
    assert deployment["parameters"]["resources"] == {"time_limit": "5"}
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert deployment["paused"] is True


def test_a_deployment_is_described_by_its_applications_readme_and_may_recur_by_an_rrule(
    folder: Path, prefect_server: PrefectServer, server: dict[str, str], pool: str
) -> None:
    (folder / "README.md").write_text("# Greeter\n\nSays *hello*.\n")
    rule = "FREQ=WEEKLY;BYDAY=MO,WE;BYHOUR=2"

    ended = run("app", "deploy", folder, "--pool", pool, "--rrule", rule, "--timezone", "Europe/Berlin", "--json",
                env=server)  # fmt: skip

    assert ended.code == 0, ended.err
    deployment = httpx.get(f"{prefect_server.api_url}/deployments/{json.loads(ended.out)['id']}", timeout=60).json()
    assert deployment["description"].strip() == "# Greeter\n\nSays *hello*."
    (schedule,) = deployment["schedules"]
    assert schedule["active"] is True
    # Prefect writes a start before it.
    assert schedule["schedule"]["rrule"].endswith(rule)
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"


def test_answers_of_the_command_line_become_what_their_questions_ask_for(
    tmp_path: Path, prefect_server: PrefectServer, server: dict[str, str], pool: str
) -> None:
    questions = 'Integer("cpus", minval=1, maxval=8), Confirm("slowly", default=False), Text("name"), ' + (
        'BooleanList("more", default=False, whentrue=[Integer("further", default=1)])'
    )
    folder = application(tmp_path / "asker", "echo", questions)

    ended = run(
        "app", "deploy", folder, "--pool", pool, "--answer", "cpus=3", "--answer", "slowly=yes",
        "--answer", "further=4", "--json", env=server,
    )  # fmt: skip

    assert ended.code == 0, ended.err
    deployment = httpx.get(f"{prefect_server.api_url}/deployments/{json.loads(ended.out)['id']}", timeout=60).json()
    assert deployment["parameters"]["answers"] == {"cpus": 3, "slowly": True, "further": 4}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--answer", "nope=1"], 3, "answers.nope: there is no question 'nope'"),
        (["--answer", "cpus=999"], 3, "answers.cpus: '999' is more than the maximum of 8"),
        (["--answer", "cpus=few"], 3, "answers.cpus: 'few' is no whole number"),
        (["--answer", "further=few"], 3, "answers.further: 'few' is no whole number"),
        (["--cron", "x y"], 3, "cron: 'x y' is no schedule"),
        (["--cron", "* * * * *", "--timezone", "Mars/X"], 3, "timezone: 'Mars/X' is no time zone"),
        (["--interval", "inf"], 3, "interval: inf is no schedule"),
        (["--rrule", "foo"], 3, "rrule: 'foo' is no schedule"),
        (["--name", "a/b"], 3, "name: a deployment's name has no '/': 'a/b'"),
        (["--name", ""], 3, "name: '' is no name"),
        (["--name", "x\ny"], 3, "name: 'x\\ny' is no name"),
        (["--pool", ""], 3, "work_pool: '' is no name"),
        (["--tag", ""], 3, "tags: '' is no name"),
        (["--directory", ""], 3, "directory: the directory is empty"),
        (
            ["--concurrency-limit", "99999999999999999999"],
            3,
            "concurrency_limit: 99999999999999999999 is no number of runs",
        ),
    ],
)
def test_what_cannot_be_deployed_is_told_in_one_line_and_a_hint(
    tmp_path: Path, server: dict[str, str], arguments: list[str], code: int, says: str
) -> None:
    questions = 'Integer("cpus", default=1, maxval=8), BooleanList("more", whentrue=[Integer("further", default=1)])'

    ended = run("app", "deploy", application(tmp_path / "asker", "echo", questions), *arguments, env=server)

    error, hint = ended.err.splitlines()
    assert ended.code == code
    assert error.startswith(f"Error: {says}")
    assert hint.startswith("Hint: ")


@pytest.mark.parametrize("arguments", [["app", "deploy"], ["blocks", "register"]])
def test_without_a_server_nothing_is_deployed_to_one_of_its_own(folder: Path, arguments: list[str]) -> None:
    ended = run(*arguments, *([folder] if arguments[0] == "app" else []), env={"PREFECT_API_URL": ""})

    assert ended.code == 4
    assert ended.err.splitlines()[0] == "Error: no Prefect server is named"
    assert "PREFECT_API_URL" in ended.err.splitlines()[1]


def test_a_work_pool_that_is_not_there_is_bad_input(folder: Path, server: dict[str, str]) -> None:
    ended = run("app", "deploy", folder, "--pool", "nowhere", env=server)

    assert ended.code == 3
    assert "nowhere" in ended.err


def test_two_schedules_are_bad_input(folder: Path, server: dict[str, str]) -> None:
    ended = run("app", "deploy", folder, "--cron", "0 2 * * *", "--interval", "60", env=server)

    assert ended.code == 3
    assert "schedule" in ended.err


def test_the_block_types_are_registered(prefect_server: PrefectServer, server: dict[str, str]) -> None:
    ended = run("blocks", "register", env=server)

    assert ended.code == 0, ended.err
    assert ended.out.split()
    for slug in ended.out.split():
        assert httpx.get(f"{prefect_server.api_url}/block_types/slug/{slug}", timeout=60).status_code == 200


def test_a_server_that_does_not_answer_is_unreachable(folder: Path) -> None:
    for arguments in (["app", "deploy", str(folder)], ["blocks", "register"]):
        ended = run(*arguments, env=SERVERLESS)

        assert ended.code == 4, ended.err
        assert "127.0.0.1:9" in ended.err.splitlines()[0]
        assert "Hint: " in ended.err
