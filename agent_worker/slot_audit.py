"""Whether the server counts as many concurrency slots as there are runs to give them back."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from agent_worker.runs import PAGE
from jobbergate_flows.slots import give_slots_back, limit_of, take_slot
from jobbergate_flows.slurm.ledger import Ledger

_logger = logging.getLogger(__name__)
_HOLDING = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class SlotAudit:
    """Mends the counts of slots of the deployments whose runs a worker has had.

    A slot without a lease never comes back by itself. One too many is counted where a worker died between two requests,
    or an engine while it waited for its own retry; one too few where a run ended that had none, as one that was paused.
    The server's rule is that each run gives one back which is Pending, Running or Cancelling before it ends.
    """

    def __init__(self) -> None:
        self._deployments: set[UUID] = set()
        self._wrong: dict[UUID, int] = {}

    def note(self, deployment_id: UUID | None) -> None:
        """Look after the slots of that deployment too. May be called from any thread."""
        if deployment_id is not None:
            self._deployments.add(deployment_id)

    async def watch(self, ledger: Ledger, seconds: float) -> None:
        """Look at the counts every `seconds`.

        Args:
            ledger: By its claims only one of the workers that share it mends a count.
        """
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look(ledger)
            except Exception:
                _logger.exception("Looking at the concurrency limits failed; trying again")

    async def look(self, ledger: Ledger) -> None:
        """Look once. What was wrong in the look before as well, and by as much, is mended."""
        async with get_client() as client:
            for deployment_id in list(self._deployments):
                limit = await limit_of(client, deployment_id)
                if limit is None or not limit.active:
                    self._deployments.discard(deployment_id)
                    self._wrong.pop(deployment_id, None)
                    continue
                before = self._wrong.pop(deployment_id, 0)
                wrong = await _too_many(client, deployment_id, limit)
                if wrong and wrong != before:
                    self._wrong[deployment_id] = wrong
                elif wrong:
                    await _mend(client, deployment_id, wrong, ledger)


async def _mend(client: PrefectClient, deployment_id: UUID, wrong: int, ledger: Ledger) -> None:
    claim = f"slots-{deployment_id}"
    if not await asyncio.to_thread(ledger.claim, claim):
        return
    try:
        limit = await limit_of(client, deployment_id)
        # Another worker may have mended it meanwhile.
        if limit is None or await _too_many(client, deployment_id, limit) != wrong:
            return
        _logger.warning("Of %s %d slots are taken, %d of them wrongly", limit.name, limit.active_slots, wrong)
        if wrong > 0:
            await give_slots_back(client, limit, wrong)
            return
        for _ in range(-wrong):
            await take_slot(client, deployment_id)
    finally:
        await asyncio.to_thread(ledger.release, claim)


async def _too_many(client: PrefectClient, deployment_id: UUID, limit: GlobalConcurrencyLimitResponse) -> int:
    """How many slots too many are taken, less than none where too few are; 0 also where that just changed."""
    holding = await _holding(client, deployment_id)
    again = await limit_of(client, deployment_id)
    if again is None or again.active_slots != limit.active_slots:
        return 0
    # Not more than there are can be counted.
    return limit.active_slots - min(holding, max(limit.limit, limit.active_slots))


async def _holding(client: PrefectClient, deployment_id: UUID) -> int:
    deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
    types = FlowRunFilterState(type=FlowRunFilterStateType(any_=_HOLDING))
    names = FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingRetry"]))
    going_on = await client.count_flow_runs(deployment_filter=deployment, flow_run_filter=FlowRunFilter(state=types))
    # An engine that waits for its own retry has kept its slot.
    waiting = await client.read_flow_runs(
        deployment_filter=deployment, flow_run_filter=FlowRunFilter(state=names), limit=PAGE
    )
    return going_on + sum(run.empirical_policy.retry_type == "in_process" for run in waiting)
