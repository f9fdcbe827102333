"""Prefect's flow engine, fitted for runs that live as coroutines in a worker."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from prefect import Flow
from prefect._flow_run_suspension import FlowRunSuspensionRequest
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import AsyncFlowRunEngine


class ResidentEngine(AsyncFlowRunEngine[Any, Any]):
    """The engine of one resident run.

    It differs from Prefect's in three ways, all because the worker outlives the coroutine and has many:
    - a coroutine that dies does not end the run as crashed: the worker takes the run up again;
    - nothing listens for a suspension of the run, for which Prefect has a thread with a connection for each run:
      a job that was submitted cannot be suspended from here;
    - a run that is to be run again is told so by the worker, when its coroutine has ended.
    """

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Generator[FlowRunSuspensionRequest, None, None]:
        """The request that nobody makes."""
        yield self._get_flow_run_suspension_request()

    async def handle_success(self, result: Any) -> Any:
        """As Prefect does it; a run that is to be run again is left as it is until its coroutine has ended.

        As soon as the server knows of it, the worker may get the run from its queue.
        """
        if isinstance(result, State) and result.is_scheduled() and self.flow_run is not None:
            self.flow_run.state = result
            self._return_value = result
            return result
        return await super().handle_success(result)

    async def handle_crash(self, exc: BaseException) -> None:
        """Leave the run's state alone; whoever runs this engine decides."""
        self._raised = cast(Exception, exc)


async def run_resident(flow: Flow[..., Any], flow_run: FlowRun, parameters: dict[str, Any]) -> State[Any]:
    """Run a flow run to its end in this event loop.

    Returns:
        The final state, as the server has it; or the scheduled one that it is to get.

    Raises:
        prefect.exceptions.Abort: The server does not let the run start.
        BaseException: What killed the coroutine; the run's state is left as it was.
    """
    engine = ResidentEngine(flow=flow, flow_run=flow_run, parameters=parameters)
    async with engine.start():
        while engine.is_running():
            async with engine.run_context():
                _result: Any = await engine.call_flow_fn()
    return engine.state
