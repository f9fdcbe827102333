"""The clients of the Jobbergate APIs that a worker talks to, one for each, kept while they work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from jobbergate_flows.blocks.jobbergate import JobbergateAPI
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import JobbergateError

OWN = ""
"""The name of the worker's own API, that of its bridge; all others are names of `JobbergateAPI` blocks."""


class JobbergateClients:
    """`await clients("site")` gives the client of the block `site`. For one event loop.

    Args:
        own: Makes the client of the worker's own API; None where it has none.
    """

    def __init__(self, own: Callable[[], JobbergateClient] | None = None) -> None:
        self._own = own
        self._kept: dict[str, JobbergateClient] = {}
        self._making = asyncio.Lock()

    async def __call__(self, api: str) -> JobbergateClient:
        """The client of an API.

        Raises:
            JobbergateError: There is no such block, or it holds what cannot be used.
        """
        async with self._making:
            if api not in self._kept:
                self._kept[api] = await self._made(api)
            return self._kept[api]

    def has(self, api: str) -> bool:
        """Whether an API is this worker's to talk to; a bridge's is not where another worker has the bridge."""
        return api != OWN or self._own is not None

    async def forget(self, api: str) -> None:
        """Make the client anew next time: its block may have been mended meanwhile."""
        client = self._kept.pop(api, None)
        if client is not None:
            await client.aclose()

    async def _made(self, api: str) -> JobbergateClient:
        if api == OWN:
            if self._own is None:
                raise JobbergateError("this worker has no Jobbergate API of its own", hint="set it up as a bridge")
            return self._own()
        try:
            block = cast(JobbergateAPI, await JobbergateAPI.aload(api))
        except ValueError as error:
            raise JobbergateError(
                f"there is no usable block of that name: {error}",
                where=f"JobbergateAPI block {api!r}",
                hint="save it, or name another in the job variable `jobbergate`",
            ) from error
        return block.client()
