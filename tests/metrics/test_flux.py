"""Reading by Flux, against a fake: no InfluxDB 2.x can be had where these tests run.

The fake answers `/api/v2/query` as InfluxDB 2.7 does: CSV, a table for each series with the header of its columns
before it and an empty line after it. It knows no Flux: what it is asked is looked at as text.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from jobbergate_flows.metrics import LibraryMissing, MetricsRefused, MetricsUnreachable
from jobbergate_flows.metrics.flux import FluxReader, query, text
from jobbergate_flows.metrics.model import Series
from jobbergate_flows.metrics.reading import SLACK, Extent, JobSpan
from tests.cluster.http_server import answering
from tests.cluster.service import free_ports
from tests.metrics.samples import SINCE, START, UNTIL

ANSWER = (
    b",result,table,_field,_measurement,_time,_value,host,job,step,task\r\n"
    b",_result,0,value,RSS,2026-09-21T14:13:20Z,1024,n1,7,-5,0\r\n"
    b",_result,0,value,RSS,2026-09-21T14:13:21.5Z,2048,n1,7,-5,0\r\n"
    b"\r\n"
    b",result,table,_field,_measurement,_time,_value,host,job,step,task\r\n"
    b",_result,1,CPUTime,task,2026-09-21T14:13:20Z,0.5,n1,7,batch,0\r\n"
    b'\r\n,result,table,_time,_value,_field,_measurement,task,"step",job,host\r\n'
    b',_result,2,2026-09-21T14:13:20Z,3,RSS,task,1,0,7,"n,""2"\r\n'
    b",_result,2,2026-09-21T14:13:21Z,,RSS,task,1,0,7,n3\r\n"
    b"\r\n"
)


async def test_tables_become_the_same_rows_as_with_influxql() -> None:
    with answering(ANSWER, kind="text/csv") as (url, asked):
        metrics = await FluxReader(url, "slurm/autogen", org="site", token="t0ken").read("7", SINCE, UNTIL)
    assert metrics.step.tolist() == ["batch", "batch", "0"]
    assert metrics.host.tolist() == ["n1", "n1", 'n,"2']
    assert (metrics.time - START).tolist() == [0, 1, 0]
    assert metrics["RSS"].tolist() == [1024, 2048, 3]
    assert metrics["CPUTime"][0] == 0.5
    assert np.isnan(metrics["CPUTime"][1:]).all()
    (request,) = asked
    assert request.path == "/api/v2/query?org=site"
    assert request.headers["Authorization"] == "Token t0ken"
    flux = json.loads(request.body)["query"]
    assert 'from(bucket: "slurm/autogen")' in flux
    # A minute of slack on both sides; the end of a range is not in it.
    assert "range(start: 2026-09-21T14:12:20Z, stop: 2026-09-21T15:14:21Z)" in flux


async def test_extents_are_asked_for_as_each_series_first_and_last() -> None:
    with answering(ANSWER, kind="text/csv") as (url, asked):
        extents = await FluxReader(url, "slurm", org="site", token="t").extents([JobSpan("7", SINCE, UNTIL)])
    assert extents == {
        Series("7", "n1", "batch", "0"): Extent(START, START + 1),
        Series("7", 'n,"2', "0", "1"): Extent(START, START),
    }
    first, last = (json.loads(request.body)["query"] for request in asked)
    assert 'set: ["RSS"]' in first
    # Each before the tables lose the tags that tell series apart.
    assert "|> first()\n  |> keep(" in first
    assert "|> last()\n  |> keep(" in last


async def test_no_table_is_no_sample() -> None:
    with answering(b"\r\n", kind="text/csv") as (url, _):
        assert len(await FluxReader(url, "slurm", org="site", token="t").read("7", SINCE, UNTIL)) == 0


async def test_samples_of_another_time_are_another_jobs() -> None:
    late = ANSWER.replace(b"2026-09-21T14:13:2", b"2026-09-21T16:13:2")
    with answering(late, kind="text/csv") as (url, _):
        assert len(await FluxReader(url, "slurm", org="site", token="t").read("7", SINCE, UNTIL)) == 0


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain", '"plain"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("${secrets}", '"\\${secrets}"'),
        ("a\n|> drop()", '"a\\n|> drop()"'),
    ],
)
def test_names_are_quoted(value: str, quoted: str) -> None:
    assert text(value) == quoted
    asked = query([JobSpan("7", SINCE, UNTIL)], value, value, SLACK)
    assert f"from(bucket: {quoted})\n" in asked
    assert f"r.cluster == {quoted})" in asked


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, MetricsRefused, r"answers 401: unauthorized access.*token"),
        (404, MetricsRefused, r"bucket slurm: InfluxDB answers 404: could not find bucket"),
        (503, MetricsUnreachable, r"answers 503: .*again later"),
    ],
)
async def test_the_servers_own_words_are_told(status: int, kind: type[Exception], words: str) -> None:
    said = {401: "unauthorized access", 404: 'could not find bucket "slurm"', 503: "overloaded"}[status]
    body = json.dumps({"code": "x", "message": said}).encode()
    with answering(body, status=status, kind="application/json") as (url, _), pytest.raises(kind, match=words):
        await FluxReader(url, "slurm", org="site", token="t").read("7", SINCE, UNTIL)


async def test_nobody_there_is_unreachable() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    reader = FluxReader(url.replace("//", "//me:pass-word@"), "slurm", org="site", token="t", timeout=2)
    with pytest.raises(MetricsUnreachable, match=rf"{url}: .*does not answer") as failed:
        await reader.read("7", SINCE, UNTIL)
    assert "pass-word" not in str(failed.value)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "influxdb_client", None)
    with pytest.raises(LibraryMissing, match=r"influxdb-client.*jobbergate-flows\[flux\]"):
        FluxReader("http://localhost", "slurm", org="site", token="t")
