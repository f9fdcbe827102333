"""The slots of a deployment's concurrency limit: so many of its runs go on at once."""

from __future__ import annotations

import logging
from http import HTTPStatus
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_logger = logging.getLogger(__name__)
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NOTHING_DONE = (HTTPStatus.LOCKED, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""All are taken; the database is busy; the limit is less than one."""


async def limit_of(client: PrefectClient, deployment_id: UUID | None) -> GlobalConcurrencyLimitResponse | None:
    """The concurrency limit of a deployment, with how many slots are taken; None without one."""
    if deployment_id is None:
        return None
    try:
        return (await client.read_deployment(deployment_id)).global_concurrency_limit
    except ObjectNotFound:
        return None


async def take_slot(client: PrefectClient, deployment_id: UUID | None) -> bool:
    """Take a slot without a lease: it is taken until a run of the deployment ends, or is deleted, that has no lease.

    What may have reached the server is not sent again: a slot too many may be taken for ever.

    Returns:
        Whether there is nothing to take any more; False where none is free, or the server cannot be reached.
    """
    limit = await limit_of(client, deployment_id)
    if limit is None:
        return True
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            # With settings of its own: a client that is there already may send again by itself.
            async with get_client(httpx_settings={}) as once:
                await once.increment_concurrency_slots([limit.name], 1, "concurrency")
    except _NOTHING_SENT:
        return False
    except PrefectHTTPStatusError as error:
        if error.response.status_code in _NOTHING_DONE:
            return False
        _not_said(limit.name, error)
    except httpx.TransportError as error:
        _not_said(limit.name, error)
    return True


async def give_slots_back(client: PrefectClient, limit: GlobalConcurrencyLimitResponse, slots: int) -> None:
    """Have so many slots of a limit free again."""
    await client.request("POST", "/v2/concurrency_limits/decrement", json={"names": [limit.name], "slots": slots})


def _not_said(name: str, error: Exception) -> None:
    _logger.warning("The server did not say whether it has counted a slot of %s: %r", name, error)
