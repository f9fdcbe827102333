"""The clients that a worker's parts share."""

from __future__ import annotations

import asyncio

from agent_worker.jobbergate.clients import JobbergateClients
from jobbergate_flows.blocks.jobbergate import JobbergateAPI
from tests.cluster.prefect_server import PrefectServer


async def test_whoever_asks_at_the_same_time_gets_the_same_client_until_it_is_forgotten(
    prefect_server: PrefectServer,
) -> None:
    block = JobbergateAPI(base_url="https://jobbergate.example.org", login_domain="https://auth.example.org/realms/x")
    await block.asave("shared-client", overwrite=True)
    clients = JobbergateClients()
    first, second = await asyncio.gather(clients("shared-client"), clients("shared-client"))
    assert first is second
    await clients.forget("shared-client")
    assert await clients("shared-client") is not first
