"""Tells Jobbergate what waits in the ledger: in the order of each job, and whatever is down for as long as it is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from agent_worker.jobbergate.clients import OWN, JobbergateClients
from jobbergate_flows.jobbergate.client import JobbergateClient
from jobbergate_flows.jobbergate.errors import JobbergateError, JobbergateRequestError
from jobbergate_flows.jobbergate.links import Link, Links, Waiting
from jobbergate_flows.jobbergate.telling import GRACE_SECONDS, Outcome, outcome_of, tell
from jobbergate_flows.slurm.ledger import Ledger

_logger = logging.getLogger(__name__)
_LONGEST_SECONDS = 60.0
_LONGEST_SULK_SECONDS = 600.0
_AT_ONCE = 4
_SOME = 200
_FORGET_SECONDS = 300.0
# The ledger's database is away then.
_TROUBLED_SECONDS = 15.0


class _Away(Exception):
    """The API takes nothing now."""


@dataclass
class _Pause:
    """How long nothing is tried, longer each time."""

    longest: float
    seconds: float = 0.0
    until: float = 0.0

    def longer(self) -> None:
        self.seconds = min(max(1.0, self.seconds * 2), self.longest)
        self.until = time.monotonic() + self.seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until


@dataclass
class _Api:
    """What is known of one API."""

    name: str
    telling: asyncio.Task[None] | None = None
    pause: _Pause = field(default_factory=lambda: _Pause(_LONGEST_SECONDS))
    why: str | None = None
    """Why it takes nothing; None while it does."""
    sulking: dict[int, _Pause] = field(default_factory=dict)
    """Links of which something was not taken, though the API takes others."""


class Teller:
    """Sends what waits, for all APIs. Of several workers with one ledger one at a time tells an API.

    Args:
        ledger: Gives the worker's ledger, when there is one.
        client_of: Gives the client of an API.
        closes: Whether nothing is told of a link after its job's end; otherwise somebody else closes it.
        cluster: The name of the worker's cluster, whose mirrors are forgotten when nothing came of their submissions.
        seconds: Between two looks into the ledger.
        grace: Seconds; see `telling.GRACE_SECONDS`.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger],
        client_of: JobbergateClients,
        *,
        closes: bool = True,
        cluster: Callable[[], str] | None = None,
        seconds: float = 1.0,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._open_ledger = ledger
        self._clients = client_of
        self._closes = closes
        self._cluster = cluster
        self._seconds = seconds
        self._grace = grace
        self._apis: dict[str, _Api] = {}
        self._forgotten_at = float("-inf")
        self._left = False

    async def run(self) -> None:
        """Do it for ever. To be run in the supervisor's loop."""
        while True:
            try:
                await self._look()
            except Exception:
                _logger.exception("Looking for what Jobbergate is to be told failed; trying again")
                await asyncio.sleep(_TROUBLED_SECONDS)
            await asyncio.sleep(self._seconds)

    @property
    def away(self) -> dict[str, str]:
        """The APIs that take nothing now, and why."""
        return {api.name: api.why for api in self._apis.values() if api.why is not None}

    async def _look(self) -> None:
        ledger = self._open_ledger()
        links = Links(ledger)
        if time.monotonic() - self._forgotten_at > _FORGET_SECONDS:
            self._forgotten_at = time.monotonic()
            if self._cluster is not None:
                await asyncio.to_thread(links.forget_unsubmitted, self._cluster())
            if self._closes:
                # Another worker, which has the bridge, may still send its jobs' metrics.
                await asyncio.to_thread(links.close_ended, without=() if self._clients.has(OWN) else (OWN,))
        for name in await asyncio.to_thread(links.apis_waiting):
            if not self._clients.has(name):
                if not self._left:
                    _logger.warning("What waits for a bridge's Jobbergate is told by the worker that has the bridge")
                self._left = True
                continue
            api = self._apis.setdefault(name, _Api(name))
            if (api.telling is None or api.telling.done()) and api.pause.over:
                # Each by itself: one that hangs holds up no other.
                api.telling = asyncio.create_task(self._tell_some(ledger, links, api))

    async def _tell_some(self, ledger: Ledger, links: Links, api: _Api) -> None:
        try:
            if not await asyncio.to_thread(ledger.claim, _claim(api.name)):
                return
            try:
                await self._tell_waiting(links, api)
            finally:
                await asyncio.to_thread(ledger.release, _claim(api.name))
        except _Away as error:
            await self._note_away(api, error)
        except Exception:
            _logger.exception("Telling the Jobbergate API %r failed; trying again", api.name)
            api.pause.longer()

    async def _tell_waiting(self, links: Links, api: _Api) -> None:
        sulking = [link for link, pause in api.sulking.items() if not pause.over]
        waiting = await asyncio.to_thread(links.waiting, api.name, limit=_SOME, without=sulking)
        if not waiting:
            return
        try:
            client = await self._clients(api.name)
        except JobbergateError as error:
            raise _Away(str(error)) from error
        await self._tell_all(client, links, api, waiting)
        if api.why is not None:
            _logger.info("The Jobbergate API %r takes what it is told again", api.name)
        api.why, api.pause = None, _Pause(_LONGEST_SECONDS)

    async def _tell_all(self, client: JobbergateClient, links: Links, api: _Api, waiting: Sequence[Waiting]) -> None:
        by_link: dict[int, list[Waiting]] = {}
        for one in waiting:
            by_link.setdefault(one.link.id, []).append(one)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def in_turn(own: Sequence[Waiting]) -> None:
            async with turns:
                # What others have found out counts for this one too.
                if not failed:
                    try:
                        await self._tell_link(client, links, api, own)
                    except Exception as error:
                        failed.append(error)

        # To the end of all: who still tells while another one begins would tell twice.
        failed: list[Exception] = []
        await asyncio.gather(*(in_turn(own) for own in by_link.values()))
        if failed:
            raise failed[0]

    async def _tell_link(self, client: JobbergateClient, links: Links, api: _Api, own: Sequence[Waiting]) -> None:
        link_id = own[0].link.id
        for one in own:
            link = await asyncio.to_thread(links.get, link_id)
            if link is None or link.closed:
                return
            now = Waiting(one.id, link, one.message, one.tries, one.slurm_job_id)
            try:
                over = await tell(client, links, now, grace=self._grace)
            except JobbergateError as error:
                match outcome_of(error):
                    case Outcome.AWAY:
                        raise _Away(str(error)) from error
                    case Outcome.LATER:
                        self._sulk(api, link, error)
                    case Outcome.REFUSED:
                        _logger.error("%s is told no more: %s", _named(link), error)
                        api.sulking.pop(link_id, None)
                        await asyncio.to_thread(links.close, link.id, error.message)
                return
            except SQLAlchemyError:
                raise
            except Exception as error:
                _logger.exception("Telling of %s failed", _named(link))
                self._sulk(api, link, error)
                return
            api.sulking.pop(link_id, None)
            if over:
                if self._closes:
                    await asyncio.to_thread(links.close, link.id)
                return

    def _sulk(self, api: _Api, link: Link, error: Exception) -> None:
        pause = api.sulking.setdefault(link.id, _Pause(_LONGEST_SULK_SECONDS))
        first = not pause.seconds
        pause.longer()
        _logger.log(
            logging.WARNING if first else logging.DEBUG, "%s was not told; trying again: %s", _named(link), error
        )

    async def _note_away(self, api: _Api, error: _Away) -> None:
        if api.why is None:
            _logger.warning("The Jobbergate API %r is told later: %s", api.name, error)
        api.why = str(error)
        api.pause.longer()
        if not isinstance(error.__cause__, JobbergateRequestError):
            # Its block may be mended meanwhile.
            await self._clients.forget(api.name)


def _claim(api: str) -> str:
    return f"jobbergate-{hashlib.sha256(api.encode()).hexdigest()[:16]}"


def _named(link: Link) -> str:
    what = f"Job submission {link.submission_id}" if link.submission_id is not None else f"The mirror of {link.key}"
    return f"{what} of the Jobbergate API {link.api!r}"
