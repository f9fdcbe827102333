"""When the metrics of mirrored jobs go to the real Jobbergate API, and when nothing more is to be told of a job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_worker.jobbergate.measuring import Measures
from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.links import Link, Links
from jobbergate_flows.jobbergate.models import FileType, NewSubmission
from jobbergate_flows.metrics import MetricsUnreachable
from jobbergate_flows.metrics.model import Series
from jobbergate_flows.metrics.reading import Extent, JobSpan
from jobbergate_flows.slurm.ledger import Ledger, Submission, SubmissionKey, SubmissionStatus
from jobbergate_flows.slurm.session import ClusterSession
from jobbergate_flows.slurm.steps import JobRecord
from tests.agent_worker.test_teller import Clients, connect
from tests.cluster.jobbergate_api import JobbergateApi
from tests.cluster.waiting import await_until
from tests.jobbergate.test_metrics import Samples, rss
from tests.metrics.samples import SINCE, START
from tests.slurm.fakes import FaultyCluster

PATIENCE = 30.0


class CountedSamples(Samples):
    """A reader that counts the looks, and fails if it is to."""

    looks = 0
    fails = False

    async def extents(self, jobs: Sequence[JobSpan]) -> dict[Series, Extent]:
        self.looks += 1
        if self.fails:
            raise MetricsUnreachable("the database is away")
        return await super().extents(jobs)


@pytest.fixture
def cluster(tmp_path: Path) -> FaultyCluster:
    """One whose accounting knows job 7, which began at START."""
    faulty = FaultyCluster(tmp_path / "jobs")
    faulty.accounted = [JobRecord("7", "7", "RUNNING", start=SINCE)]
    return faulty


@pytest.fixture
def client(jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobbergateClient]:
    with connect(jobbergate_api, tmp_path_factory.mktemp("tokens")) as made:
        yield made


@pytest.fixture
async def clients(jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clients]:
    made = Clients(site=lambda: connect(jobbergate_api, tmp_path_factory.mktemp("tokens")))
    yield made
    await made.forget("site")


def mirrored(
    client: JobbergateClient,
    ledger: Ledger,
    cluster: str,
    *,
    ended: timedelta | None = None,
    array: bool = False,
) -> Link:
    """A mirror of job 7, which goes on or whose end was told so long ago."""
    script = client.send(calls.create_job_script("study"))
    client.send(calls.upload_job_script_file(script.id, FileType.ENTRYPOINT, "job.sh", b"#!/bin/sh\n"))
    made = client.send(
        calls.create_job_submission(NewSubmission(name="study", job_script_id=script.id, slurm_job_id=7))
    )
    key = SubmissionKey.once().token
    over: dict[str, Any] = {}
    if ended is not None:
        over = {"status": SubmissionStatus.FINAL, "final_at": datetime.now(UTC) - ended}
    ledger.intend(
        Submission(
            key=key, scope=key, call="job", attempt=0, cluster=cluster, user="me", job_name="study", directory="/",
            script_digest="", intent_at=SINCE, job_id="7", submitted_at=SINCE, array=array, **over,
        )
    )  # fmt: skip
    links = Links(ledger)
    link = links.mirror("site", key, None)
    links.attach(link.id, submission_id=made.id, ended=True if ended is not None else None)
    found = links.get(link.id)
    assert found is not None
    return found


@asynccontextmanager
async def measuring(
    ledger: Ledger, cluster: FaultyCluster, clients: Clients, reader: CountedSamples
) -> AsyncIterator[None]:
    async def reader_of() -> CountedSamples:
        return reader

    supervisor: Any = SimpleNamespace(session=ClusterSession(cluster, ledger))
    running = asyncio.create_task(Measures(supervisor, clients, 0.05, reader_of).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def more_looks(reader: CountedSamples) -> None:
    """Wait for two: the first of them may have begun before."""
    before = reader.looks

    async def enough() -> bool:
        return reader.looks >= before + 2

    await await_until(enough, PATIENCE, "two more looks")


def newest(client: JobbergateClient, link: Link) -> list[int]:
    """The newest seconds that the API has, after START."""
    mark = client.send(calls.get_metrics_mark(link.submission_id or 0))
    return sorted(one.max_time - START for one in mark.max_times)


def is_open(links: Links, link: Link) -> bool:
    return link.id in [one.id for one in links.open()]


async def test_a_running_jobs_samples_are_sent_as_they_come_and_accounting_is_asked_once(
    client: JobbergateClient, links: Links, ledger: Ledger, cluster: FaultyCluster, clients: Clients
) -> None:
    link = mirrored(client, ledger, cluster.name)
    reader, asked = CountedSamples(rss(10, 40)), []

    async def ask() -> None:
        asked.append(1)

    cluster.before_steps = ask
    async with measuring(ledger, cluster, clients, reader):
        await more_looks(reader)
        assert newest(client, link) == [40]
        reader.pieces.append(rss(70, step="1"))
        await more_looks(reader)
        await more_looks(reader)

    assert newest(client, link) == [40, 70]
    assert len(asked) == 1
    assert is_open(links, link)


async def test_after_a_jobs_end_its_late_samples_are_sent_and_then_its_link_is_closed(
    client: JobbergateClient, links: Links, ledger: Ledger, cluster: FaultyCluster, clients: Clients
) -> None:
    link = mirrored(client, ledger, cluster.name, ended=timedelta(minutes=2))
    reader = CountedSamples(rss(10))
    # It comes while the first is being read.
    reader.before_reading = lambda: reader.pieces.append(rss(20)) if len(reader.pieces) == 1 else None

    async with measuring(ledger, cluster, clients, reader):

        async def closed() -> bool:
            return not is_open(links, link)

        await await_until(closed, PATIENCE, "the link to be closed")

    assert newest(client, link) == [20]
    found = links.get(link.id)
    assert found is not None
    assert found.trouble is None


async def test_a_job_that_has_just_ended_is_looked_at_again(
    client: JobbergateClient, links: Links, ledger: Ledger, cluster: FaultyCluster, clients: Clients
) -> None:
    link = mirrored(client, ledger, cluster.name, ended=timedelta(seconds=0))
    reader = CountedSamples()

    async with measuring(ledger, cluster, clients, reader):
        await more_looks(reader)
        assert is_open(links, link)
        reader.pieces.append(rss(10))
        await more_looks(reader)

    assert newest(client, link) == [10]
    assert is_open(links, link)


@pytest.mark.parametrize(("ended", "open_"), [(timedelta(hours=1), True), (timedelta(days=2), False)])
async def test_a_database_that_is_away_is_waited_for_a_day(
    client: JobbergateClient,
    links: Links,
    ledger: Ledger,
    cluster: FaultyCluster,
    clients: Clients,
    ended: timedelta,
    open_: bool,
) -> None:
    link = mirrored(client, ledger, cluster.name, ended=ended)
    reader = CountedSamples(rss(10))
    reader.fails = True

    async with measuring(ledger, cluster, clients, reader):
        if open_:
            await more_looks(reader)
            assert is_open(links, link)
            reader.fails = False

        async def closed() -> bool:
            return not is_open(links, link)

        await await_until(closed, PATIENCE, "the link to be closed")

    found = links.get(link.id)
    assert found is not None
    assert (found.trouble or "") == ("" if open_ else "without all of its metrics: the database is away")
    assert newest(client, link) == ([10] if open_ else [])


async def test_a_running_array_and_another_clusters_jobs_are_not_asked_for(
    client: JobbergateClient, links: Links, ledger: Ledger, cluster: FaultyCluster, clients: Clients
) -> None:
    array = mirrored(client, ledger, cluster.name, array=True)
    elsewhere = mirrored(client, ledger, "elsewhere", ended=timedelta(days=3))
    own = mirrored(client, ledger, cluster.name)
    reader = CountedSamples(rss(10, 40))

    async with measuring(ledger, cluster, clients, reader):
        await more_looks(reader)

    assert newest(client, own) == [40]
    assert newest(client, array) == newest(client, elsewhere) == []
    assert is_open(links, array)
    assert is_open(links, elsewhere)


async def test_a_rejected_submission_needs_no_metrics(
    client: JobbergateClient, links: Links, ledger: Ledger, cluster: FaultyCluster, clients: Clients
) -> None:
    link = links.bridge("site", 1)
    links.attach(link.id, ended=True)

    async with measuring(ledger, cluster, clients, CountedSamples()):

        async def closed() -> bool:
            return not is_open(links, link)

        await await_until(closed, PATIENCE, "the link to be closed")
