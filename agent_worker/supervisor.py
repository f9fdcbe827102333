"""The thread in which all runs of a worker live: one event loop, one session with the cluster, no process per run."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from agent_worker import flow_jobs, resident
from agent_worker.accounts import AccountSessions
from agent_worker.admission import Admission
from agent_worker.configuration import FlowJobConfiguration
from agent_worker.flow_states import FlowStates
from agent_worker.jobbergate.submission import only_followed
from agent_worker.kinds import submitted_as
from agent_worker.runs import engine_waits, hand_back, may_be_killed, read_run
from agent_worker.slot_audit import SlotAudit
from agent_worker.slots import keep_slot
from agent_worker.transport import OutageTransport
from jobbergate_flows.sessions import using_session
from jobbergate_flows.slurm.session import ClusterSession, SessionObserver

_logger = logging.getLogger(__name__)

Kind = Literal["application", "submission", "flow", "cancelled", "ended"]
T = TypeVar("T")


@dataclass
class HeldRun:
    """A run that lives in this worker."""

    flow_run: FlowRun
    kind: Kind
    life: asyncio.Task[None] = field(repr=False)
    leaving: bool = False


class Supervisor:
    """Holds the runs of one worker.

    Its methods may be called from any thread; everything they start happens in the supervisor's own loop. Stopping
    cancels nothing: the jobs go on, and the next worker takes the runs up again.
    """

    def __init__(
        self,
        make_admission: Callable[[], Awaitable[Admission]],
        work_pool: str,
        observer_of: Callable[[ClusterSession, FlowRun, str | None], SessionObserver] | None = None,
    ) -> None:
        """Make one, to be started.

        Args:
            make_admission: Makes who decides about runs, when it starts.
            work_pool: The name of the runs' work pool.
            observer_of: Gives who hears of the jobs of a run, with the name of the Jobbergate API of its mirrors.
        """
        self._make_admission = make_admission
        self._observer_of = observer_of
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._ready: Future[None] = Future()
        self._stopping = asyncio.Event()
        self._held: dict[UUID, HeldRun] = {}
        self._flow_states = FlowStates()
        self.slot_audit = SlotAudit(work_pool)
        self.coming: set[UUID] = set()
        """The runs that come from their queue just now, and are not held yet."""
        self._services: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.admission: Admission
        """Who decides about runs; there once `start` has returned."""

    @property
    def accounts(self) -> AccountSessions:
        """The sessions with the cluster, by account."""
        return self.admission.accounts

    @property
    def session(self) -> ClusterSession:
        """The worker's own session with the cluster."""
        return self.accounts.own

    @property
    def held(self) -> dict[UUID, HeldRun]:
        """The runs that live here now, by their ids."""
        return dict(self._held)

    @property
    def overdue(self) -> float:
        """Seconds for which the runs' jobs have waited for Slurm to be asked; see `JobTracker.overdue`."""
        return self.session.tracker.overdue if hasattr(self, "admission") else 0.0

    def add_service(self, service: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a coroutine function run beside the runs, from `start` to `stop`. To be called before `start`."""
        self._services.append(service)

    async def start(self) -> None:
        """Start the thread and wait until it can hold runs.

        Raises:
            JobbergateFlowsError: The cluster or the ledger cannot be used.
        """
        self._thread = threading.Thread(target=self._run_loop, name="jobbergate-flows runs", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(self._ready)

    async def stop(self) -> None:
        """Stop the loop and leave every run, job and state as it is."""
        if self._thread is None or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(self._thread.join, 10)

    async def do(self, act: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the supervisor's loop, with its session and client, and return its result."""

        async def inside() -> T:
            # Threads hand over their own context, which knows neither.
            return await asyncio.create_task(act, context=self._context.copy())

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(inside(), self._loop))

    async def hold(
        self,
        flow_run: FlowRun,
        kind: Kind,
        configuration: FlowJobConfiguration | None = None,
        *,
        recovered: bool = False,
    ) -> None:
        """Let a run live here. A run that does already is left alone.

        Args:
            kind: `cancelled` for a run that only waits for the end of its cancelled job, `ended` for one that is over
                itself, or that waits in the process of its engine on a node.
            configuration: The job's configuration; an application's run has of it only where it is mirrored.
            recovered: Whether an earlier worker began the run.
        """

        async def begin() -> None:
            # Looked at again after each wait: of several that waited for one end only the first begins.
            while (held := self._held.get(flow_run.id)) is not None:
                if not held.leaving:
                    return
                # It goes back to its queue, and has come from there already.
                await asyncio.wait([held.life])
            life = asyncio.create_task(self._live(flow_run, kind, configuration, recovered))
            self._held[flow_run.id] = HeldRun(flow_run, kind, life)

        await self.do(begin())

    async def _live(
        self, flow_run: FlowRun, kind: Kind, configuration: FlowJobConfiguration | None, recovered: bool
    ) -> None:
        try:
            if kind == "cancelled":
                await resident.finish_cancelling(await self._session_of(flow_run), flow_run)
                return
            if kind == "ended":
                await self._finish(flow_run)
                return
            if recovered:
                # Who found it left behind looked before it was held: it may have ended since, or be in its queue again.
                now = await read_run(flow_run.id)
                if now is None or now.state is None or now.state.type not in (StateType.PENDING, StateType.RUNNING):
                    return
                flow_run = now
                if not await self._keeps_slot(now, now.state, kind):
                    return
            else:
                # It comes from its queue: whatever job an earlier life of it had, its end was the run's.
                await self.session.mark_run_told(str(flow_run.id), submitted_as(kind))
            admitted = await self.admission.admit(flow_run, kind, configuration if kind == "flow" else None)
            if admitted is None:
                return
            again = None
            api = configuration.jobbergate if configuration is not None else None
            with using_session(self._observed(admitted.session, flow_run, api)):
                if kind == "application":
                    again = await resident.live(flow_run, admitted.parameters, recovered=recovered)
                elif kind == "submission":
                    # Admitted without a bridge is only who has its job already.
                    submissions = self.admission.submissions
                    flow = submissions.flow if submissions is not None else only_followed
                    again = await resident.live(flow_run, admitted.parameters or {}, flow=flow, recovered=recovered)
                elif configuration is not None:
                    again = await flow_jobs.live(flow_run, configuration, self._flow_states)
            if again is not None:
                await self._let_go(flow_run, submitted_as(kind), again)
        except asyncio.CancelledError:
            _logger.debug("Run %s was let go", flow_run.id)
        except BaseException:
            _logger.exception("Run %s was lost by the worker; it is taken up again", flow_run.id)
        finally:
            self._held.pop(flow_run.id, None)

    async def _keeps_slot(self, flow_run: FlowRun, state: State[Any], kind: Kind) -> bool:
        """Whether a run that an earlier worker let come from its queue goes on; see `keep_slot`."""
        self.slot_audit.note(flow_run.deployment_id)
        if kind == "flow" and state.is_running():
            return True  # Its engine renews the lease.
        rows = await asyncio.to_thread(self.session.ledger.of_flow_run, str(flow_run.id))
        return await keep_slot(flow_run, submitted=any(not row.told for row in rows))

    async def _finish(self, flow_run: FlowRun) -> None:
        """Bring what is left of a run that is over itself to its end; or the run to its next attempt."""
        session = await self._session_of(flow_run)
        unsettled = may_be_killed(flow_run.state) or engine_waits(flow_run)
        again = await flow_jobs.finish(session, flow_run, self._flow_states) if unsettled else None
        if again is None:
            await resident.finish_jobs(session, flow_run)
        else:
            await self._let_go(flow_run, "flow", again)

    async def _session_of(self, flow_run: FlowRun) -> ClusterSession:
        """The session of a run that submits nothing more."""
        return self._observed(await self.accounts.of_flow_run(str(flow_run.id)), flow_run, None)

    def _observed(self, session: ClusterSession, flow_run: FlowRun, api: str | None) -> ClusterSession:
        if self._observer_of is None:
            return session
        return session.observed(self._observer_of(session, flow_run, api))

    async def _let_go(self, flow_run: FlowRun, kind: str, again: State[Any]) -> None:
        self._held[flow_run.id].leaving = True
        await hand_back(flow_run.id, again)
        # Not before: a run that is over, and whose job was told of, is nobody's.
        await self.session.mark_run_told(str(flow_run.id), kind)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        with ExitStack() as stack:
            # Prefect's heartbeat is a thread for each run; the worker's own heartbeat speaks for its runs.
            stack.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))
            try:
                self._loop.run_until_complete(self._main())
            except BaseException as error:
                if not self._ready.done():
                    self._ready.set_exception(error)
                else:
                    _logger.exception("The worker's runs stopped")
        # The loop is neither closed nor emptied: cancelling a coroutine would end its run.
        self._loop.set_exception_handler(lambda _loop, _context: None)

    async def _main(self) -> None:
        self.admission = await self._make_admission()
        async with AsyncClientContext(httpx_settings={"transport": OutageTransport()}):
            with using_session(self.session):
                self._context = copy_context()
                services = [asyncio.create_task(service()) for service in self._services]
                services.append(asyncio.create_task(self._flow_states.watch()))
                for service in services:
                    service.add_done_callback(_report_death)
                self._ready.set_result(None)
                await self._stopping.wait()
                await self.accounts.close()


def _report_death(service: asyncio.Task[None]) -> None:
    if not service.cancelled() and (error := service.exception()) is not None:
        _logger.error("A service of the worker ended", exc_info=error)
