"""Whether there is a newer version: told once, and nothing is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from prefect.events.schemas.events import Event, Resource

from agent_worker.updates import AVAILABLE, UpdateWatch, newer
from jobbergate_flows.reporting import EventOutbox
from tests.cluster.events import await_events
from tests.cluster.http_server import Handler, serving
from tests.cluster.prefect_server import PrefectServer

OWN = version("jobbergate-flows")


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ({"info": {"version": "1.2.0"}}, "1.2.0"),
        ({"info": {"version": "1.0.0"}, "releases": {"1.0.0": [], "1.10.0": [], "1.9.0": []}}, "1.10.0"),
        ({"versions": ["1.0.0", "2.0.0"]}, "2.0.0"),
        ({"versions": ["1.0.0", "2.0.0rc1"]}, None),
        ({"versions": ["0.9"]}, None),
        ({"info": {"version": "odd"}}, None),
        ({"info": None, "versions": None}, None),
        (["1.2.0"], None),
    ],
)
def test_only_a_final_version_that_is_newer_counts(page: Any, found: str | None) -> None:
    assert newer("1.0.0", page) == found


@pytest.fixture
def index() -> Iterator[tuple[str, dict[str, Any]]]:
    """A package index, and what it says."""
    page: dict[str, Any] = {"info": {"version": OWN}}

    class Index(Handler):
        def do_GET(self) -> None:
            self.say(200, json.dumps(page).encode() if page else b"no JSON")

    with serving(Index) as url:
        yield f"{url}/pypi/jobbergate-flows/json", page


async def test_a_newer_version_is_an_event_and_a_line_of_the_health_report(
    prefect_server: PrefectServer, index: tuple[str, dict[str, Any]]
) -> None:
    url, page = index
    resource = {"prefect.resource.id": "prefect.worker.jobbergate-slurm.update-test"}
    watch = UpdateWatch(url, resource)
    await watch.look()
    assert watch.finding is None

    page["info"] = {"version": "999.0.0"}
    await watch.look()
    await watch.look()
    assert watch.finding is not None
    assert watch.finding.ok
    assert watch.finding.detail == f"jobbergate-flows 999.0.0 is there; this is {OWN}"
    # One that was put after all of the watch's: when the server has it, it has those.
    EventOutbox.here().put(Event(event="tests.later", resource=Resource(resource)))
    told = await await_events(
        "the events",
        lambda found: any(event["event"] == "tests.later" for event in found),
        resource=resource["prefect.resource.id"],
    )
    (event,) = (event for event in told if event["event"] != "tests.later")
    assert event["event"] == AVAILABLE
    assert event["payload"] == {"version": OWN, "newer": "999.0.0"}


async def test_an_index_that_is_away_or_says_something_else_changes_nothing(
    index: tuple[str, dict[str, Any]],
) -> None:
    url, page = index
    page.clear()
    watch = UpdateWatch(url, {"prefect.resource.id": "prefect.worker.any"})
    with pytest.raises(ValueError, match="Expecting value"):
        await watch.look()
    gone = UpdateWatch("http://127.0.0.1:1/json", {"prefect.resource.id": "prefect.worker.any"})
    with pytest.raises(httpx.ConnectError):
        await gone.look()
    assert watch.finding is None
    assert gone.finding is None
