"""A site's own tasks for the agent: plugins of the entry-point group `jobbergate_agent.tasks`.

As for the agent, each is a callable that gets a scheduler of APScheduler's and returns the job that it scheduled there,
or None.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from jobbergate_flows.errors import JobbergateFlowsError

_logger = logging.getLogger(__name__)
GROUP = "jobbergate_agent.tasks"
_OWN = "jobbergate_agent."


class TasksRefused(JobbergateFlowsError):
    """There are tasks, and nothing that runs them."""


def site_tasks() -> list[EntryPoint]:
    """The tasks that are installed, without the agent's own, which the bridge stands in for."""
    return [found for found in entry_points(group=GROUP) if not found.value.startswith(_OWN)]


class TaskScheduler:
    """Runs tasks in a thread with an event loop of its own: one that blocks holds up no run.

    Args:
        tasks: Which.

    Raises:
        TasksRefused: APScheduler is not installed.
    """

    def __init__(self, tasks: Sequence[EntryPoint]) -> None:
        try:
            self._made = import_module("apscheduler.schedulers.asyncio").AsyncIOScheduler
        except ModuleNotFoundError as error:
            raise TasksRefused(
                f"{', '.join(task.name for task in tasks)} cannot be run: {error}",
                where=f"entry points of {GROUP}",
                hint="install jobbergate-flows[agent-tasks]",
            ) from error
        self._tasks = tasks
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="jobbergate tasks", daemon=True)

    @property
    def running(self) -> bool:
        """Whether anything is scheduled still."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, in which the tasks are scheduled."""
        self._thread.start()

    def stop(self, patience: float = 10.0) -> None:
        """Schedule nothing any more, and wait some seconds for what runs."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(patience)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        # What is late is done late: APScheduler's own patience is a second, and a plugin's import may take longer.
        scheduler: Any = self._made(job_defaults={"misfire_grace_time": None})
        scheduler.start()
        for task in self._tasks:
            try:
                job = task.load()(scheduler=scheduler)
                if job is not None:
                    job.name = task.name
            except Exception:
                # As the agent does it: one task that fails holds up no other.
                _logger.exception("The task %s = %s cannot be scheduled", task.name, task.value)
        _logger.info("Tasks of the site: %s", ", ".join(task.name for task in self._tasks))
        await self._stopping.wait()
        scheduler.shutdown(wait=False)
