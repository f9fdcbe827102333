"""The events that a real Prefect server has received."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from prefect.client.orchestration import get_client

from tests.cluster.waiting import await_until

RECEIVED_SECONDS = 120


async def read_events(
    *,
    resource: str | None = None,
    related: str | None = None,
    name: str | None = None,
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """The oldest 50 events as the server has them, the oldest first.

    Args:
        resource: The id of the resource that they are about.
        related: The id of one that is related to them.
        name: The event's name; `slurm.*` is its beginning.
        since: When the first of them occurred at the earliest.
    """
    asked: dict[str, Any] = {"order": "ASC"}
    if name is not None:
        asked["event"] = {"prefix": [name.removesuffix("*")]} if name.endswith("*") else {"name": [name]}
    if resource is not None:
        asked["resource"] = {"id": [resource]}
    if related is not None:
        asked["related"] = {"id": [related]}
    if since is not None:
        asked["occurred"] = {"since": since.isoformat()}
    async with get_client() as client:
        page = await client.request("POST", "/events/filter", json={"filter": asked, "limit": 50})
    found: list[dict[str, Any]] = page.json()["events"]
    return found


async def await_events(
    what: str,
    enough: Callable[[Sequence[dict[str, Any]]], object] = len,
    *,
    timeout: float = RECEIVED_SECONDS,
    **asked: Any,
) -> list[dict[str, Any]]:
    """Wait until the server has written enough of the events, or any: it does so every five seconds."""

    async def there() -> list[dict[str, Any]]:
        found = await read_events(**asked)
        return found if enough(found) else []

    return await await_until(there, timeout, what, 0.5)


def names(events: Sequence[dict[str, Any]]) -> list[str]:
    """Their names, without `slurm.job.`."""
    return [str(event["event"]).removeprefix("slurm.job.") for event in events]
