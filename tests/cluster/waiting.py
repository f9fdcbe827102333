"""The one place where tests wait: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float, what: str, interval: float = 0.1) -> T:
    """Return the condition's first true value; `TimeoutError` names `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        threading.Event().wait(interval)
    return value


async def await_until(condition: Callable[[], Awaitable[T]], timeout: float, what: str, interval: float = 0.1) -> T:
    """Return the asynchronous condition's first true value; `TimeoutError` names `what` after `timeout` seconds."""
    try:
        # Also a question that is never answered ends with the time.
        async with asyncio.timeout(timeout) as limit:
            while not (value := await condition()):
                await _pause(interval)
            return value
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"waited {timeout:g} s for {what}") from error
        raise


async def with_turns(work: Awaitable[T]) -> tuple[T, int]:
    """What `work` returns, and how often the loop came to somebody else meanwhile."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            # No time is waited for: it gives the loop back, and is called again in its next turn.
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        return await work, turns
    finally:
        counting.cancel()


async def _pause(seconds: float) -> None:
    try:
        await asyncio.wait_for(asyncio.Event().wait(), seconds)
    except TimeoutError:
        return
