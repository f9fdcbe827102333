"""Lines for a run's logs, of which is known when the server has them.

Prefect's own handler keeps lines for two seconds and forgets them where the server does not answer: what a job has
written would be missing when its worker is killed, or its server is away for a moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.settings import get_current_settings

from jobbergate_flows.outbox import Outbox
from jobbergate_flows.slurm.output import OutputLine, in_entries, with_task

_GATHER_SECONDS = 0.5
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 15.0, 15.0)
_BATCH = 500


@dataclass(frozen=True, slots=True)
class _Waiting:
    logs: Sequence[LogCreate]
    sent: asyncio.Future[None]


class LogOutbox(Outbox[_Waiting]):
    """Lines on their way to the server: those of all jobs of an event loop in one request each half second."""

    async def send(self, logs: Sequence[LogCreate]) -> None:
        """Return when the server has these lines. Nothing is sent where the settings want no logs there.

        Raises:
            httpx.HTTPError: It has not taken them for most of a minute, or refuses them.
        """
        if not logs or not get_current_settings().logging.to_api.enabled:
            return
        waiting = _Waiting(logs, asyncio.get_running_loop().create_future())
        self._add(waiting)
        await waiting.sent

    async def _send_some(self, client: PrefectClient) -> None:
        # What other jobs say meanwhile goes along.
        await asyncio.sleep(_GATHER_SECONDS)
        batch = [self._waiting.popleft()]
        while self._waiting and sum(len(one.logs) for one in batch) < _BATCH:
            batch.append(self._waiting.popleft())
        await _send(client, batch)

    def _failed(self, error: BaseException) -> None:
        # Nobody waits for lines that a dead task would have sent.
        _settle(self._waiting, error)
        self._waiting.clear()


async def send_output(
    logger: logging.Logger | logging.LoggerAdapter[Any],
    lines: Sequence[OutputLine],
    flow_run_id: UUID | None,
    task_run_id: UUID | None = None,
) -> None:
    """Bring lines of a job's output into the logs of a run, standard error as warnings; outside of a run only here.

    Returns when the server has them: whoever then notes that they were handed over may die.

    Raises:
        httpx.HTTPError: See `LogOutbox.send`.
    """
    entries = in_entries(lines)
    levels = [logging.WARNING if line.stream == "stderr" else logging.INFO for line in entries]
    said = list(zip(levels, with_task(entries), strict=True))
    if flow_run_id is not None:
        common = {"name": logger.name, "flow_run_id": flow_run_id, "task_run_id": task_run_id}
        # The server sorts by time: no two lines may have the same one.
        now = datetime.now(UTC)
        times = [now + timedelta(microseconds=number) for number in range(len(said))]
        logs = [
            LogCreate.model_validate({**common, "level": level, "message": text, "timestamp": time})
            for time, (level, text) in zip(times, said, strict=True)
        ]
        await LogOutbox.here().send(logs)
    for level, text in said:
        logger.log(level, "%s", text, extra={"send_to_api": False})


async def _send(client: PrefectClient, batch: Sequence[_Waiting]) -> None:
    try:
        await _post(client, [log for one in batch for log in one.logs])
    except httpx.HTTPStatusError as error:
        if len(batch) == 1 or _may_pass(error):
            _settle(batch, error)
            return
        # Of several jobs' lines only some may be what the server refuses.
        for one in batch:
            await _send(client, [one])
    except BaseException as error:
        _settle(batch, error)
        if not isinstance(error, Exception):
            raise
    else:
        _settle(batch, None)


def _settle(batch: Iterable[_Waiting], error: BaseException | None) -> None:
    for one in batch:
        if one.sent.done():
            continue
        if error is None:
            one.sent.set_result(None)
        elif isinstance(error, Exception):
            one.sent.set_exception(error)
        else:
            one.sent.cancel()


async def _post(client: PrefectClient, logs: Sequence[LogCreate]) -> None:
    for delay in (*_RETRY_SECONDS, None):
        try:
            await client.create_logs(logs)
            return
        except httpx.HTTPStatusError as error:
            if delay is None or not _may_pass(error):
                raise
        except httpx.HTTPError:
            if delay is None:
                raise
        await asyncio.sleep(delay)


def _may_pass(error: httpx.HTTPStatusError) -> bool:
    """Whether the server may take the same lines later."""
    return error.response.status_code >= 500 or error.response.status_code in (408, 429)
