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


def test_an_application_is_deployed_with_its_form(
    folder: Path, prefect_server: PrefectServer, server: dict[str, str]
) -> None:
    pool = f"pool-{os.getpid()}"
    made = httpx.post(f"{prefect_server.api_url}/work_pools/", json={"name": pool, "type": "process"})
    assert made.status_code == 201

    ended = run(
        "app", "deploy", folder, "--pool", pool, "--answer", "name=Ada", "--sbatch=--time=5", "--tag", "greeting",
        "--cron", "0 2 * * *", "--paused", "--concurrency-limit", "1", "--json", env=server,
    )  # fmt: skip

    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    deployment = httpx.get(f"{prefect_server.api_url}/deployments/{told['id']}").json()
    assert deployment["name"] == told["name"].partition("/")[2] == "greeter"
    assert deployment["work_pool_name"] == pool
    assert deployment["tags"] == ["greeting"]
    assert deployment["parameters"]["answers"] == {"name": "Ada"}
    assert deployment["parameters"]["resources"] == {"time_limit": "5"}
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert deployment["paused"] is True


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
        assert httpx.get(f"{prefect_server.api_url}/block_types/slug/{slug}").status_code == 200


def test_a_server_that_does_not_answer_is_unreachable(folder: Path) -> None:
    for arguments in (["app", "deploy", str(folder)], ["blocks", "register"]):
        ended = run(*arguments, env=SERVERLESS)

        assert ended.code == 4, ended.err
        assert "127.0.0.1:9" in ended.err.splitlines()[0]
        assert "Hint: " in ended.err
