"""What a run costs: latencies, and the worker's memory with many runs waiting in Slurm's queue.

Run as root on Debian from the repository's folder, on an idle machine:

    .venv/bin/python -m benchmarks.runs --waiting 1 100 500

It starts a real Slurm, a real Prefect server on PostgreSQL (with `--sqlite`: on SQLite) and a worker, and prints
medians of `--repeat` runs in seconds: from the creation of a run to its Slurm id, and from the end of its job to its
final state; then, for each number of waiting runs, the worker's resident memory in MiB, and what one run more costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from uuid import UUID

with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    _PORT = int(_probe.getsockname()[1])
# Before Prefect is imported.
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{_PORT}/api"

from tests.cluster.postgres import PostgresServer
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site, script_application
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess


async def main(waiting: list[int], repeat: int, query_seconds: float, sqlite: bool) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        slurm = stack.enter_context(SlurmCluster())
        database = None if sqlite else stack.enter_context(PostgresServer()).url("asyncpg")
        server = stack.enter_context(PrefectServer(_PORT, database))
        folder = Path(name)
        environment = {
            "PREFECT_API_URL": server.api_url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": str(query_seconds),
            "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_CLUSTER": "slurm",
            "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_LEDGER": str(folder / "ledger.sqlite3"),
            "SLURM_CONF": str(slurm.conf),
            "HOME": str(folder),
        }
        worker = WorkerProcess("benchmark", folder, environment)
        site = Site(slurm, folder, "benchmark", worker, environment)
        site.jobs.mkdir()
        await site.make_pool()
        worker.start()
        try:
            await latencies(site, repeat)
            await memory(site, sorted(waiting))
        finally:
            worker.stop()


async def latencies(site: Site, repeat: int) -> None:
    deployed = await site.deploy(script_application(site.folder, "quick", "#!/bin/bash\ntrue\n"))
    to_id, to_end = [], []
    for _ in range(repeat):
        run_id = await site.start(deployed)
        run = await site.end(run_id)
        (submission,) = site.submissions(run_id)
        created, final = run.created, run.end_time
        assert created is not None
        assert final is not None
        assert submission.submitted_at is not None
        to_id.append((submission.submitted_at - created).total_seconds())
        ended = site.slurm.run("sacct", "-X", "-n", "-P", "-o", "End", "-j", submission.job_id or "").strip()
        to_end.append((final - datetime.fromisoformat(ended).astimezone()).total_seconds())
    print(f"creation of a run -> its Slurm id:  median {statistics.median(to_id):.1f} s, longest {max(to_id):.1f} s")
    print(f"end of its job -> its final state:  median {statistics.median(to_end):.1f} s, longest {max(to_end):.1f} s")


async def memory(site: Site, numbers: list[int]) -> None:
    deployed = await site.deploy(script_application(site.folder, "waiting", "#!/bin/bash\ntrue\n"))
    print(f"worker without a run: {resident(site):.0f} MiB")
    held: list[UUID] = []
    before = resident(site)
    for number in numbers:
        began = time.monotonic()
        while len(held) < number:
            held.append(await site.start(deployed, resources={"extra": {"hold": ""}}))

        async def all_wait(number: int = number) -> bool:
            shown = site.slurm.run("squeue", "-h", "-t", "pending", "-o", "%i").split()
            last = await site.run(held[-1])
            return len(shown) >= number and last.state_name == "Held"

        await await_until(all_wait, 900, f"{number} waiting runs", 2)
        now = resident(site)
        print(
            f"worker with {number} runs waiting: {now:.0f} MiB ({(now - before) / number:.2f} MiB a run), "
            f"all in Slurm's queue {time.monotonic() - began:.0f} s after the first was made"
        )


def resident(site: Site) -> float:
    """The worker's resident memory in MiB."""
    assert site.worker.process is not None
    for line in Path(f"/proc/{site.worker.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the worker is gone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, nargs="+", default=[1, 100, 500], help="how many runs wait")
    parser.add_argument("--repeat", type=int, default=5, help="runs for the latencies")
    parser.add_argument(
        "--query-seconds", type=float, default=10, help="how often the worker polls (Prefect's default)"
    )
    parser.add_argument(
        "--sqlite", action="store_true", help="a Prefect server on SQLite, which is for few runs at once"
    )
    given = parser.parse_args()
    asyncio.run(main(given.waiting, given.repeat, given.query_seconds, given.sqlite))
