"""What a run's pages cost: requests to the Prefect server and the worker's processor time; how soon output is seen.

Run as root on Debian from the repository's folder, on an idle machine:

    .venv/bin/python -m benchmarks.pages

It starts a real Slurm that writes to a real InfluxDB, a real Prefect server on PostgreSQL, and, one after the other, a
worker without live pages, one with them, and one with metrics as well. Each brings `--runs` runs of a job of 12 seconds
to their ends, one at a time. A proxy between worker and server counts the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    _PORT = int(_probe.getsockname()[1])
# Before Prefect is imported.
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{_PORT}/api"

import httpx
import uvicorn
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jobbergate_flows.blocks import InfluxMetrics
from tests.cluster.influxdb import DATABASE, InfluxServer
from tests.cluster.postgres import PostgresServer
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.service import free_ports
from tests.cluster.site import Site, message, script_application
from tests.cluster.slurm import SlurmCluster
from tests.cluster.worker import WorkerProcess

_SCRIPT = """#!/bin/bash
#SBATCH --time=5
for step in $(seq 10); do echo "step $step at $(date +%s.%N)"; sleep 1; done
"""
_PREFIX = "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_"


class CountingProxy:
    """Hands every request on to a server, and counts them."""

    def __init__(self, target: str) -> None:
        self.port = free_ports(1)[0]
        self.counts: Counter[str] = Counter()
        self._target = target
        self._client = httpx.AsyncClient(timeout=60)
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        application = Starlette(routes=[Route("/{path:path}", self._hand_on, methods=methods)])
        config = uvicorn.Config(application, host="127.0.0.1", port=self.port, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> CountingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    async def _hand_on(self, request: Request) -> Response:
        kind = next((part for part in request.url.path.split("/")[2:] if part), "")
        self.counts[f"{request.method} {kind}"] += 1
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        answer = await self._client.request(
            request.method,
            f"{self._target}{request.url.path}?{request.url.query}",
            content=await request.body(),
            headers=headers,
        )
        kept = {name: value for name, value in answer.headers.items() if name.lower() in ("content-type",)}
        return Response(answer.content, answer.status_code, kept)


async def main(runs: int) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        influx = stack.enter_context(InfluxServer())
        slurm = stack.enter_context(SlurmCluster(profile=influx))
        database = stack.enter_context(PostgresServer()).url("asyncpg")
        server = stack.enter_context(PrefectServer(_PORT, database))
        block = InfluxMetrics(url=influx.url, database=DATABASE, retention_policy="autogen")
        await block.asave("benchmark")
        for name, settings in {
            "without live pages": {"LIVE": "false"},
            "with live pages": {},
            "with live pages and metrics": {"METRICS": "benchmark"},
        }.items():
            own = folder / name.replace(" ", "-")
            own.mkdir()
            with CountingProxy(server.url) as proxy:
                await measure(name, settings, slurm, own, proxy, runs)


async def measure(
    name: str, settings: Mapping[str, str], slurm: SlurmCluster, folder: Path, proxy: CountingProxy, runs: int
) -> None:
    environment = {
        "PREFECT_API_URL": f"http://127.0.0.1:{proxy.port}/api",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        f"{_PREFIX}CLUSTER": "slurm",
        f"{_PREFIX}LEDGER": str(folder / "ledger.sqlite3"),
        "SLURM_CONF": str(slurm.conf),
        "HOME": str(folder),
        **{f"{_PREFIX}{key}": value for key, value in settings.items()},
    }
    pool = folder.name
    worker = WorkerProcess(pool, folder, environment)
    site = Site(slurm, folder, pool, worker, environment)
    site.jobs.mkdir()
    await site.make_pool()
    deployed = await site.deploy(script_application(folder, "steps", _SCRIPT))
    worker.start()
    try:
        await site.end(await site.start(deployed), 180)
        idle = await rates(site, proxy, 20)
        proxy.counts.clear()
        before, began = processor_seconds(site), asyncio.get_running_loop().time()
        delays: list[float] = []
        for _ in range(runs):
            run_id = await site.start(deployed)
            ended = await site.end(run_id, 180)
            assert ended.state_name == "Completed", message(ended)
            delays += await seen_after(run_id)
        lasted = asyncio.get_running_loop().time() - began
        asked = sum(proxy.counts.values()) / runs - idle[0] * lasted / runs
        used = (processor_seconds(site) - before) / runs - idle[1] * lasted / runs
        print(f"{name}: {asked:.0f} requests and {used:.2f} s of the worker's processor a run", flush=True)
        print(f"    {', '.join(f'{kind} {count / runs:.1f}' for kind, count in proxy.counts.most_common(8))}")
        print(
            f"    from a line's writing to its time in the run's logs: median {statistics.median(delays):.1f} s, "
            f"longest {max(delays):.1f} s",
            flush=True,
        )
    finally:
        worker.stop()


async def rates(site: Site, proxy: CountingProxy, seconds: float) -> tuple[float, float]:
    """Requests and processor seconds a second of a worker that has nothing to do."""
    proxy.counts.clear()
    before = processor_seconds(site)
    await asyncio.sleep(seconds)
    return sum(proxy.counts.values()) / seconds, (processor_seconds(site) - before) / seconds


async def seen_after(run_id: Any) -> list[float]:
    """Seconds from the time that each line of output says, to that of its entry in the run's logs."""
    async with get_client() as client:
        logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200)
    written = [(log, log.message.split(" at ")) for log in logs if log.message.startswith("step ")]
    return [log.timestamp.timestamp() - float(said[1]) for log, said in written]


def processor_seconds(site: Site) -> float:
    """What the worker has used of the processor, Slurm's commands that it ran included."""
    assert site.worker.process is not None
    fields = Path(f"/proc/{site.worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each worker")
    asyncio.run(main(parser.parse_args().runs))
