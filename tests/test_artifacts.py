"""A run's pages as a real Prefect server has them."""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.context import AsyncClientContext
from prefect.flows import Flow

from jobbergate_flows.artifacts import RunArtifacts

pytestmark = pytest.mark.usefixtures("prefect_server")


async def a_run() -> FlowRun:
    async with get_client() as client:
        return await client.create_flow_run(Flow(lambda: None, name="pages"))


async def artifacts_of(run: FlowRun) -> dict[UUID, Artifact]:
    async with get_client() as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        return {found.id: found for found in await client.read_artifacts(artifact_filter=chosen)}


async def test_only_what_has_changed_is_sent_and_into_the_same_artifact() -> None:
    run = await a_run()
    pages = await RunArtifacts.of(run, "k1")

    await pages.show("live", "one", description="a")
    [first] = (await artifacts_of(run)).values()
    await pages.show("live", "one", description="a")
    [same] = (await artifacts_of(run)).values()
    await pages.show("live", "two", description="a")
    [changed] = (await artifacts_of(run)).values()

    assert (first.key, same.updated) == ("pages-live", first.updated)
    assert (changed.id, changed.data) == (first.id, "two")
    assert changed.updated != first.updated


async def test_another_program_goes_on_with_a_jobs_page_and_another_attempt_has_its_own() -> None:
    run = await a_run()
    await (await RunArtifacts.of(run, "k1")).show("live", "one", description="a")

    await (await RunArtifacts.of(run, "k1")).show("live", "one more", description="a")
    await (await RunArtifacts.of(run, "k2")).show("live", "two", description="a")

    found = sorted((str(page.key), page.data) for page in (await artifacts_of(run)).values())
    assert found == [("pages-live", "one more"), ("pages-live", "two")]


async def test_a_page_that_somebody_deleted_is_made_anew() -> None:
    run = await a_run()
    pages = await RunArtifacts.of(run, "k1")
    await pages.show("live", "one", description="a")
    async with get_client() as client:
        for gone in await artifacts_of(run):
            await client.delete_artifact(gone)

    await pages.show("live", "two", description="a")

    assert [page.data for page in (await artifacts_of(run)).values()] == ["two"]


class Noting(httpx.AsyncHTTPTransport):
    """Notes what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(f"{request.method} {request.url.path}")
        return await super().handle_async_request(request)


async def test_pages_are_sent_with_the_client_that_is_there_whatever_its_settings() -> None:
    run = await a_run()
    around = Noting()

    async with AsyncClientContext(httpx_settings={"transport": around}):
        pages = await RunArtifacts.of(run, "k1")
        await pages.add("script", "echo", description="a")
        await pages.show("live", "one", description="a")

    assert around.sent.count("POST /api/artifacts/") == 2


async def test_several_jobs_of_a_run_have_keys_of_their_own() -> None:
    run = await a_run()
    for call in ("call-0", "left", "right"):
        await (await RunArtifacts.of(run, call, call=call)).add("job-summary", call, description="")

    keys = sorted(str(page.key) for page in (await artifacts_of(run)).values())
    assert keys == ["pages-job-summary", "pages-job-summary-left", "pages-job-summary-right"]
