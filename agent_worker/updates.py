"""Whether there is a newer version of this package: told, and never installed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import httpx
from packaging.version import InvalidVersion, Version
from prefect.events.schemas.events import Event, Resource

from jobbergate_flows.reporting import EventOutbox
from jobbergate_flows.slurm.cluster import Finding

_logger = logging.getLogger(__name__)
AVAILABLE = "jobbergate-flows.update-available"
"""The event, about the worker; its payload has `version` (the worker's) and `newer`."""
PACKAGE = "jobbergate-flows"
DAY_SECONDS = 86400.0
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/json"
_TIMEOUT = 15.0


def newest(page: Any) -> str | None:
    """The newest final version that a package's JSON page has; None where it has none. Pure.

    Args:
        page: That of the index's JSON API (`info.version`, `releases`), or of its simple API (`versions`).
    """
    if not isinstance(page, dict):
        return None
    info = page.get("info")
    named = [*(page.get("versions") or ()), *(page.get("releases") or ())]
    if isinstance(info, dict):
        named.append(info.get("version"))
    found = [parsed for text in named if (parsed := _parsed(text)) is not None and not parsed.is_prerelease]
    return str(max(found)) if found else None


def newer(own: str, page: Any) -> str | None:
    """The newest version, where it is newer than the own one. Pure."""
    found, mine = newest(page), _parsed(own)
    return found if found is not None and mine is not None and Version(found) > mine else None


class UpdateWatch:
    """Looks at a package index now and then, and tells of a newer version once: by an event, and in the health report.

    Args:
        index: The URL of the package's JSON page.
        resource: The worker's, as its events have it.
        seconds: Between two looks.
    """

    def __init__(self, index: str, resource: Mapping[str, str], seconds: float = DAY_SECONDS) -> None:
        self._index = index
        self._resource = resource
        self._seconds = seconds
        self._own = version(PACKAGE)
        self._newer: str | None = None

    @property
    def finding(self) -> Finding | None:
        """For the worker's health: well, as an older version works; None while there is no newer one."""
        if self._newer is None:
            return None
        return Finding("version", True, f"{PACKAGE} {self._newer} is there; this is {self._own}")

    async def watch(self) -> None:
        """Do it for ever. To be run in the supervisor's loop."""
        while True:
            try:
                await self.look()
            except (httpx.HTTPError, ValueError) as error:
                # No trouble: a cluster's host may have no way to an index.
                _logger.info("Whether there is a newer version is not known: %s", error)
            await asyncio.sleep(self._seconds)

    async def look(self) -> None:
        """Look once.

        Raises:
            httpx.HTTPError: The index does not answer, or refuses.
            ValueError: Its answer is no JSON.
        """
        async with httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=True) as client:
            answer = await client.get(self._index, headers={"Accept": _ACCEPT})
        answer.raise_for_status()
        found = newer(self._own, answer.json())
        if found is not None and found != self._newer:
            _logger.warning("%s %s is there; this is %s. Nothing is installed by itself", PACKAGE, found, self._own)
            EventOutbox.here().put(
                Event(
                    event=AVAILABLE,
                    resource=Resource(dict(self._resource)),
                    payload={"version": self._own, "newer": found},
                )
            )
        self._newer = found


def _parsed(text: object) -> Version | None:
    try:
        return Version(text) if isinstance(text, str) else None
    except InvalidVersion:
        return None
