"""What the rows for Jobbergate cost: made of a million points in InfluxDB, by this project and by Jobbergate's agent.

Run on an idle machine from the repository's folder, where Debian's `influxdb` is installed:

    .venv/bin/python -m benchmarks.jobbergate_metrics --points 1000000

The agent is `jobbergate-agent` 5.12.0 in an environment of its own, which pip makes in a temporary folder, unless
`--agent` names the Python of one. Each is measured in a process of its own:

- `ours`: all points are read; `rows` aggregates them; msgpack packs the rows.
- `agent`: the same with the agent's own functions. The first call of its aggregation, which compiles it, is one of a
  single point, and counted apart. It traces its memory in each call: `untraced` is without that.
- `look`: as the mirror does it, `unsent` and `batches`: read, aggregated and packed part by part.

It prints seconds (the median of several processes) and how many of them this side worked, rows aggregated a second, the
processes' peak of resident memory, and fails where the rows are not the same.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

AGENT = "jobbergate-agent==5.12.0"
KINDS = ("ours", "agent", "untraced", "look")
_CASTS = (int, str, int, int, float, float, float, int, float, int, int, int, int, int)
_STAGES = ("read", "compile", "aggregate", "pack", "look")


def main(points: int, hosts: int, tasks: int, agent: str | None, rounds: int) -> None:
    """Write, measure and print."""
    from benchmarks.metrics import NAMES, write_points
    from tests.cluster.influxdb import InfluxServer

    with tempfile.TemporaryDirectory() as folder, InfluxServer() as server:
        python = agent or _install(Path(folder))
        samples = points // len(NAMES) // (hosts * tasks)
        written = write_points(server, samples, hosts, tasks, grouped=False)
        print(f"{written} points of {hosts} hosts with {tasks} tasks")
        # By turns, so that what else the machine does falls on all of them.
        measured: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind in KINDS:
                measured[kind].append(_in_process(python if kind in ("agent", "untraced") else None, kind, server.url))
        for kind, found in measured.items():
            _show(kind, found)
        digests = {one["digest"] for found in measured.values() for one in found}
        if len(digests) > 1:
            raise SystemExit("the rows are not the same")
        print("the rows are the same")


def measure(kind: str, url: str) -> dict[str, Any]:
    """Measure one kind in this process."""
    return _ours(url) if kind == "ours" else _look(url) if kind == "look" else _agent(url, traced=kind == "agent")


def _ours(url: str) -> dict[str, Any]:
    import msgpack

    from jobbergate_flows.jobbergate.metrics import rows
    from jobbergate_flows.metrics.influxql import InfluxQLReader
    from jobbergate_flows.metrics.model import NAMES, JobMetrics

    imported, clock = _peak(), _Clock()
    # What it reads, before it is put together: that is the aggregation.
    pieces = asyncio.run(InfluxQLReader(url, "slurm")._read([_span()], NAMES, ""))
    clock.lap("read")
    read = _peak()
    made = rows(JobMetrics.of(pieces))
    clock.lap("aggregate")
    msgpack.packb(made)
    clock.lap("pack")
    return clock.laps | {"imported": imported, "read_peak": read, "peak": _peak()} | _digest(made)


def _look(url: str) -> dict[str, Any]:
    import msgpack

    from jobbergate_flows.jobbergate.metrics import batches, unsent
    from jobbergate_flows.metrics.influxql import InfluxQLReader

    async def look() -> list[bytes]:
        reader = InfluxQLReader(url, "slurm")
        return [packed async for part in unsent(reader, [_span()], [], ended=True) for packed in batches(part)]

    imported, clock = _peak(), _Clock()
    found = asyncio.run(look())
    clock.lap("look")
    most = _peak()
    return (
        clock.laps
        | {"imported": imported, "peak": most}
        | _digest(row for one in found for row in msgpack.unpackb(one))
    )


def _agent(url: str, *, traced: bool) -> dict[str, Any]:
    settings = {"BASE_API_URL": "http://127.0.0.1", "INFLUX_DSN": url.replace("http://", "influxdb://") + "/slurm"}
    settings |= dict.fromkeys(("OIDC_DOMAIN", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET"), "none")
    settings |= {"CACHE_DIR": tempfile.gettempdir(), "X_SLURM_USER_NAME": "root"}
    os.environ |= {f"JOBBERGATE_AGENT_{name}": value for name, value in settings.items()}

    import msgpack
    from jobbergate_agent.jobbergate.update import fetch_influx_data, fetch_influx_measurements
    from jobbergate_agent.utils.compute import aggregate_influx_measures

    aggregate = aggregate_influx_measures if traced else aggregate_influx_measures.__wrapped__

    async def read() -> list[dict[str, Any]]:
        # As its `update_job_metrics` does.
        wanted = (asyncio.to_thread(fetch_influx_data, 7, one["name"]) for one in fetch_influx_measurements())
        return [point for points in await asyncio.gather(*wanted) for point in points]

    imported, clock = _peak(), _Clock()
    points = asyncio.run(read())
    clock.lap("read")
    read_peak = _peak()
    aggregate(iter(points[:1]))
    clock.lap("compile")
    compiled = _peak()
    made = aggregate(iter(points))
    clock.lap("aggregate")
    msgpack.packb(made)
    clock.lap("pack")
    peaks = {"imported": imported, "read_peak": read_peak, "compiled_peak": compiled, "peak": _peak()}
    return clock.laps | peaks | _digest(made)


class _Clock:
    """Seconds of one stage after the other, and those that this process worked."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since, self._worked = time.monotonic(), time.process_time()

    def lap(self, stage: str) -> None:
        now, worked = time.monotonic(), time.process_time()
        self.laps |= {stage: now - self._since, f"{stage}_worked": worked - self._worked}
        self._since, self._worked = time.monotonic(), time.process_time()


