"""Reading metrics over InfluxQL's HTTP endpoint: InfluxDB 1.x, and `/query` of 2.x and 3.

Answers are read as chunked JSON, a line for each chunk: in CSV InfluxDB 1.x leaves out what it says of a statement that
failed (measured on 1.6: a database that does not exist looks like one without points), and it is no faster.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np
import orjson

from jobbergate_flows.metrics.address import address
from jobbergate_flows.metrics.errors import MetricsRefused, MetricsUnreachable
from jobbergate_flows.metrics.model import ALWAYS, NAMES, JobMetrics, Piece, Series, step_name
from jobbergate_flows.metrics.reading import SLACK, Extent, JobSpan, extents_of, within

GROUPED = "task"
"""The measurement in which Slurm 26.05 with `grouped_fields` writes a task's sample, one field for each of `NAMES`."""

# What a statement ends with: all points of each series, or only its first, or only its last.
_ALL, _FIRST, _LAST = "", " LIMIT 1", " ORDER BY time DESC LIMIT 1"
_CHUNK = 10_000
_BATCH = 200
# Words for what may be otherwise later, in answers of status 200.
_PASSING = ("timeout", "query interrupted", "max-concurrent-queries", "engine is closed")
_MAX_WORDS = 500


class InfluxQLReader:
    """Reads Slurm's samples by InfluxQL.

    Args:
        url: Where InfluxDB is, such as `https://influx.example.org:8086`; a user and password in it count where no
            others are given, and no message shows them.
        database: Slurm's `ProfileInfluxDBDatabase`; of 2.x and 3 the bucket or database mapped to it.
        retention_policy: Slurm's `ProfileInfluxDBRTPolicy`, if it is not the database's default.
        username, password: Of a user who may read the database.
        token: Instead of them, for 2.x and 3.
        verify: Whether the server's certificate must be valid, or the path of a file with the CAs to trust.
        timeout: Seconds without a byte after which it counts as unreachable.
        cluster: Slurm's ClusterName: samples that bear another one (`ProfileInfluxDBExtraTags=cluster`) are left out.
        slack: How far outside a job's times its samples are looked for.
    """

    def __init__(
        self,
        url: str,
        database: str,
        *,
        retention_policy: str | None = None,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        verify: bool | str = True,
        timeout: float = 60,
        cluster: str | None = None,
        slack: timedelta = SLACK,
    ) -> None:
        place = address(url)
        self._url = place.url
        self._database = database
        self._retention_policy = retention_policy
        if not username and not token:
            username, password = place.username, place.password
        self._auth = (username, password or "") if username else None
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Token {token}"} if token else {})
        self._verify = verify
        self._timeout = timeout
        self._cluster = cluster
        self._slack = slack

    async def read(self, job_id: str, since: datetime, until: datetime) -> JobMetrics:
        """See `MetricsReader.read`."""
        return await self.read_many([JobSpan(job_id, since, until)])

    async def read_many(self, jobs: Sequence[JobSpan]) -> JobMetrics:
        """See `MetricsReader.read_many`."""
        return await asyncio.to_thread(JobMetrics.of, await self._read(jobs, NAMES, _ALL))

    async def extents(self, jobs: Sequence[JobSpan]) -> dict[Series, Extent]:
        """See `MetricsReader.extents`."""
        return extents_of(await self._read(jobs, (ALWAYS,), _FIRST, _LAST))

    async def _read(self, jobs: Sequence[JobSpan], names: Sequence[str], *ends: str) -> list[Piece]:
        pieces: list[Piece] = []
        for start in range(0, len(jobs), _BATCH):
            batch = jobs[start : start + _BATCH]
            unfinished: dict[int, bool] = {}
            query = "; ".join(
                statements(batch, self._retention_policy, self._cluster, self._slack, names, end) for end in ends
            )
            async for line in self._lines(query):
                results = self._results(line) if line.strip() else []
                unfinished |= {result.get("statement_id", 0): result.get("partial", False) for result in results}
                pieces += within(_pieces(results), batch, self._slack)
            if any(unfinished.values()):
                raise MetricsRefused(
                    "InfluxDB cut its answer off",
                    where=self._place,
                    hint="see max-row-limit in influxdb.conf",
                )
        return pieces

    async def _lines(self, query: str) -> AsyncIterator[bytes]:
        form = {"db": self._database, "q": query, "epoch": "s", "chunked": "true", "chunk_size": str(_CHUNK)}
        try:
            async with (
                httpx.AsyncClient(auth=self._auth, verify=self._context(), timeout=self._timeout) as client,
                client.stream("POST", f"{self._url}/query", data=form, headers=self._headers) as answer,
            ):
                if answer.is_error or answer.is_redirect:
                    raise self._refused(answer.status_code, await answer.aread())
                begun: list[bytes] = []
                async for data in answer.aiter_bytes():
                    head, *lines = data.split(b"\n")
                    begun.append(head)
                    for line in lines:
                        yield b"".join(begun)
                        begun = [line]
                yield b"".join(begun)
        except httpx.InvalidURL as error:
            raise MetricsRefused(f"the URL is malformed: {error}", where=self._url, hint=_URL_HINT) from error
        except httpx.UnsupportedProtocol as error:
            raise MetricsRefused(f"the URL is malformed: {error}", where=self._url, hint=_URL_HINT) from error
        except httpx.TransportError as error:
            raise MetricsUnreachable(
                f"InfluxDB does not answer: {error or type(error).__name__}", where=self._url, hint=_hint(error)
            ) from error

    def _context(self) -> bool | ssl.SSLContext:
        if isinstance(self._verify, bool):
            return self._verify
        try:
            return ssl.create_default_context(cafile=self._verify)
        except OSError as error:
            raise MetricsRefused(
                f"the CAs cannot be read: {error}", where=self._verify, hint="name a PEM file of certificates"
            ) from error

    def _results(self, line: bytes) -> list[dict[str, Any]]:
        try:
            said = orjson.loads(line)
            if "error" in said:
                raise self._refused(200, line)
            results: list[dict[str, Any]] = said["results"]
        except (orjson.JSONDecodeError, TypeError, KeyError) as error:
            raise MetricsRefused(
                f"the answer is none of InfluxDB's: {_words(line)}", where=self._url, hint=_URL_HINT
            ) from error
        for result in results:
            if words := result.get("error"):
                kind = MetricsUnreachable if any(word in words for word in _PASSING) else MetricsRefused
                raise kind(f"InfluxDB says: {words}", where=self._place, hint=_REFUSED_HINT)
        return results

    def _refused(self, status: int, body: bytes) -> MetricsRefused | MetricsUnreachable:
        try:
            said = orjson.loads(body)
            words = said.get("error") or said["message"]
        except (orjson.JSONDecodeError, AttributeError, KeyError):
            words = _words(body)
        if status >= 500 or status == 429:
            return MetricsUnreachable(f"InfluxDB answers {status}: {words}", where=self._place, hint="ask again later")
        hint = "see the user or the token, and whether it may read the database" if status in (401, 403) else _URL_HINT
        return MetricsRefused(f"InfluxDB answers {status}: {words}", where=self._place, hint=hint)

    @property
    def _place(self) -> str:
        return f"{self._url}, database {self._database}"


