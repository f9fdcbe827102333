"""What the worker takes from its pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.workers.base import BaseWorker

from agent_worker.worker import JobbergateSlurmWorker


@pytest.mark.parametrize(("limit", "asking", "taken"), [(3, 0, 1), (3, 1, 2), (2, 0, 0), (None, 0, 3)])
async def test_runs_that_wait_for_consent_take_no_place(
    limit: int | None, asking: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def three(_worker: object) -> list[str]:
        return ["first", "second", "third"]

    monkeypatch.setattr(BaseWorker, "_get_scheduled_flow_runs", three)
    held = {uuid4(): None for _ in range(2)}
    worker = JobbergateSlurmWorker("pool", limit=limit)
    stub: Any = SimpleNamespace(held=held, admission=SimpleNamespace(asking=frozenset(list(held)[:asking])))
    worker.supervisor = stub

    assert len(await worker._get_scheduled_flow_runs()) == taken
