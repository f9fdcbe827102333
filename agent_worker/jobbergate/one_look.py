"""One look for Jobbergate's submissions, as a flow: for a recurring deployment in place of the worker's service.

It needs the worker's own settings, its ledger and its way to Slurm: a process pool on the worker's host is its place.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from agent_worker.accounts import AccountSessions
from agent_worker.jobbergate.setup import agent_settings, make_bridge
from agent_worker.settings import WorkerSettings
from agent_worker.site import door_opener, rules_of
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.session import ClusterSession

_FOLLOWED_SECONDS = 60.0


@flow(name="jobbergate-bridge", retries=0)
async def look_at_jobbergate(work_pool: str = "slurm") -> State[Any]:
    """Make runs of the job submissions that wait for this cluster's agent, and see to those that were cancelled.

    Args:
        work_pool: The pool of the worker that runs them; its setting `bridge` is `deployment`.
    """
    settings = WorkerSettings()
    agent = await asyncio.to_thread(agent_settings, settings)
    logger = get_run_logger()
    for warning in agent.warnings:
        logger.warning("%s", warning)
    cluster = await asyncio.to_thread(
        connect, settings.cluster, name=settings.cluster_name, slurm_conf=settings.slurm_conf
    )
    ledger = await asyncio.to_thread(Ledger.open, settings.ledger)
    accounts = AccountSessions(
        ClusterSession(cluster, ledger), door_opener(settings), settings.slurm_conf or os.environ.get("SLURM_CONF")
    )
    bridge = make_bridge(agent, rules_of(settings), accounts, work_pool)
    try:
        looked = await bridge.look()
        await bridge.settle(_FOLLOWED_SECONDS)
    finally:
        await bridge.close()
        await accounts.close()
        await asyncio.to_thread(ledger.close)
    for problem in looked.problems:
        logger.warning("%s", problem)
    said = (
        f"{looked.pending} pending, {looked.active} active: {looked.started} runs made, {looked.rejected} rejected, "
        f"{looked.cancelled} cancelled, {looked.followed} followed"
    )
    return Completed(name="Problems" if looked.problems else "Completed", message=said)