_URL_HINT = "the URL is InfluxDB's own, such as http://influx.example.org:8086"
_REFUSED_HINT = "see database and retention policy: they are in Slurm's acct_gather.conf"


def _hint(error: httpx.TransportError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the CA that signed its certificate, or switch the verification off"
    return "see whether it runs, and whether this host reaches it"


def _words(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:_MAX_WORDS] or "nothing"


def statements(
    jobs: Sequence[JobSpan],
    retention_policy: str | None,
    cluster: str | None,
    slack: timedelta,
    names: Sequence[str] = NAMES,
    end: str = _ALL,
) -> str:
    """The query for these jobs' samples in both of Slurm's schemas: a statement for each measurement, and one more.

    Slurm writes a series with the field `value` for each measurement or, with `grouped_fields` (26.05), one series with
    a field for each; more tags, such as the user, do not divide a task's samples.
    """
    bounds = [job.bounds(slack) for job in jobs]
    first, last = min(first for first, _ in bounds), max(last for _, last in bounds)
    chosen = " OR ".join(f"job = {text(job.raw_id)}" for job in jobs)
    condition = f"({chosen}) AND time >= {first}s AND time <= {last}s"
    if cluster is not None:
        # A tag that is not there is an empty one.
        condition += f" AND (cluster = {text(cluster)} OR cluster = '')"
    policy = f"{name(retention_policy)}." if retention_policy else ""
    selects = [("value", measurement) for measurement in names]
    selects.append((", ".join(map(name, names)), GROUPED))
    return "; ".join(
        f"SELECT {fields} FROM {policy}{name(measurement)} WHERE {condition} GROUP BY job, host, step, task{end}"
        for fields, measurement in selects
    )


def text(value: str) -> str:
    """A string of InfluxQL, quoted."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def name(value: str) -> str:
    """An identifier of InfluxQL, quoted."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _pieces(results: list[dict[str, Any]]) -> Iterator[Piece]:
    for result in results:
        for found in result.get("series", ()):
            rows = np.array(found["values"], dtype=np.float64)
            if not len(rows):
                continue
            names = (found["name"],) if found["name"] in NAMES else tuple(found["columns"][1:])
            job, host, step, task = (found["tags"].get(tag) or "" for tag in ("job", "host", "step", "task"))
            series = Series(job, host, step_name(step), task)
            yield Piece(series, rows[:, 0].astype(np.int64), names, np.ascontiguousarray(rows[:, 1:].T))
