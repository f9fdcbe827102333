"""Waiting out what does not answer: Slurm, a user's deputy, the user directory."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobbergate_flows.slurm.errors import ClusterUnreachable

T = TypeVar("T")
RETRY_SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Between one try and the next; the last one again and again."""


async def patiently(act: Callable[[], Awaitable[T]], say: Callable[[str], None], *, seconds: float = math.inf) -> T:
    """Do something that is safe to repeat, again and again until whom it needs can be reached.

    Args:
        say: Told, once for each cause, why it takes longer.
        seconds: For so long; then the newest error is raised.

    Raises:
        ClusterUnreachable: It could not be reached in time.
    """
    until = time.monotonic() + seconds
    tries = 0
    said = None
    while True:
        try:
            return await act()
        except ClusterUnreachable as error:
            if time.monotonic() >= until:
                raise
            if error.message != said:
                said = error.message
                say(f"the cluster does not answer: {said}")
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1
