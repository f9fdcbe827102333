"""HTTP that waits out an outage of the Prefect server, so that runs survive it."""

from __future__ import annotations

import asyncio
import logging

import httpx

_logger = logging.getLogger(__name__)
_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 15.0
_AT_ONCE = 4


class OutageTransport(httpx.AsyncBaseTransport):
    """Sends a request again, for as long as it takes, while the server cannot be reached.

    Prefect's own client gives up after six tries, and its engine then ends the run as crashed, whatever its job does.

    Only few requests are under way at once, however many runs there are: Prefect's server on SQLite locks itself up
    under more, and no other server gets faster by it.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._transport = transport or httpx.AsyncHTTPTransport(retries=0)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._out = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the first answer that is not an outage's."""
        delay = _FIRST_SECONDS
        while True:
            try:
                async with self._turns:
                    response = await self._transport.handle_async_request(request)
            except httpx.TransportError as error:
                cause = f"{type(error).__name__}: {error}"
            else:
                if response.status_code not in (502, 503, 504):
                    if self._out:
                        self._out = False
                        _logger.warning("The Prefect server answers again")
                    return response
                cause = f"status {response.status_code}"
                await response.aclose()
            if not self._out:
                self._out = True
                _logger.warning("The Prefect server cannot be reached (%s); waiting for it", cause)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_SECONDS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
