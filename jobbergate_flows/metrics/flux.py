"""Reading metrics by Flux, for sites whose InfluxDB 2.x answers no InfluxQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jobbergate_flows.metrics.address import address
from jobbergate_flows.metrics.errors import LibraryMissing, MetricsRefused, MetricsUnreachable
from jobbergate_flows.metrics.influxql import GROUPED
from jobbergate_flows.metrics.model import ALWAYS, NAMES, JobMetrics, Piece, Series, step_name
from jobbergate_flows.metrics.reading import SLACK, Extent, JobSpan, extents_of, within

if TYPE_CHECKING:
    from influxdb_client.client.influxdb_client import InfluxDBClient

T = TypeVar("T")

# Not the event loop's own threads: they are few, and a database that hangs would hold up all else that needs them.
_threads = ThreadPoolExecutor(4, thread_name_prefix="flux")
_BATCH = 200
_ROWS = 10_000
# What becomes of each series: all points of it, or only its first, or only its last.
_ALL, _FIRST, _LAST = "", "first", "last"
_COLUMNS = ("_time", "_value", "_measurement", "_field", "job", "host", "step", "task")


class FluxReader:
    """Reads Slurm's samples by Flux, through `influxdb-client` (the extra `flux`).

    Args:
        url: Where InfluxDB is, such as `https://influx.example.org:8086`.
        bucket: The bucket that Slurm writes to, such as `slurm` or `slurm/autogen`.
        org: The organisation's name or id.
        token: Of somebody who may read the bucket.
        verify: Whether the server's certificate must be valid, or the path of a file with the CAs to trust.
        timeout: Seconds after which it counts as unreachable.
        cluster: Slurm's ClusterName: samples that bear another one (`ProfileInfluxDBExtraTags=cluster`) are left out.
        slack: How far outside a job's times its samples are looked for.

    Raises:
        LibraryMissing: `influxdb-client` is not installed.
    """

    def __init__(
        self,
        url: str,
        bucket: str,
        *,
        org: str,
        token: str,
        verify: bool | str = True,
        timeout: float = 60,
        cluster: str | None = None,
        slack: timedelta = SLACK,
    ) -> None:
        try:
            import influxdb_client  # noqa: F401
        except ImportError as error:
            raise LibraryMissing(
                "Flux needs influxdb-client, which is not installed", hint="pip install 'jobbergate-flows[flux]'"
            ) from error
        # Flux takes a token only, and no message shows what else stands in the URL.
        self._url = address(url).url
        self._bucket = bucket
        self._org = org
        self._token = token
        self._verify = verify
        self._timeout = timeout
        self._cluster = cluster
        self._slack = slack

    async def read(self, job_id: str, since: datetime, until: datetime) -> JobMetrics:
        """See `MetricsReader.read`."""
        return await self.read_many([JobSpan(job_id, since, until)])

    async def read_many(self, jobs: Sequence[JobSpan]) -> JobMetrics:
        """See `MetricsReader.read_many`."""
        return await self._in_thread(lambda: JobMetrics.of(self._read(jobs, NAMES, _ALL)))

    async def extents(self, jobs: Sequence[JobSpan]) -> dict[Series, Extent]:
        """See `MetricsReader.extents`."""
        return await self._in_thread(
            lambda: extents_of(piece for end in (_FIRST, _LAST) for piece in self._read(jobs, (ALWAYS,), end))
        )

    async def _in_thread(self, read: Callable[[], T]) -> T:
        # The library is synchronous; its asynchronous half would need another HTTP library.
        return await asyncio.get_running_loop().run_in_executor(_threads, read)

    def _read(self, jobs: Sequence[JobSpan], names: Sequence[str], end: str) -> list[Piece]:
        from influxdb_client.rest import ApiException
        from urllib3.exceptions import HTTPError

        pieces: list[Piece] = []
        try:
            with self._client() as client:
                for start in range(0, len(jobs), _BATCH):
                    batch = jobs[start : start + _BATCH]
                    rows = _rows(client, query(batch, self._bucket, self._cluster, self._slack, names, end))
                    pieces += within(_pieces(rows), batch, self._slack)
        except ApiException as error:
            words = " ".join(str(error.message or error.reason or error.body or "nothing").split())
            status = error.status or 0
            if status >= 500 or status == 429:
                raise MetricsUnreachable(
                    f"InfluxDB answers {status}: {words}", where=self._place, hint="ask again later"
                ) from error
            raise MetricsRefused(f"InfluxDB answers {status}: {words}", where=self._place, hint=_HINT) from error
        except (HTTPError, OSError) as error:
            raise MetricsUnreachable(
                f"InfluxDB does not answer: {error}", where=self._url, hint="see whether this host reaches it"
            ) from error
        return pieces

    def _client(self) -> InfluxDBClient:
        from influxdb_client.client.influxdb_client import InfluxDBClient

        return InfluxDBClient(
            url=self._url,
            token=self._token,
            org=self._org,
            timeout=int(self._timeout * 1000),
            verify_ssl=self._verify is not False,
            ssl_ca_cert=self._verify if isinstance(self._verify, str) else None,
            enable_gzip=True,
        )

    @property
    def _place(self) -> str:
        return f"{self._url}, bucket {self._bucket}"


_HINT = "see bucket, organisation and token"


def query(
    jobs: Sequence[JobSpan],
    bucket: str,
    cluster: str | None,
    slack: timedelta,
    names: Sequence[str] = NAMES,
    end: str = _ALL,
) -> str:
    """The query for these jobs' samples in both of Slurm's schemas (see `influxql.statements`)."""
    bounds = [job.bounds(slack) for job in jobs]
    start, stop = min(first for first, _ in bounds), max(last for _, last in bounds) + 1
    wanted = f"contains(value: r.job, set: {_set(job.raw_id for job in jobs)})"
    if cluster is not None:
        wanted += f" and (not exists r.cluster or r.cluster == {text(cluster)})"
    # Before `keep`: the tables that it makes of several are in no order.
    chosen = f"  |> {end}()\n" if end else ""
    return (
        f"from(bucket: {text(bucket)})\n"
        f"  |> range(start: {_time(start)}, stop: {_time(stop)})\n"
        f'  |> filter(fn: (r) => (r._field == "value" and contains(value: r._measurement, set: {_set(names)}))'
        f" or (r._measurement == {text(GROUPED)} and contains(value: r._field, set: {_set(names)})))\n"
        f"  |> filter(fn: (r) => {wanted})\n"
        f"{chosen}"
        f"  |> keep(columns: {_set(_COLUMNS)})\n"
    )


def text(value: str) -> str:
    """A string of Flux, quoted."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return '"' + quoted.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _set(values: Iterable[str]) -> str:
    return "[" + ", ".join(map(text, values)) + "]"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rows(client: InfluxDBClient, query: str) -> Iterator[list[str]]:
    """The answer's lines as they come: a table's header, its rows, the next table's header."""
    from influxdb_client.domain.dialect import Dialect

    dialect = Dialect(  # type: ignore[no-untyped-call]
        header=True, delimiter=",", annotations=[], comment_prefix="#", date_time_format="RFC3339"
    )
    yield from client.query_api().query_csv(query, dialect=dialect)


def _pieces(rows: Iterator[list[str]]) -> Iterator[Piece]:
    columns: dict[str, int] = {}
    while some := list(islice(rows, _ROWS)):
        samples: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
        for row in some:
            if "_value" in row and "_time" in row:
                columns = {name: place for place, name in enumerate(row)}
            elif columns and len(row) >= len(columns) and row[columns["_value"]]:
                key = tuple(row[columns[name]] if name in columns else "" for name in _COLUMNS[2:])
                times, values = samples.setdefault(key, ([], []))
                times.append(row[columns["_time"]].removesuffix("Z"))
                values.append(row[columns["_value"]])
        for (measurement, field, job, host, step, task), (times, values) in samples.items():
            yield Piece(
                Series(job, host, step_name(step), task),
                np.array(times, dtype="datetime64[s]").astype(np.int64),
                (measurement if field == "value" else field,),
                _numbers(values),
            )


def _numbers(values: list[str]) -> Any:
    return np.array([values], dtype=np.float64)
