"""What is on its way to the server arrives, whenever it is told."""

from __future__ import annotations

import asyncio
import threading

import pytest
from prefect.client.orchestration import PrefectClient

from jobbergate_flows import outbox
from tests.cluster.prefect_server import PrefectServer
from tests.cluster.waiting import await_until

IDLE_SECONDS = 0.2


class Words(outbox.Outbox[str]):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def tell(self, word: str) -> None:
        self._add(word)

    async def _send_some(self, client: PrefectClient) -> None:
        self.sent.append(self._waiting.popleft())
        if self.sent == ["first"]:
            # The loop is held up, and finds in one turn that the idle time is over and that there is more.
            loop = asyncio.get_running_loop()
            loop.call_later(IDLE_SECONDS - 0.05, threading.Event().wait, 0.2)
            loop.call_later(IDLE_SECONDS + 0.05, self.tell, "second")

    def _failed(self, error: BaseException) -> None:
        raise error


async def test_what_is_told_in_the_moment_in_which_the_idle_time_ends_is_sent(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_IDLE_SECONDS", IDLE_SECONDS)
    words = Words()
    words.tell("first")

    async def both() -> bool:
        return words.sent == ["first", "second"]

    await await_until(both, 30, "both words to be sent")
