"""Reading from a real InfluxDB 1.x over InfluxQL."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest

from jobbergate_flows.metrics import MetricsRefused, MetricsUnreachable
from jobbergate_flows.metrics.influxql import InfluxQLReader
from jobbergate_flows.metrics.model import NAMES, JobMetrics, Series
from jobbergate_flows.metrics.reading import Extent, JobSpan, MetricsFollower
from tests.cluster.http_server import answering
from tests.cluster.influxdb import DATABASE, PASSWORD, USER, InfluxServer
from tests.cluster.service import free_ports
from tests.cluster.waiting import with_turns
from tests.metrics.samples import SINCE, START, UNTIL, grouped, line


@pytest.fixture
def database(influx_server: InfluxServer) -> Iterator[str]:
    """An empty database."""
    name = "own"
    influx_server.query(f"CREATE DATABASE {name}")
    yield name
    influx_server.query(f"DROP DATABASE {name}")


@pytest.fixture
def reader(influx_server: InfluxServer, database: str) -> InfluxQLReader:
    return InfluxQLReader(influx_server.url, database)


def rows(metrics: JobMetrics, *names: str) -> list[tuple[object, ...]]:
    """Host, step, task, seconds after START, and some measurements."""
    columns = [metrics[name].tolist() for name in names]
    return list(
        zip(
            metrics.host.tolist(),
            metrics.step.tolist(),
            metrics.task.tolist(),
            (metrics.time - START).tolist(),
            *columns,
            strict=True,
        )
    )


async def test_a_jobs_samples_are_rows_of_all_its_measurements(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    points = [line(name, number + 0.5, 0) for number, name in enumerate(NAMES)]
    points += [line("RSS", 7, 1), line("RSS", 9, 0, task="1"), line("RSS", 11, 0, step="-5")]
    influx_server.write("\n".join(points), database)
    metrics = await reader.read("7", SINCE, UNTIL)
    assert rows(metrics, "RSS") == [
        ("n1", "batch", "0", 0, 11),
        ("n1", "0", "0", 0, 6.5),
        ("n1", "0", "0", 1, 7),
        ("n1", "0", "1", 0, 9),
    ]
    assert metrics.values[:, 1].tolist() == [number + 0.5 for number in range(10)]


async def test_grouped_fields_are_read_like_single_measurements(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    influx_server.write(
        "\n".join(
            [
                grouped("CPUTime=1.5,RSS=100i,WriteMB=3", 0, tags="cluster=a,sluid=s1,uid=5,user=eve", step="batch"),
                grouped("CPUTime=2.5,RSS=200i", 1, step="4294967291", tags="cluster=a"),
                # File systems and networks have measurements of their own, whose fields have the same names.
                f"filesystem,host=n1,job=7,step=batch ReadMB=1000 {START}",
            ]
        ),
        database,
    )
    metrics = await reader.read("7", SINCE, UNTIL)
    assert rows(metrics, "CPUTime", "RSS") == [("n1", "batch", "0", 0, 1.5, 100), ("n1", "batch", "0", 1, 2.5, 200)]
    assert np.isnan(metrics["ReadMB"]).all()


async def test_points_that_differ_in_other_tags_are_one_sample(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    influx_server.write("\n".join(grouped(f"RSS={value}i", 0, tags=f"uid={value}") for value in (1, 2, 4)), database)
    assert (await reader.read("7", SINCE, UNTIL))["RSS"].tolist() == [7]


async def test_another_clusters_job_of_the_same_id_is_left_out(influx_server: InfluxServer, database: str) -> None:
    influx_server.write(
        "\n".join([grouped("RSS=1i", 0, tags="cluster=a"), grouped("RSS=2i", 0, tags="cluster=b"), line("RSS", 4, 1)]),
        database,
    )
    reader = InfluxQLReader(influx_server.url, database, cluster="a")
    assert (await reader.read("7", SINCE, UNTIL))["RSS"].tolist() == [1, 4]


async def test_an_older_job_of_the_same_id_is_another(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    influx_server.write(
        "\n".join([line("RSS", 1, -7200), line("RSS", 2, -61), line("RSS", 3, -59), line("RSS", 4, 30),
                   line("RSS", 5, 3659), line("RSS", 6, 3661), line("RSS", 7, 30, job=77)]),
        database,
    )  # fmt: skip
    assert (await reader.read("7", SINCE, UNTIL))["RSS"].tolist() == [3, 4, 5]
    older = SINCE - timedelta(hours=2)
    assert (await reader.read("7", older, older + timedelta(minutes=5)))["RSS"].tolist() == [1]


async def test_many_jobs_are_told_apart_by_their_names_and_times(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    influx_server.write(
        "\n".join(line("RSS", job, time, job=job) for job in range(1, 451) for time in (0, 5000)), database
    )
    jobs = [JobSpan(str(job), SINCE, UNTIL, f"9_{job}") for job in range(1, 451)]
    jobs[0] = JobSpan("1", SINCE + timedelta(seconds=5000), UNTIL + timedelta(seconds=5000), "9_1")
    metrics = await reader.read_many(jobs)
    assert metrics.job.tolist() == [f"9_{job}" for job in range(1, 451)]
    assert metrics["RSS"].tolist() == list(range(1, 451))
    assert (metrics.time - START).tolist() == [5000] + [0] * 449


async def test_a_long_series_comes_in_several_chunks_and_whole(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    count = 25_000
    influx_server.write("\n".join(line("RSS", time * 3, time) for time in range(count)), database)
    metrics = await reader.read("7", SINCE, SINCE + timedelta(seconds=count))
    assert (metrics.time - START).tolist() == list(range(count))
    assert metrics["RSS"].tolist() == [3 * time for time in range(count)]


async def test_no_sample_and_no_measurement_are_no_error(reader: InfluxQLReader) -> None:
    metrics = await reader.read("4711", SINCE, UNTIL)
    assert len(metrics) == 0
    assert metrics.to_csv().count("\n") == 1
    assert len(await reader.read_many([])) == 0


async def test_names_are_quoted(influx_server: InfluxServer) -> None:
    name = "a\"b'c; DROP DATABASE slurm"
    quoted = name.replace('"', '\\"')
    influx_server.query(f'CREATE DATABASE "{quoted}"')
    try:
        influx_server.query(f'CREATE RETENTION POLICY "{quoted}" ON "{quoted}" DURATION INF REPLICATION 1 DEFAULT')
        influx_server.write(grouped("RSS=5i", 0, host="x'\\ y\\=", tags="cluster=o'neill"), name)
        reader = InfluxQLReader(influx_server.url, name, retention_policy=name, cluster="o'neill")
        metrics = await reader.read("7", SINCE, UNTIL)
        assert rows(metrics, "RSS") == [("x' y=", "0", "0", 0, 5)]
        evil = InfluxQLReader(influx_server.url, name, cluster="' OR cluster =~ /.*/ OR cluster = '")
        assert len(await evil.read("7", SINCE, UNTIL)) == 0
        assert DATABASE in str(influx_server.query("SHOW DATABASES"))
    finally:
        influx_server.query(f'DROP DATABASE "{quoted}"')


@pytest.mark.parametrize("job_id", ["7_1", "7' OR '1'='1", "", "٧", "7\n"])
async def test_only_raw_ids_are_taken(reader: InfluxQLReader, job_id: str) -> None:
    with pytest.raises(MetricsRefused, match=r"no raw job id.*JobIDRaw"):
        await reader.read(job_id, SINCE, UNTIL)


async def test_times_without_a_zone_are_refused(reader: InfluxQLReader) -> None:
    with pytest.raises(MetricsRefused, match="aware"):
        await reader.read("7", datetime(2026, 1, 1), UNTIL)


async def test_the_servers_own_words_are_told(influx_server: InfluxServer, database: str) -> None:
    with pytest.raises(MetricsRefused, match=r"database nix: InfluxDB says: database not found: nix.*acct_gather.conf"):
        await InfluxQLReader(influx_server.url, "nix").read("7", SINCE, UNTIL)
    with pytest.raises(MetricsRefused, match="retention policy not found: nix"):
        await InfluxQLReader(influx_server.url, database, retention_policy="nix").read("7", SINCE, UNTIL)


async def test_a_user_must_be_the_right_one() -> None:
    with InfluxServer(authenticate=True) as server:
        server.write(line("RSS", 1, 0))
        right = InfluxQLReader(server.url, DATABASE, username=USER, password=PASSWORD)
        assert len(await right.read("7", SINCE, UNTIL)) == 1
        for reader in (
            InfluxQLReader(server.url, DATABASE),
            InfluxQLReader(server.url, DATABASE, username=USER, password="no"),
            InfluxQLReader(server.url, "other", username=USER, password=PASSWORD),
        ):
            with pytest.raises(MetricsRefused, match=r"InfluxDB (answers 40[13]|says): .*auth") as refused:
                await reader.read("7", SINCE, UNTIL)
            assert PASSWORD not in str(refused.value)
        host = server.url.removeprefix("http://")
        assert len(await InfluxQLReader(f"http://{USER}:{PASSWORD}@{host}", DATABASE).read("7", SINCE, UNTIL)) == 1
        for place, kind in ((host, MetricsRefused), (f"127.0.0.1:{free_ports(1)[0]}", MetricsUnreachable)):
            with pytest.raises(kind) as failed:
                await InfluxQLReader(f"http://{USER}:other-word@{place}", DATABASE).read("7", SINCE, UNTIL)
            assert place in str(failed.value)
            assert "other-word" not in str(failed.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that nobody signed; its key is beside it."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate


async def test_a_certificate_must_be_valid(certificate: Path) -> None:
    with InfluxServer(certificate=certificate, key=certificate.with_name("key.pem")) as server:
        server.write(line("RSS", 1, 0))
        with pytest.raises(MetricsUnreachable, match=r"CERTIFICATE_VERIFY_FAILED.*name the CA"):
            await InfluxQLReader(server.url, DATABASE).read("7", SINCE, UNTIL)
        for verify in (str(certificate), False):
            assert len(await InfluxQLReader(server.url, DATABASE, verify=verify).read("7", SINCE, UNTIL)) == 1
        with pytest.raises(MetricsRefused, match=r"CAs cannot be read.*PEM"):
            await InfluxQLReader(server.url, DATABASE, verify=f"{certificate}.no").read("7", SINCE, UNTIL)


async def test_nobody_there_is_unreachable() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(MetricsUnreachable, match=rf"{url}: InfluxDB does not answer"):
        await InfluxQLReader(url, DATABASE).read("7", SINCE, UNTIL)
    with pytest.raises(MetricsRefused, match="malformed"):
        await InfluxQLReader("influx:8086", DATABASE).read("7", SINCE, UNTIL)


async def test_a_server_that_stands_still_is_unreachable_after_the_timeout() -> None:
    with InfluxServer() as server:
        server.service.pause()
        try:
            with pytest.raises(MetricsUnreachable, match="does not answer"):
                await InfluxQLReader(server.url, DATABASE, timeout=0.3).read("7", SINCE, UNTIL)
        finally:
            server.service.resume()


def answer(values: list[list[float | None]], **more: object) -> bytes:
    """As no InfluxDB 1.x says it itself: later versions, proxies, broken answers."""
    series = {
        "name": "RSS",
        "tags": {"job": "7", "host": "h", "step": "0", "task": "0"},
        "columns": ["time", "value"],
        "values": values,
    }
    return json.dumps({"results": [{"statement_id": 6, "series": [series], **more}]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (503, b'{"error": "write buffer full"}', MetricsUnreachable, "answers 503: write buffer full.*again later"),
        (429, b"slow down", MetricsUnreachable, "answers 429: slow down"),
        (401, b'{"code":"unauthorized","message":"unauthorized access"}', MetricsRefused, "unauthorized access.*token"),
        (404, b"<html>nothing here</html>", MetricsRefused, "answers 404: <html>nothing here.*InfluxDB's own"),
        (302, b"", MetricsRefused, "answers 302"),
        (200, b"<html>welcome</html>", MetricsRefused, "none of InfluxDB's: <html>welcome"),
        (200, b"[]", MetricsRefused, "none of InfluxDB's"),
        (200, b'{"error": "no"}', MetricsRefused, "answers 200: no"),
        (200, b'{"results":[{"error":"query-timeout limit exceeded: timeout"}]}', MetricsUnreachable, "timeout"),
        (200, answer([[START, 1]], partial=True), MetricsRefused, "cut its answer off.*max-row-limit"),
        (200, answer([[START, 1]])[:-5], MetricsRefused, "none of InfluxDB's"),
    ],
)
async def test_what_is_no_answer_is_no_data(status: int, body: bytes, kind: type[Exception], words: str) -> None:
    with answering(body, status=status) as (url, _), pytest.raises(kind, match=words):
        await InfluxQLReader(url, DATABASE).read("7", SINCE, UNTIL)


async def test_a_server_that_does_not_divide_its_answer_is_understood_and_gets_the_token() -> None:
    with answering(answer([[START, 1], [START + 1, None]])) as (url, asked):
        metrics = await InfluxQLReader(f"{url}/", "bucket", token="secret").read("7", SINCE, UNTIL)
    assert metrics["RSS"].tolist()[:1] == [1]
    assert asked[0].headers["Authorization"] == "Token secret"
    assert parse_qs(asked[0].body.decode())["db"] == ["bucket"]


async def test_extents_are_from_the_first_sample_of_a_series_to_its_last_in_both_schemas(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    points = [line("RSS", 1, time) for time in range(10, 2000, 10)]
    points += [line(name, 1, 7, step="-5") for name in NAMES]
    points += [grouped("CPUTime=1,RSS=1i", time, task="1", tags=f"uid={time}") for time in (30, 20, 40)]
    points += [line("RSS", 1, -3000), line("RSS", 1, 5, job=77), line("ReadMB", 1, 1, task="Filesystem")]
    influx_server.write("\n".join(points), database)
    assert await reader.extents([JobSpan("7", SINCE, UNTIL)]) == {
        Series("7", "n1", "0", "0"): Extent(START + 10, START + 1990),
        Series("7", "n1", "0", "1"): Extent(START + 20, START + 40),
        Series("7", "n1", "batch", "0"): Extent(START + 7, START + 7),
    }
    assert await reader.extents([JobSpan("8", SINCE, UNTIL)]) == {}
    assert await reader.extents([JobSpan("7", SINCE, UNTIL, "a"), JobSpan("77", SINCE, UNTIL, "a")]) == {
        Series("a", "n1", "0", "0"): Extent(START + 5, START + 1990),
        Series("a", "n1", "0", "1"): Extent(START + 20, START + 40),
        Series("a", "n1", "batch", "0"): Extent(START + 7, START + 7),
    }


async def test_a_running_jobs_samples_come_once_also_the_late_ones(
    influx_server: InfluxServer, database: str, reader: InfluxQLReader
) -> None:
    follower = MetricsFollower(reader, JobSpan("7", SINCE, UNTIL))
    assert len(await follower.update(SINCE)) == 0
    influx_server.write("\n".join(line("RSS", time, time) for time in range(0, 3000, 10)), database)
    first = await follower.update(SINCE + timedelta(seconds=3000))
    assert len(first) == 300
    # Another task's come late, and some of the first's anew.
    influx_server.write(
        "\n".join(line("RSS", time, time, task="1") for time in range(2500, 3000, 10)) + "\n" + line("RSS", -1, 2990),
        database,
    )
    second = await follower.update(SINCE + timedelta(seconds=3001))
    assert len(second) == 350
    assert second["RSS"].min() == -1
    # What is older than any node keeps comes with the end.
    influx_server.write(line("RSS", 5, 5, task="2"), database)
    assert len(await follower.update(SINCE + timedelta(seconds=3002))) == 350
    assert len(await follower.finish(SINCE + timedelta(seconds=3003))) == 351


async def test_reading_leaves_the_loop_free(influx_server: InfluxServer, database: str, reader: InfluxQLReader) -> None:
    influx_server.write(
        "\n".join(line("RSS", time, time % 3000, task=str(time // 3000)) for time in range(9000)), database
    )
    _, turns = await with_turns(reader.read("7", SINCE, UNTIL))
    assert turns > 10
