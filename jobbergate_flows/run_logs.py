"""Lines for a run's logs, of which is known when the server has them.

Prefect's own handler keeps lines for two seconds and forgets them where the server does not answer: what a job has
written would be missing when its worker is killed, or its server is away for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID
from weakref import WeakKeyDictionary

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import LogCreate
from prefect.settings import PREFECT_API_URL, get_current_settings

from jobbergate_flows.reporting import settings_alone
from jobbergate_flows.slurm.output import OutputLine, in_entries, with_task

_GATHER_SECONDS = 0.5
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0, 15.0)
_IDLE_SECONDS = 30.0
_BATCH = 500


async def log_output(
    logger: logging.Logger | logging.LoggerAdapter[Any],
    lines: Sequence[OutputLine],
    *,
    flow_run_id: UUID | None,
    task_run_id: UUID | None = None,
) -> None:
    """Log a job's output, standard error as warnings, floods in few entries; and return when the run's logs have it.

    Args:
        logger: Shows it here.
        flow_run_id: The run in whose logs it is to be; None outside of one.

    Raises:
        httpx.HTTPError: See `LogOutbox.send`. Nothing was logged here then.
    """
    entries = in_entries(lines)
    levels = [logging.WARNING if line.stream == "stderr" else logging.INFO for line in entries]
    said = list(zip(levels, with_task(entries), strict=True))
    if flow_run_id is not None:
        of_run = {"name": logger.name, "flow_run_id": flow_run_id, "task_run_id": task_run_id}
        await LogOutbox.here().send(
            [
                LogCreate.model_validate({**of_run, "level": level, "message": text, "timestamp": datetime.now(UTC)})
                for level, text in said
            ]
        )
    for level, text in said:
        logger.log(level, "%s", text, extra={"send_to_api": False})


@dataclass(frozen=True, slots=True)
class _Waiting:
    logs: Sequence[LogCreate]
    sent: asyncio.Future[None]


class LogOutbox:
    """Lines on their way to the server: those of all jobs of an event loop in one request each half second."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, LogOutbox]]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    @classmethod
    def here(cls) -> LogOutbox:
        """The outbox of the running event loop to the server that is set here."""
        outboxes = cls._by_loop.setdefault(asyncio.get_running_loop(), {})
        return outboxes.setdefault(str(PREFECT_API_URL.value()), cls())

    async def send(self, logs: Sequence[LogCreate]) -> None:
        """Return when the server has these lines. Nothing is sent where the settings want no logs there.

        Raises:
            httpx.HTTPError: It has not taken them for most of a minute, or refuses them.
        """
        if not logs or not get_current_settings().logging.to_api.enabled:
            return
        waiting = _Waiting(logs, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all(), context=settings_alone())
            self._sending.add_done_callback(self._give_back)
        await waiting.sent

    async def _send_all(self) -> None:
        # A client of its own, as those of runs are closed with their runs; and kept, as it costs 24 ms to make one.
        async with get_client(httpx_settings={}) as client:
            while await self._something():
                # What other jobs say meanwhile goes along.
                await asyncio.sleep(_GATHER_SECONDS)
                batch = [self._waiting.popleft()]
                while self._waiting and sum(len(one.logs) for one in batch) < _BATCH:
                    batch.append(self._waiting.popleft())
                try:
                    await _post(client, [log for one in batch for log in one.logs])
                except BaseException as error:
                    _settle(batch, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    _settle(batch, None)
            # What arrives while the client is being closed has a new task.
            self._sending = None

    async def _something(self) -> bool:
        while not self._waiting:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), _IDLE_SECONDS)
            except TimeoutError:
                return False
        return True

    def _give_back(self, sending: asyncio.Task[None]) -> None:
        """Nobody waits for lines that a dead task would have sent."""
        if sending.cancelled() or (error := sending.exception()) is None:
            return
        _settle(self._waiting, error)
        self._waiting.clear()


def _settle(batch: Iterable[_Waiting], error: BaseException | None) -> None:
    for one in batch:
        if one.sent.done():
            continue
        if error is None:
            one.sent.set_result(None)
        elif isinstance(error, Exception):
            one.sent.set_exception(error)
        else:
            one.sent.cancel()


async def _post(client: PrefectClient, logs: Sequence[LogCreate]) -> None:
    for delay in (*_RETRY_SECONDS, None):
        try:
            await client.create_logs(logs)
            return
        except httpx.HTTPStatusError as error:
            if delay is None or (error.response.status_code < 500 and error.response.status_code not in (408, 429)):
                raise
        except httpx.HTTPError:
            if delay is None:
                raise
        await asyncio.sleep(delay)
