"""Keeping live pages current: what is sent, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from jobbergate_flows.artifacts import RunArtifacts
from jobbergate_flows.live import LivePace, LiveReport
from jobbergate_flows.slurm.jobs import JobStatus
from tests.cluster.waiting import await_until
from tests.test_live_page import BEGAN, live

AN_HOUR = LivePace(seconds=3600, usage_seconds=3600, estimate_seconds=3600)


class Recorded:
    """In place of the run's artifacts: all that was to be shown, in order."""

    def __init__(self) -> None:
        self.pages: list[str] = []
        self.percents: list[float] = []

    async def has(self, *, pages: int = 0, percents: int = 0) -> None:
        """Wait until so much was shown."""

        async def there() -> bool:
            return len(self.pages) >= pages and len(self.percents) >= percents

        await await_until(there, 10, "what is to be shown", 0.01)

    async def show(self, name: str, data: Any, **_more: object) -> None:
        (self.percents if name == "progress" else self.pages).append(data)


def report_on(recorded: Recorded, output: Sequence[str] = ()) -> LiveReport:
    """A report on a job that has written that."""

    async def opened() -> RunArtifacts:
        return cast(RunArtifacts, recorded)

    async def read_lines(_status: JobStatus) -> Sequence[str]:
        return tuple(output)

    return LiveReport(opened, live("RUNNING").job, read_lines=read_lines, pace=AN_HOUR)


async def test_output_alone_waits_for_the_pace_and_a_new_state_brings_it_along() -> None:
    recorded = Recorded()
    output: list[str] = []
    report = report_on(recorded, output)
    report.tell(live("RUNNING", start=None, limit=None).status)
    await recorded.has(pages=1)

    for number in range(200):
        output[:] = [f"line {number}"]
        report.heard()
        await asyncio.sleep(0)
    assert len(recorded.pages) == 1
    report.tell(live("SUSPENDED", start=None, limit=None).status)
    await recorded.has(pages=2)
    await report.close()

    assert "line 199" in recorded.pages[1]
    assert "Suspended" in recorded.pages[1]


async def test_the_end_is_shown_whatever_came_before() -> None:
    recorded = Recorded()
    report = report_on(recorded, ["the last line"])
    report.tell(live("RUNNING").status)
    report.tell(live("COMPLETED", end=BEGAN).status)
    await report.close()

    assert "the last line" in recorded.pages[-1]
    assert "Completed" in recorded.pages[-1]
    assert recorded.percents[-1] == 100


async def test_a_server_that_refuses_is_no_concern_of_the_jobs() -> None:
    class Refusing(Recorded):
        async def show(self, name: str, data: Any, **_more: object) -> None:
            await super().show(name, data)
            raise OSError("no server")

    recorded = Refusing()
    report = report_on(recorded)
    report.tell(live("RUNNING").status)
    await recorded.has(percents=1)
    report.tell(live("COMPLETED", end=BEGAN).status)
    await report.close()

    assert recorded.percents[-1] == 100
