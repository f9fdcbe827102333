"""What the bridge costs: job submissions of Jobbergate made into runs, and the time until each has its Slurm id.

Run as root on Debian from the repository's folder, on an idle machine:

    .venv/bin/python -m benchmarks.bridge --pending 200

It starts a real Slurm, a real Jobbergate API, a real Prefect server on PostgreSQL and a worker. First one look makes
runs of all pending submissions: how many a second. Then a worker starts and submits them: until all have their Slurm
ids. At last `--repeat` submissions one by one: from the submission in Jobbergate to its Slurm id, of which up to
`--interval` seconds (60 by default in the agent, 10 at least) are the wait for the next look.
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
from datetime import UTC, datetime
from pathlib import Path

with socket.socket() as _probe:
    _probe.bind(("127.0.0.1", 0))
    _PORT = int(_probe.getsockname()[1])
# Before Prefect is imported.
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{_PORT}/api"

from prefect.context import AsyncClientContext

from agent_worker.accounts import AccountSessions
from agent_worker.admission import Rules
from agent_worker.identity.policy import IdentityPolicy
from agent_worker.jobbergate.agent_settings import AgentSettings
from agent_worker.jobbergate.setup import make_bridge
from jobbergate_flows.jobbergate.links import Links
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.session import ClusterSession
from tests.cluster.jobbergate_api import agent_environment, running_api
from tests.cluster.jobbergate_people import Ada
from tests.cluster.postgres import PostgresServer
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.site import Site
from tests.cluster.slurm import SlurmCluster
from tests.cluster.waiting import await_until
from tests.cluster.worker import WorkerProcess

_POOL = "benchmark"
_SETTING = "PREFECT_INTEGRATIONS_JOBBERGATE_FLOWS_"


async def main(pending: int, repeat: int, interval: int, query_seconds: float) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        slurm = stack.enter_context(SlurmCluster())
        postgres = stack.enter_context(PostgresServer())
        server = stack.enter_context(PrefectServer(_PORT, postgres.url("asyncpg")))
        api = stack.enter_context(running_api(postgres))
        agent = agent_environment(api, folder, interval=interval, items_per_page=100)
        environment = agent | {
            "PREFECT_API_URL": server.api_url,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": str(query_seconds),
            f"{_SETTING}CLUSTER": "slurm",
            f"{_SETTING}LEDGER": str(folder / "ledger.sqlite3"),
            f"{_SETTING}BRIDGE": "service",
            "SLURM_CONF": str(slurm.conf),
            "HOME": str(folder),
        }
        worker = WorkerProcess(_POOL, folder, environment)
        site = Site(slurm, folder, _POOL, worker, environment)
        site.jobs.mkdir()
        await site.make_pool()
        ada = Ada(api, folder / "ada")
        job_script = ada.job_script("#!/bin/bash\ntrue\n")
        submissions = [ada.submit(site.jobs, job_script=job_script) for _ in range(pending)]
        os.environ |= agent
        await look(site, submissions)
        worker.start()
        try:
            began = time.monotonic()
            await await_until(lambda: _all_submitted(site, submissions), 1800, "all Slurm ids", 1)
            took = time.monotonic() - began
            print(f"a worker that starts with {pending} runs: all have Slurm ids after {took:.0f} s", flush=True)
            await latencies(site, ada, job_script, repeat)
        finally:
            worker.stop()


async def look(site: Site, submissions: list[int]) -> None:
    """Make the runs by one look, as the worker's service does it."""
    ledger = Ledger.open(site.ledger_path)
    accounts = AccountSessions(ClusterSession(connect("slurm", slurm_conf=str(site.slurm.conf)), ledger))
    policy = IdentityPolicy("single-user", accounts.own.cluster.user)
    bridge = make_bridge(AgentSettings.load(), Rules(policy), accounts, _POOL)
    # As in the worker, which keeps its connections.
    async with AsyncClientContext():
        for again in (False, True):
            began = time.monotonic()
            looked = await bridge.look()
            took = time.monotonic() - began
            assert looked.problems == (), looked.problems
            assert looked.started == (0 if again else len(submissions))
            what = "a look that finds nothing new" if again else "one look"
            print(f"{what}, {looked.pending} pending: {took:.2f} s, {looked.pending / took:.0f} a second", flush=True)
    await bridge.close()
    ledger.close()


async def latencies(site: Site, ada: Ada, job_script: int, repeat: int) -> None:
    """Submissions one by one."""
    seconds = []
    for _ in range(repeat):
        made = datetime.now(UTC)
        submission = ada.submit(site.jobs, job_script=job_script)
        await await_until(lambda one=submission: _all_submitted(site, [one]), 300, "its Slurm id")  # type: ignore[misc]
        seconds.append((_submitted_at(site, submission) - made).total_seconds())
    print(
        f"submission in Jobbergate -> its Slurm id: median {statistics.median(seconds):.1f} s, "
        f"shortest {min(seconds):.1f} s, longest {max(seconds):.1f} s"
    )


async def _all_submitted(site: Site, submissions: list[int]) -> bool:
    ledger = Ledger.open(site.ledger_path)
    try:
        links = Links(ledger)
        found = [links.of_submission("", submission) for submission in submissions]
        return all(link is not None and link.key is not None for link in found)
    finally:
        ledger.close()


def _submitted_at(site: Site, submission: int) -> datetime:
    ledger = Ledger.open(site.ledger_path)
    try:
        link = Links(ledger).of_submission("", submission)
        assert link is not None
        assert link.key is not None
        row = ledger.get(link.key)
        assert row is not None
        assert row.submitted_at is not None
        return row.submitted_at
    finally:
        ledger.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pending", type=int, default=200, help="how many submissions wait")
    parser.add_argument("--repeat", type=int, default=5, help="submissions for the latencies")
    parser.add_argument("--interval", type=int, default=10, help="seconds between two looks")
    parser.add_argument("--query-seconds", type=float, default=10, help="how often the worker polls (its default)")
    given = parser.parse_args()
    asyncio.run(main(given.pending, given.repeat, given.interval, given.query_seconds))
