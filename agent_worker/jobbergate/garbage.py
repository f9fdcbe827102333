"""Having the Jobbergate API clean up, once a day, as its agent did."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Literal

from jobbergate_flows.jobbergate import calls
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import JobbergateResponseError

_logger = logging.getLogger(__name__)
_KINDS: tuple[Literal["templates", "job-scripts", "unused-entries"], ...] = (
    "templates", "job-scripts", "unused-entries",
)  # fmt: skip
# What an API answers that has no such endpoint (removed in 5.7): some paths are then those of entries, which the client
# need not be allowed to delete.
_NONE = (403, 404, 405, 422)


def _here() -> datetime:
    return datetime.now(UTC).astimezone()


class GarbageCollection:
    """The daily clean-up of one API.

    Args:
        hour: In which hour of the day, by the local clock; None for never.
        now: What tells the time, aware and local.
    """

    def __init__(self, client: JobbergateClient, hour: int | None, now: Callable[[], datetime] = _here) -> None:
        self._client = client
        self._hour = hour
        self._now = now
        self._done: date | None = None
        self._missing: set[str] = set()

    async def look(self) -> None:
        """Have it done, if it is the hour and was not done today. What the API does not have is said once.

        Raises:
            JobbergateError: It was not done; the next look tries again.
        """
        now = self._now()
        if self._hour != now.hour or self._done == now.date():
            return
        for kind in _KINDS:
            try:
                await self._client.asend(calls.collect_garbage(kind))
            except JobbergateResponseError as error:
                if error.status not in _NONE:
                    raise
                if kind not in self._missing:
                    _logger.info("The Jobbergate API has no clean-up of %s for this client: %s", kind, error.detail)
                self._missing.add(kind)
        self._done = now.date()
