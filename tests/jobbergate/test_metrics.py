"""Metrics for the Jobbergate API: the agent's rows, each sent once, whatever comes late and whatever interrupts it."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.metrics import Due, Place, Row, batches, due, place_of, rows, unsent
from jobbergate_flows.jobbergate.models import JobData, MaxTime
from jobbergate_flows.metrics import MetricsUnreachable
from jobbergate_flows.metrics.influxql import InfluxQLReader
from jobbergate_flows.metrics.model import NAMES, JobMetrics, Piece, Series
from jobbergate_flows.metrics.reading import SLACK, Extent, JobSpan, MetricsReader, extents_of, within
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.jobbergate_api import AGENT, PERSON, JobbergateApi
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.jobbergate.test_api_service import connect, create_application, create_job_script, create_submission
from tests.metrics.samples import SINCE, START, line, piece
from tests.metrics.test_job_metrics import ended, submit

# It keeps a processor busy for three seconds: three samples or four.
WORK = "import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: sum(range(1000))"
RECORDED = Path(__file__).with_name("recorded") / "aggregate_influx_measures.json"


class Receiver:
    """Keeps what is sent as the API does, which tells the newest time of each place only, and refuses a row twice."""

    def __init__(self) -> None:
        self.rows: dict[tuple[object, ...], Row] = {}

    @property
    def max_times(self) -> list[MaxTime]:
        newest: dict[Place, int] = {}
        for when, host, step, task, *_ in self.rows.values():
            place = Place(host, step, task)
            newest[place] = max(when, newest.get(place, when))
        return [newest_row(when, place) for place, when in newest.items()]

    def take(self, packed: bytes) -> None:
        for row in msgpack.unpackb(packed, use_list=False):
            assert row[:4] not in self.rows, f"twice: {row}"
            self.rows[row[:4]] = row

    async def look(
        self, reader: MetricsReader, jobs: Sequence[JobSpan], *, ended: bool = False, calls: int = 1_000_000
    ) -> list[tuple[int, str, int, int, int]]:
        """One look, interrupted after so many calls: what was sent, as seconds after START, place and RSS."""
        sent: list[tuple[int, str, int, int, int]] = []
        async for found in unsent(reader, jobs, self.max_times, ended=ended):
            for packed in batches(found, 3):
                if not calls:
                    return sent
                calls -= 1
                self.take(packed)
                sent += [(row[0] - START, *row[1:4], row[10]) for row in msgpack.unpackb(packed, use_list=False)]
        return sent


class Samples:
    """A reader of samples that a test puts into it; it keeps for what it was asked."""

    def __init__(self, *pieces: Piece) -> None:
        self.pieces = list(pieces)
        self.asked: list[tuple[int, int]] = []
        self.before_reading: Callable[[], None] = lambda: None

    async def read(self, job_id: str, since: datetime, until: datetime) -> JobMetrics:
        return await self.read_many([JobSpan(job_id, since, until)])

    async def read_many(self, jobs: Sequence[JobSpan]) -> JobMetrics:
        self.before_reading()
        self.asked.append((int(jobs[0].since.timestamp()) - START, int(jobs[0].until.timestamp()) - START))
        return JobMetrics.of(within(self.pieces, jobs, SLACK))

    async def extents(self, jobs: Sequence[JobSpan]) -> dict[Series, Extent]:
        return extents_of(within(self.pieces, jobs, SLACK))


def newest_row(seconds: int, place: Place) -> MaxTime:
    return MaxTime(max_time=seconds, node_host=place.host, step=place.step, task=place.task)


def until(seconds: float) -> JobSpan:
    """Job 7 when it is so many seconds after START."""
    return JobSpan("7", SINCE, SINCE + timedelta(seconds=seconds))


def rss(*times: int, **place: str) -> Piece:
    """Samples whose memory is their time."""
    return piece({"RSS": [float(one) for one in times]}, times, **place)


def test_rows_are_what_the_agent_makes_of_the_same_points() -> None:
    """Recorded: what `aggregate_influx_measures` of jobbergate-agent 5.12.0 made of these points."""
    recorded = json.loads(RECORDED.read_text())
    pieces = [
        Piece(
            Series("7", host, {"-5": "batch", "-4": "extern"}.get(step, step), task),
            np.array([when]),
            (measurement,),
            np.array([[float(value)]]),
        )
        for when, host, step, task, measurement, value in recorded["points"]
    ]
    # Of what the agent sends the API casts some to whole numbers.
    casts = (int, str, int, int, float, float, float, int, float, int, int, int, int, int)
    expected = [tuple(cast(value) for cast, value in zip(casts, row, strict=True)) for row in recorded["rows"]]
    found = rows(JobMetrics.of(pieces))
    assert len(found) == len(expected) > 20
    for one, other in zip(found, sorted(expected, key=lambda row: (row[0], int(row[1][1:]), *row[2:4])), strict=True):
        assert [type(value) for value in one] == list(casts)
        assert one == other


def test_what_was_not_measured_or_is_no_number_is_0() -> None:
    values = [[1.9, np.nan, np.inf, 2.0**64 - 2, -np.inf, np.nan, 2.0**40 + 0.5, -1.9, 2.0**63, 3]]
    metrics = JobMetrics.of([Piece(Series("7", "n1", "batch", "0"), np.array([START]), NAMES, np.array(values).T)])
    [row] = rows(metrics)
    assert row == (START, "n1", -5, 0, 1.9, 0.0, 0.0, 0, 0.0, 0, 2**40, -1, 0, 3)
    assert rows(JobMetrics.empty()) == []
    assert list(batches(JobMetrics.empty())) == []


def test_what_the_api_has_no_place_for_is_left_out() -> None:
    metrics = JobMetrics.of(
        [
            rss(1, task="Filesystem"),
            rss(2, step="4294967290x"),
            rss(3, step="2147483648"),
            rss(4, task="2147483648"),
            rss(5, step="extern"),
            rss(6, step="2147483647", task="2147483647"),
        ]
    )
    assert [row[:4] for row in rows(metrics)] == [
        (START + 5, "n1", -4, 0),
        (START + 6, "n1", 2147483647, 2147483647),
    ]
    assert due({series: Extent(0, 9) for series in metrics.series}, []) == {
        Place("n1", -4, 0): Due(-1, 9),
        Place("n1", 2147483647, 2147483647): Due(-1, 9),
    }


def test_batches_are_the_rows_in_the_order_of_their_times() -> None:
    metrics = JobMetrics.of([rss(*range(0, 4000, 2)), rss(*range(1, 4000, 2), host="n0"), rss(4000, host="n0")])
    packed = list(batches(metrics))
    assert [len(msgpack.unpackb(one)) for one in packed] == [2047, 1954]
    together = [row for one in packed for row in msgpack.unpackb(one, use_list=False)]
    assert together == rows(metrics)
    assert [row[10] for row in together] == list(range(4001))


@pytest.mark.parametrize(
    ("extent", "newest", "settled", "expected"),
    [
        (Extent(10, 90), None, None, Due(9, 90)),
        (Extent(10, 90), None, 90, Due(9, 90)),
        (Extent(10, 90), None, 89, Due(9, 89)),
        (Extent(10, 90), 50, None, Due(50, 90)),
        (Extent(10, 90), 90, None, None),
        (Extent(10, 90), 89, 60, None),
        (Extent(10, 90), 89, 95, Due(89, 90)),
        (Extent(10, 10), None, 5, None),
        # What the API has may be longer gone from the database.
        (Extent(10, 90), 100, None, None),
    ],
)
def test_of_a_place_is_due_what_is_later_than_the_apis_newest_and_will_not_change(
    extent: Extent, newest: int | None, settled: int | None, expected: Due | None
) -> None:
    place = Place("n1", -5, 0)
    known = [] if newest is None else [newest_row(newest, place)]
    others = [newest_row(1000, Place("n2", -5, 0)), newest_row(1000, Place("n1", 0, 0))]
    found = due({Series("7", "n1", "batch", "0"): extent}, [*known, *others], settled=settled)
    assert found == ({place: expected} if expected else {})


async def test_each_look_sends_what_is_new_and_the_last_second_of_a_place_waits() -> None:
    reader, receiver = Samples(rss(10, 40, 70)), Receiver()
    assert await receiver.look(reader, [until(75)]) == [(10, "n1", 0, 0, 10), (40, "n1", 0, 0, 40)]
    assert await receiver.look(reader, [until(80)]) == []
    # The sample at the task's end, in the second of the one before, as Slurm 22.05 writes it.
    reader.pieces = [rss(10, 40), piece({"RSS": [71]}, [70])]
    assert await receiver.look(reader, [until(129)]) == []
    assert await receiver.look(reader, [until(130)]) == [(70, "n1", 0, 0, 71)]
    reader.pieces.append(rss(140, 150))
    assert await receiver.look(reader, [until(151)], ended=True) == [(140, "n1", 0, 0, 140), (150, "n1", 0, 0, 150)]
    assert await receiver.look(reader, [until(151)], ended=True) == []


async def test_new_hosts_steps_and_tasks_are_sent_though_their_samples_are_older_than_the_apis() -> None:
    reader, receiver = Samples(rss(*range(0, 900, 30))), Receiver()
    assert len(await receiver.look(reader, [until(1000)])) == 30
    # A node keeps its samples until it has many.
    reader.pieces += [rss(5, 35, host="n2"), rss(2, step="1"), rss(0, 900, task="1"), rss(3, step="batch")]
    assert await receiver.look(reader, [until(1000)]) == [
        (0, "n1", 0, 1, 0),
        (2, "n1", 1, 0, 2),
        (3, "n1", -5, 0, 3),
        (5, "n2", 0, 0, 5),
        (35, "n2", 0, 0, 35),
        (900, "n1", 0, 1, 900),
    ]
    assert await receiver.look(reader, [until(1000)]) == []


async def test_what_comes_during_a_look_is_the_next_ones() -> None:
    """A reader asks for one measurement after the other: of samples that come meanwhile it has some only."""
    reader, receiver = Samples(piece({"RSS": [1, 2], "Pages": [3, 4]}, [0, 30])), Receiver()
    reader.before_reading = lambda: reader.pieces.append(piece({"RSS": [5, 6]}, [60, 90]))
    assert [row[0] for row in await receiver.look(reader, [until(500)], ended=True)] == [0, 30]
    reader.before_reading = lambda: None
    reader.pieces.append(piece({"Pages": [7, 8]}, [60, 90]))
    assert [row[0] for row in await receiver.look(reader, [until(500)], ended=True)] == [60, 90]
    assert [row[9] for row in receiver.rows.values()] == [3, 4, 7, 8]


@pytest.mark.parametrize("calls", [0, 1, 2, 5])
async def test_after_an_interruption_the_rest_is_sent(calls: int) -> None:
    reader = Samples(rss(*range(0, 300, 7)), rss(*range(3, 100, 5), host="n0"), rss(*range(200, 290), step="batch"))
    receiver = Receiver()
    begun = await receiver.look(reader, [until(1000)], calls=calls)
    assert len(begun) == 3 * calls
    rest = await receiver.look(reader, [until(1000)])
    assert len(begun) + len(rest) == len(receiver.rows) == 43 + 20 + 90
    assert [row[0] for row in begun + rest] == sorted(row[0] for row in begun + rest)


async def test_steps_that_are_over_are_not_read_again() -> None:
    reader, receiver = Samples(*(rss(step * 100, step * 100 + 50, step=str(step)) for step in range(200))), Receiver()
    await receiver.look(reader, [until(30_000)])
    reader.asked.clear()
    reader.pieces.append(rss(20_000, 20_030, step="199"))
    assert len(await receiver.look(reader, [until(30_060)])) == 2
    assert reader.asked == [(19_951, 20_030)]
    assert await receiver.look(reader, [until(30_120)]) == []
    assert len(reader.asked) == 1


async def test_much_is_read_in_parts() -> None:
    seconds = 60_000
    reader = Samples(*(rss(*range(seconds), task=str(task)) for task in range(10)))
    parts = [part async for part in unsent(reader, [until(seconds)], [], ended=True)]
    assert sum(map(len, parts)) == 10 * seconds
    assert max(map(len, parts)) <= 2 * seconds
    newest = -1
    for part in parts:
        assert part.time.min() - START == newest + 1
        newest = int(part.time.max()) - START


async def test_tasks_of_an_array_are_summed_up_once_all_have_ended() -> None:
    """They have their hosts, steps and tasks in common, and their samples come in any order."""
    reader = Samples(rss(0, 30, job="8", step="batch"), rss(30, 60, job="9", step="batch"))
    receiver = Receiver()
    array = [JobSpan(job, SINCE, SINCE + timedelta(seconds=500), f"8_{job}") for job in ("8", "9")]
    assert await receiver.look(reader, array) == []
    expected = [(0, "n1", -5, 0, 0), (30, "n1", -5, 0, 60), (60, "n1", -5, 0, 60)]
    assert await receiver.look(reader, array, ended=True) == expected
    assert await receiver.look(reader, array, ended=True) == []
    assert await receiver.look(reader, [], ended=True) == []


async def test_a_database_that_is_away_is_told() -> None:
    def away() -> None:
        raise MetricsUnreachable("away", where="here", hint="wait")

    reader, receiver = Samples(rss(0, 30)), Receiver()
    reader.before_reading = away
    with pytest.raises(MetricsUnreachable):
        await receiver.look(reader, [until(500)])
    reader.before_reading = lambda: None
    assert len(await receiver.look(reader, [until(500)])) == 2


class Submission:
    """A submission in the real API whose job has this id in Slurm."""

    def __init__(self, api: JobbergateApi, folder: Path, job_id: int) -> None:
        with connect(api, PERSON, folder / "person") as person, connect(api, AGENT, folder / "agent") as agent:
            script = create_job_script(person, create_application(person, f"of-{folder.name}"))
            self.id: int = create_submission(person, script, client_id=AGENT)["id"]
            self.person, self.agent = (JobbergateClient(api.url, one.auth) for one in (person, agent))
        job = JobData(slurm_job_id=job_id, slurm_job_state="RUNNING", slurm_job_info="{}")
        self.agent.send(calls.tell_submitted(self.id, job))

    async def look(self, reader: MetricsReader, jobs: Sequence[JobSpan], *, ended: bool = False) -> list[int]:
        """One look, as a mirror of the job does it; the numbers of rows in the calls."""
        numbers = []
        mark = await self.agent.asend(calls.get_metrics_mark(self.id))
        async for found in unsent(reader, jobs, mark.max_times, ended=ended):
            for packed in batches(found):
                await self.agent.asend(calls.send_metrics(self.id, packed))
                numbers.append(len(msgpack.unpackb(packed)))
        return numbers

    async def newest(self, since: int = START) -> dict[Place, int]:
        mark = await self.agent.asend(calls.get_metrics_mark(self.id))
        return {Place(one.node_host, one.step, one.task): one.max_time - since for one in mark.max_times}


@pytest.fixture(scope="module")
async def submissions(
    jobbergate_api: JobbergateApi, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[..., Submission]]:
    """Makes submissions in the real API."""
    made: list[Submission] = []

    def one(job_id: int = 7) -> Submission:
        made.append(Submission(jobbergate_api, tmp_path_factory.mktemp("metrics"), job_id))
        return made[-1]

    yield one
    for submission in made:
        submission.agent.close()
        await submission.agent.aclose()
        submission.person.close()


@pytest.fixture
def reader(influx_server: InfluxServer) -> Iterator[InfluxQLReader]:
    """Of an empty database, in the real InfluxDB."""
    influx_server.query("CREATE DATABASE told")
    yield InfluxQLReader(influx_server.url, "told")
    influx_server.query("DROP DATABASE told")


async def test_rows_that_were_sent_are_read_back_and_sent_once(
    submissions: Callable[..., Submission], influx_server: InfluxServer, reader: InfluxQLReader
) -> None:
    submission = submissions()
    influx_server.write("\n".join(line(name, number + 1.5, 0, step="-5") for number, name in enumerate(NAMES)), "told")
    influx_server.write("\n".join(line("RSS", 2.2e12, when, host="n2") for when in (10, 40)), "told")
    influx_server.write(line("ReadMB", 5, 10, task="Filesystem"), "told")

    assert await submission.look(reader, [until(90)]) == [2]
    assert await submission.newest() == {("n1", -5, 0): 0, ("n2", 0, 0): 10}
    # A new step, and a new host whose samples are older than all that the API has.
    influx_server.write("\n".join([line("RSS", 1, 50, step="1"), line("RSS", 1, -20, host="n3")]), "told")
    assert await submission.look(reader, [until(99)]) == [1]
    assert await submission.look(reader, [until(99)], ended=True) == [2]
    assert await submission.look(reader, [until(99)], ended=True) == []
    # After its end, also as the API has it.
    done = JobData(slurm_job_id=7, slurm_job_state="COMPLETED", slurm_job_info="{}")
    await submission.agent.asend(calls.tell_job(submission.id, done))
    influx_server.write(line("RSS", 1, 120, host="n2"), "told")
    assert await submission.look(reader, [until(99)], ended=True) == [1]
    assert await submission.newest() == {
        ("n1", -5, 0): 0,
        ("n1", 1, 0): 50,
        ("n2", 0, 0): 120,
        ("n3", 0, 0): -20,
    }

    shown = calls.get_metrics(submission.id, start_time=START // 10 * 10, sample_rate=10)
    points = {(point.node_host, point.time - START): point for point in submission.person.send(shown)}
    batch = points["n1", 0]
    assert (batch.cpu_frequency, batch.cpu_time, batch.cpu_utilization, batch.gpu_utilization) == (1.5, 2.5, 3.5, 5.5)
    assert (batch.gpu_memory, batch.page_faults, batch.memory_rss) == (4, 6, 7)
    assert (batch.disk_read, batch.memory_virtual, batch.disk_write) == (8, 9, 10)
    assert points["n2", 40].memory_rss == 2.2e12


async def test_five_thousand_rows_go_in_several_calls_and_the_rest_of_a_broken_look_in_the_next(
    submissions: Callable[..., Submission], influx_server: InfluxServer, reader: InfluxQLReader
) -> None:
    submission = submissions()
    points = [line("RSS", when, when, task=str(task)) for when in range(1250) for task in range(4)]
    influx_server.write("\n".join(points), "told")
    mark = await submission.agent.asend(calls.get_metrics_mark(submission.id))
    [found] = [found async for found in unsent(reader, [until(1250)], mark.max_times, ended=True)]
    first, *_ = batches(found)
    # Its answer, and what was to come after it, is lost.
    await submission.agent.asend(calls.send_metrics(submission.id, first))

    assert await submission.look(reader, [until(1250)], ended=True) == [2047, 5000 - 2 * 2047]
    assert await submission.newest() == {("n1", 0, task): 1249 for task in range(4)}
    assert await submission.look(reader, [until(1250)], ended=True) == []
    week = calls.get_metrics(submission.id, start_time=START - 8 * 86400, sample_rate=604800, node="n1")
    assert sum(point.memory_rss for point in submission.person.send(week)) == pytest.approx(1249 / 2)


@pytest.mark.slurm
async def test_a_real_jobs_metrics_are_sent_while_it_runs_and_whole_at_its_end(
    profiled_cluster: SlurmCluster,
    influx_server: InfluxServer,
    submissions: Callable[..., Submission],
    tmp_path: Path,
) -> None:
    """A node of Slurm 22.05 writes a step's samples when it ends: those of the batch step come last."""
    work, go = f"{sys.executable} -c '{WORK}'", tmp_path / "go"
    job = submit(profiled_cluster, f"srun -n2 {work}\nwhile [ ! -e {go} ]; do sleep 0.1; done\nsrun -n1 {work}", "-n2")
    submission, reader = submissions(int(job.job_id)), InfluxQLReader(influx_server.url, DATABASE)
    begun = job.submitted_at

    def now() -> list[JobSpan]:
        return [JobSpan(job.job_id, begun, datetime.now(UTC))]

    async def of_both_tasks() -> dict[Series, Extent]:
        extents = await reader.extents(now())
        return extents if len(extents) == 2 else {}

    await await_until(of_both_tasks, 60, "samples of both tasks")
    sent = sum(await submission.look(reader, now()))
    # The last second of each task waits.
    newest = await submission.newest(0)
    assert {place[1:] for place in newest} == {(0, 0), (0, 1)}
    there = {place_of(series): extent.last for series, extent in (await reader.extents(now())).items()}
    assert all(newest[place] < there[place] for place in newest)

    go.touch()
    ended(profiled_cluster, job)
    sent += sum(await submission.look(reader, now(), ended=True))
    assert await submission.look(reader, now(), ended=True) == []
    metrics = (await reader.read_many(now())).of_tasks()
    newest = await submission.newest(0)
    assert {place[1:] for place in newest} == {(-5, 0), (0, 0), (0, 1), (1, 0)}
    assert newest == {place_of(series): one.last for series, one in (await reader.extents(now())).items()}
    assert sent == len(metrics)
    # All of it in one interval.
    shown = calls.get_metrics(submission.id, start_time=int(begun.timestamp()) - 8 * 86400, sample_rate=604800)
    [point] = submission.person.send(shown)
    assert point.cpu_time == pytest.approx(np.nansum(metrics["CPUTime"]))
    assert point.memory_rss == pytest.approx(np.mean(metrics["RSS"]), rel=1e-6)
    assert point.memory_rss > 1024
