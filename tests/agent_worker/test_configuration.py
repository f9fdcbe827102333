"""What of a worker's settings and of a deployment reaches the environment of a flow's job, and who can read it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from agent_worker.configuration import FlowJobConfiguration, SlurmJobConfiguration

WORKERS = {
    PREFECT_API_URL: "http://server/api",
    PREFECT_API_KEY: "the-workers",
    PREFECT_API_AUTH_STRING: "the-workers:too",
}


@pytest.fixture(autouse=True)
def settings_of_a_worker() -> Iterator[None]:
    with temporary_settings(WORKERS):
        yield


def prepared(**env: str) -> FlowJobConfiguration:
    configuration = SlurmJobConfiguration(env=env)
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="a-run", created=datetime.now(UTC))
    configuration.prepare_for_flow_run(run)
    return configuration


def test_a_flow_gets_the_servers_address_and_the_workers_key() -> None:
    env = prepared().env
    assert env["PREFECT_API_URL"] == "http://server/api"
    assert env["PREFECT_API_KEY"] == "the-workers"


def test_it_gets_no_paths_of_the_workers_host() -> None:
    with temporary_settings({PREFECT_HOME: "/of/the/worker"}):
        assert not [value for value in prepared().env.values() if "/of/the/worker" in str(value)]


@pytest.mark.parametrize("name", ["PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"])
def test_with_a_persons_own_key_it_gets_none_of_the_workers(name: str) -> None:
    env = prepared(**{name: "the-persons"}).env
    assert env[name] == "the-persons"
    assert not [value for value in env.values() if "the-workers" in str(value)]
    assert env["PREFECT_API_URL"] == "http://server/api"


def test_a_configuration_shows_nothing_of_its_environment() -> None:
    configuration = prepared(TOKEN="s3cret")
    assert configuration.env["TOKEN"] == "s3cret"
    for shown in (repr(configuration), str(configuration)):
        assert "s3cret" not in shown
        assert "the-workers" not in shown
