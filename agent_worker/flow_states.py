"""What Slurm says of the jobs in which flows run, beside what the engines there say of the runs."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from agent_worker.runs import runs_of_ids
from jobbergate_flows.following import RunFollower, beside_engine
from jobbergate_flows.states import says

_logger = logging.getLogger(__name__)
LOOK_SECONDS = 3.0
AGAIN_SECONDS = 60.0
"""So long after a run said what its job does, it is looked at again: its engine may have said Running since."""


@dataclass
class _Word:
    follower: RunFollower
    state: State[Any]
    due: float = field(default_factory=time.monotonic)


class FlowStates:
    """Tells the states of flows' jobs, and tells again that a job runs where its engine has spoken since.

    The engine's own Running comes some seconds after the job's, and knows no nodes.
    """

    def __init__(self) -> None:
        self._running: dict[UUID, _Word] = {}

    async def tell(self, follower: RunFollower, state: State[Any]) -> None:
        """Have a run told what its job says now, soon; and again, until another word comes, or `forget`."""
        if state.is_running():
            self._running[follower.flow_run_id] = _Word(follower, state)
        else:
            self.forget(follower.flow_run_id)
        await follower.tell(state)

    def forget(self, flow_run_id: UUID) -> None:
        """Tell nothing again of that run."""
        self._running.pop(flow_run_id, None)

    async def watch(self) -> None:
        """Look at the runs, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look(time.monotonic())
            except Exception:
                _logger.exception("Looking at the flows that run failed; trying again")

    async def _look(self, now: float) -> None:
        due = {run_id: word for run_id, word in self._running.items() if word.due <= now}
        if not due:
            return
        async with get_client() as client:
            # Of those that have not begun to run the server sends nothing.
            begun = await runs_of_ids(client, list(due), [StateType.RUNNING])
        for run in begun:
            word = due[run.id]
            if run.state is not None and says(run.state, beside_engine(word.state, run.state)):
                word.due = now + AGAIN_SECONDS
            elif self._running.get(run.id) is word:
                await word.follower.tell(word.state)
