"""Lines for a run's logs, of which is known when the server has them.

Prefect's own handler keeps lines for two seconds and forgets them where the server does not answer: what a job has
written would be missing when its worker is killed, or its server is away for a moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import LogCreate
from prefect.settings import PREFECT_API_URL, get_current_settings

from jobbergate_flows.reporting import settings_alone

_GATHER_SECONDS = 0.5
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0, 15.0)
_BATCH = 500


@dataclass(frozen=True, slots=True)
class _Waiting:
    logs: Sequence[LogCreate]
    sent: asyncio.Future[None]


class LogOutbox:
    """Lines on their way to the server: those of all jobs of an event loop in one request each half second."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, LogOutbox]]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._sending: asyncio.Task[None] | None = None

    @classmethod
    def here(cls) -> LogOutbox:
        """The outbox of the running event loop to the server that is set here."""
        outboxes = cls._by_loop.setdefault(asyncio.get_running_loop(), {})
        return outboxes.setdefault(str(PREFECT_API_URL.value()), cls())

    async def send(self, logs: Sequence[LogCreate]) -> None:
        """Return when the server has these lines. Nothing is sent where the settings want no logs there.

        Raises:
            httpx.HTTPError, RuntimeError: It has not taken them for most of a minute, or refuses them.
        """
        if not logs or not get_current_settings().logging.to_api.enabled:
            return
        waiting = _Waiting(logs, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all(), context=settings_alone())
        await waiting.sent

    async def _send_all(self) -> None:
        while self._waiting:
            # What other jobs say meanwhile goes along.
            await asyncio.sleep(_GATHER_SECONDS)
            batch = [self._waiting.popleft()]
            while self._waiting and sum(len(one.logs) for one in batch) < _BATCH:
                batch.append(self._waiting.popleft())
            try:
                await _post([log for one in batch for log in one.logs])
            except Exception as error:
                for one in batch:
                    if not one.sent.done():
                        one.sent.set_exception(error)
            else:
                for one in batch:
                    if not one.sent.done():
                        one.sent.set_result(None)


async def _post(logs: Sequence[LogCreate]) -> None:
    for delay in (*_RETRY_SECONDS, None):
        try:
            # A client of its own: those of runs are closed with their runs.
            async with get_client(httpx_settings={}) as client:
                await client.create_logs(logs)
                return
        except httpx.HTTPStatusError as error:
            if delay is None or (error.response.status_code < 500 and error.response.status_code not in (408, 429)):
                raise
        except (httpx.HTTPError, RuntimeError):
            # Prefect's client has no type of its own for a server that does not answer at once.
            if delay is None:
                raise
        await asyncio.sleep(delay)
