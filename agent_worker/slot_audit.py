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
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from agent_worker.runs import PAGE, engine_waits
from jobbergate_flows.slots import give_slots_back, limit_of, take_slot
from jobbergate_flows.slurm.ledger import Ledger

_logger = logging.getLogger(__name__)
_HOLDING = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class SlotAudit:
    """Mends the counts of slots of the deployments whose runs a worker has had.

    A slot without a lease never comes back by itself. One too many is counted where a worker died between two requests,
    or an engine while it waited for its own retry; one too few where a run ended that had none, as one that was paused.
    The server's rule is that each run gives one back which is Pending, Running or Cancelling before it ends.

    A limit that a deployment shares with others is left alone: whose slots it counts nobody knows.
    """

    def __init__(self, work_pool: str) -> None:
        """For the runs of a work pool: what another pool's runs have lost they do not get back from here."""
        self._work_pool = work_pool
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
                if limit is None or not limit.active or limit.name != f"deployment:{deployment_id}":
                    self._deployments.discard(deployment_id)
                    self._wrong.pop(deployment_id, None)
                    continue
                before = self._wrong.pop(deployment_id, 0)
                wrong = await self._too_many(client, deployment_id, limit)
                if wrong and wrong != before:
                    self._wrong[deployment_id] = wrong
                elif wrong:
                    await self._mend(client, deployment_id, wrong, ledger)

    async def _mend(self, client: PrefectClient, deployment_id: UUID, wrong: int, ledger: Ledger) -> None:
        claim = f"slots-{deployment_id}"
        if not await asyncio.to_thread(ledger.claim, claim):
            return
        try:
            limit = await limit_of(client, deployment_id)
            # Another worker may have mended it meanwhile.
            if limit is None or await self._too_many(client, deployment_id, limit) != wrong:
                return
            _logger.warning("Of %s %d slots are taken, %d of them wrongly", limit.name, limit.active_slots, wrong)
            if wrong > 0:
                await give_slots_back(client, limit, wrong)
                return
            for _ in range(-wrong):
                await take_slot(client, deployment_id)
        finally:
            await asyncio.to_thread(ledger.release, claim)

    async def _too_many(self, client: PrefectClient, deployment_id: UUID, limit: GlobalConcurrencyLimitResponse) -> int:
        """How many slots too many are taken, less than none where too few are; 0 also where that just changed."""
        ours = await _going_on(client, deployment_id, self._work_pool)
        all_ = await _going_on(client, deployment_id) + await _waiting_in_process(client, deployment_id)
        again = await limit_of(client, deployment_id)
        if again is None or again.active_slots != limit.active_slots:
            return 0
        return wrongly_taken(limit.active_slots, limit.limit, ours, all_)


def wrongly_taken(taken: int, limit: int, ours: int, all_: int) -> int:
    """How many of a limit's slots are taken by nobody; less than none for runs that have none. Pure.

    Args:
        taken: How many slots the server counts.
        limit: How many there are.
        ours: How many runs go on in our pool, and will end.
        all_: How many may have a slot at all. What a dead process of somebody else's left Running has none any more.
    """
    if taken > all_:
        return taken - all_
    return min(taken - min(ours, limit), 0)


async def _going_on(client: PrefectClient, deployment_id: UUID, work_pool: str | None = None) -> int:
    return await client.count_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_HOLDING))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[work_pool])) if work_pool else None,
    )


async def _waiting_in_process(client: PrefectClient, deployment_id: UUID) -> int:
    """How many runs' engines may wait for their own retry: these have kept their slot."""
    runs = await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingRetry"]))),
        limit=PAGE,
    )
    return sum(engine_waits(run) for run in runs)