def _span() -> Any:
    from datetime import timedelta

    from benchmarks.metrics import START
    from jobbergate_flows.metrics.model import moment
    from jobbergate_flows.metrics.reading import JobSpan

    return JobSpan("7", moment(START), moment(START) + timedelta(days=365))


def _peak() -> float:
    """Of this process's resident memory, in MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def _digest(made: Iterable[Any]) -> dict[str, Any]:
    """The rows as the API keeps them: what they are, and how many."""
    kept = sorted(tuple(cast(value) for cast, value in zip(_CASTS, row, strict=True)) for row in made)
    return {"rows": len(kept), "digest": hashlib.sha256(repr(kept).encode()).hexdigest()}


def _install(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-input", AGENT], check=True)
    return str(python)


def _in_process(python: str | None, kind: str, url: str) -> dict[str, Any]:
    # By its path: the agent's environment has nothing of this project.
    start = (
        [python, "-P", str(Path(__file__).resolve())]
        if python
        else [sys.executable, "-m", "benchmarks.jobbergate_metrics"]
    )
    done = subprocess.run([*start, "--measure", kind, url], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _show(kind: str, found: list[dict[str, Any]]) -> None:
    def median(name: str) -> float:
        return statistics.median(one[name] for one in found)

    stages = [
        f"{stage} {median(stage):.2f} s ({median(f'{stage}_worked'):.2f} worked)"
        for stage in _STAGES
        if stage in found[0]
    ]
    peaks = {"imported": "imported", "read_peak": "with the points", "compiled_peak": "compiled", "peak": "at the most"}
    memory = [f"{words} {median(name):.0f} MiB" for name, words in peaks.items() if name in found[0]]
    rate = f"; {found[0]['rows'] / median('aggregate'):.0f} rows aggregated a second" if "aggregate" in found[0] else ""
    print(f"{kind}: {', '.join(stages)}{rate}; peak {', '.join(memory)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000, help="how many points are written and read")
    parser.add_argument("--hosts", type=int, default=10, help="of how many hosts")
    parser.add_argument("--tasks", type=int, default=10, help="with how many tasks each")
    parser.add_argument("--agent", help="the Python of an environment with jobbergate-agent")
    parser.add_argument("--rounds", type=int, default=3, help="in how many processes each is measured")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "URL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
    else:
        main(given.points, given.hosts, given.tasks, given.agent, given.rounds)
