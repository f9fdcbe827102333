"""The slots of a deployment's concurrency limit: so many of its runs go on at once."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

_logger = logging.getLogger(__name__)
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


async def take_slot(deployment_id: UUID | None) -> bool:
    """Take a slot without a lease: it is taken until a run of the deployment ends, or is deleted, that has no lease.

    What may have reached the server is not sent again. A slot too many would be taken for ever, and the deployment
    stand still; one too few is one run more for a while.

    Returns:
        Whether there is nothing to take any more; False where all are taken, or the server cannot be reached.

    Raises:
        prefect.exceptions.PrefectHTTPStatusError: The server refuses it for another reason.
    """
    if deployment_id is None:
        return True
    try:
        async with _sending_once() as client:
            deployment = await client.read_deployment(deployment_id)
            if deployment.global_concurrency_limit is None:
                return True
            await client.increment_concurrency_slots([deployment.global_concurrency_limit.name], 1, "concurrency")
    except ObjectNotFound:
        return True
    except _NOTHING_SENT:
        return False
    except httpx.TransportError as error:
        _logger.warning("The server did not say whether deployment %s has got a slot: %r", deployment_id, error)
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status != HTTPStatus.LOCKED and status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return False
    return True


@asynccontextmanager
async def _sending_once() -> AsyncGenerator[PrefectClient, None]:
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        # With settings of its own: otherwise it is the one of this context, which may have a patient transport.
        async with get_client(httpx_settings={}) as client:
            yield client
