"""Waiting out what does not answer: Slurm, a user's deputy, the user directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobbergate_flows.slurm.errors import ClusterUnreachable

T = TypeVar("T")
RETRY_SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Between one try and the next; the last one again and again."""


async def patiently(act: Callable[[], Awaitable[T]], say: Callable[[str], None]) -> T:
    """Do something that is safe to repeat, again and again until whom it needs can be reached.

    Args:
        say: Told, once for each cause, why it takes longer.
    """
    tries = 0
    said = None
    while True:
        try:
            return await act()
        except ClusterUnreachable as error:
            if error.message != said:
                said = error.message
                say(f"the cluster does not answer: {said}")
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1
