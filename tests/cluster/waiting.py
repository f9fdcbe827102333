"""The one place where tests wait: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TypeVar
from collections.abc import Awaitable, Callable


T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float, what: str, interval: float = 0.1) -> T:
    """Return the condition's first true value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        threading.Event().wait(interval)
    return value


async def await_until(condition: Callable[[], Awaitable[T]], timeout: float, what: str, interval: float = 0.1) -> T:
    """Return the asynchronous condition's first true value."""
    async with asyncio.timeout(timeout):
        while not (value := await condition()):
            await _pause(interval)
        return value


async def _pause(seconds: float) -> None:
    try:
        await asyncio.wait_for(asyncio.Event().wait(), seconds)
    except TimeoutError:
        return
