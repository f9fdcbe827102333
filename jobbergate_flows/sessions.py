"""Which cluster session a task uses: the worker's, or one of its own.

A session (`slurm/session.py`) is a cluster with its ledger and its tracker. The worker enters its own with
`using_session`; anywhere else the session comes from the cluster that the task was given: a `SlurmCluster` block, its
name, or the machine's own (`JOBBERGATE_FLOWS_CLUSTER`, otherwise Slurm where it is, else this machine's processes).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from jobbergate_flows.blocks.cluster import SlurmCluster
from jobbergate_flows.settings import ReportSettings
from jobbergate_flows.slurm.connect import connect
from jobbergate_flows.slurm.ledger import Ledger
from jobbergate_flows.slurm.session import ClusterSession

_entered: ContextVar[ClusterSession | None] = ContextVar("jobbergate_flows_session", default=None)
_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, ClusterSession]] = WeakKeyDictionary()


@contextmanager
def using_session(session: ClusterSession) -> Iterator[ClusterSession]:
    """Let all tasks of this context use `session`, whatever cluster they name."""
    token = _entered.set(session)
    try:
        yield session
    finally:
        _entered.reset(token)


def entered_session() -> ClusterSession | None:
    """The session that this context has entered; None outside of a worker."""
    return _entered.get()


async def session_for(cluster: SlurmCluster | str | None = None) -> ClusterSession:
    """The session to use here: the entered one, or one for `cluster`, kept for the life of the event loop.

    Args:
        cluster: A block, the name of a saved `SlurmCluster` block, or None for the machine's own cluster.

    Raises:
        ValueError: There is no block of that name.
        ClusterUnreachable: The cluster named by `JOBBERGATE_FLOWS_CLUSTER` is not there.
    """
    entered = _entered.get()
    if entered is not None:
        return entered
    sessions = _by_loop.setdefault(asyncio.get_running_loop(), {})
    if isinstance(cluster, str):
        cluster = await SlurmCluster.aload(cluster)
    identity = "" if cluster is None else cluster.model_dump_json()
    if identity not in sessions:
        target = connect(os.environ.get("JOBBERGATE_FLOWS_CLUSTER", "auto")) if cluster is None else cluster.connect()
        ledger = await asyncio.to_thread(Ledger.open)
        sessions[identity] = ClusterSession(target, ledger, output_limits=ReportSettings().output_limits)
    return sessions[identity]
