"""Work that asks over HTTP and waits, written once for code with and without an event loop.

It is a generator: it yields a request and gets the answer, or yields a `Wait` and is woken when that is over. A request
that fails on its way raises httpx's error at the yield.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Generator
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import httpx

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is done for so many seconds."""

    seconds: float


Steps: TypeAlias = Generator[httpx.Request | Wait, httpx.Response | None, T]


class Clock(Protocol):
    """What tells the time, and waits."""

    def now(self) -> float:
        """Seconds since 1970."""

    def wait(self, seconds: float) -> None:
        """Block for so long."""

    async def await_(self, seconds: float) -> None:
        """Wait for so long in an event loop."""


class SystemClock:
    """This machine's."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.time()

    def wait(self, seconds: float) -> None:
        """See `Clock.wait`."""
        time.sleep(seconds)

    async def await_(self, seconds: float) -> None:
        """See `Clock.await_`."""
        await asyncio.sleep(seconds)


def run(steps: Steps[T], clock: Clock, verify: ssl.SSLContext | bool) -> T:
    """Do the work, blocking; its requests share a connection.

    Args:
        verify: As httpx has it: whether certificates must be valid, or a context that says how.
    """
    with closing(steps), ExitStack() as stack:
        client: httpx.Client | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    clock.wait(step.seconds)
                    step = next(steps)
                    continue
                if client is None:
                    client = stack.enter_context(httpx.Client(verify=verify))
                try:
                    answer = client.send(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result


async def arun(steps: Steps[T], clock: Clock, verify: ssl.SSLContext | bool) -> T:
    """Do the work in an event loop; see `run`."""
    async with AsyncExitStack() as stack:
        stack.callback(steps.close)
        client: httpx.AsyncClient | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    await clock.await_(step.seconds)
                    step = next(steps)
                    continue
                if client is None:
                    client = await stack.enter_async_context(httpx.AsyncClient(verify=verify))
                try:
                    answer = await client.send(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
