"""Prefect tasks that end in a state with words, and raise for who called them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.utilities.asyncutils import run_coro_as_sync

P = ParamSpec("P")
R = TypeVar("R")


class JobTask(Task[P, R]):
    """A task whose function may return a failed state that holds an error.

    Its run then ends in that state (`OutOfMemory`, `Failed`, ...), without a traceback in the logs of an error that is
    the job's and not the program's. A caller gets the error raised, as from any task; Prefect itself would hand out the
    state.
    """

    def __call__(  # type: ignore[override]  # its overloads, in one
        self, *args: Any, return_state: bool = False, **kwargs: Any
    ) -> Any:
        """Run the task, and return its result, its state, or a coroutine of either."""
        ended = super().__call__(*args, return_state=True, **kwargs)
        if return_state:
            return ended
        return _result_of(ended) if inspect.isawaitable(ended) else run_coro_as_sync(ended.aresult())

    def with_options(self, *args: Any, **options: Any) -> Any:
        """As `Task.with_options`, and still of this kind."""
        changed = super().with_options(*args, **options)
        changed.__class__ = type(self)
        return changed


def job_task(name: str) -> Callable[[Callable[P, R]], JobTask[P, R]]:
    """A task of this package: its results are not cached, and it is not retried by itself: submitting again is not
    what a retry of the same call may do."""

    def decorate(function: Callable[P, R]) -> JobTask[P, R]:
        return JobTask(function, name=name, cache_policy=NO_CACHE, retries=0)

    return decorate


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Prefect logs a returned failure with the traceback of an exception, which there is not: `NoneType: None`."""
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is None:
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)


async def _result_of(ended: Any) -> Any:
    state: State[Any] = await ended
    return await state.aresult()
