"""What is on its way to the Prefect server: kept in order, and sent by one task for each event loop and server."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from contextvars import Context
from typing import Any, ClassVar, Generic, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import SettingsContext
from prefect.settings import PREFECT_API_URL

T = TypeVar("T")
_IDLE_SECONDS = 30.0


class Outbox(ABC, Generic[T]):
    """A queue, and the task that empties it and ends some time after the last arrival."""

    _by_loop: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[type, str], Outbox[Any]]]] = (
        WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self._waiting: deque[T] = deque()
        self._arrived = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    @classmethod
    def here(cls) -> Self:
        """The outbox of the running event loop to the server that is set here."""
        outboxes = cls._by_loop.setdefault(asyncio.get_running_loop(), {})
        return cast(Self, outboxes.setdefault((cls, str(PREFECT_API_URL.value())), cls()))

    @abstractmethod
    async def _send_some(self, client: PrefectClient) -> None:
        """Send some of what waits, of which there is at least one."""

    @abstractmethod
    def _failed(self, error: BaseException) -> None:
        """The task died of that (no server is configured), which is no outage: it begins anew with the next arrival."""

    def _add(self, what: T) -> None:
        self._waiting.append(what)
        self._arrived.set()
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all(), context=_settings_alone())
            self._sending.add_done_callback(self._ended)

    async def _send_all(self) -> None:
        # A client of its own, as those of runs are closed with their runs; and kept, as it costs 24 ms to make one.
        async with get_client(httpx_settings={}) as client:
            while await self._something():
                await self._send_some(client)
            # What arrives while the client is being closed has a new task.
            self._sending = None

    async def _something(self) -> bool:
        while not self._waiting:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), _IDLE_SECONDS)
            except TimeoutError:
                # In the same turn of the loop something may have arrived.
                return bool(self._waiting)
        return True

    def _ended(self, sending: asyncio.Task[None]) -> None:
        if not sending.cancelled() and (error := sending.exception()) is not None:
            self._failed(error)


def _settings_alone() -> Context:
    """A context with this one's settings and nothing of the run that happens to be the first to tell something."""
    context, settings = Context(), SettingsContext.get()
    if settings is not None:
        context.run(SettingsContext.__var__.set, settings)
    return context


__all__ = ["Outbox"]
