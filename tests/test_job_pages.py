"""The summary page of an ended job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from jobbergate_flows.job_pages import summary_markdown
from jobbergate_flows.slurm.jobs import ExitCode, JobRow, JobStatus, Phase, SlurmJob

JOB = SlurmJob(
    cluster="deep", job_id="42", key="key", name="study", user="alice", directory="/scratch/alice/study-1",
    standard_output="/scratch/alice/study-1/slurm-42.out", standard_error="/scratch/alice/study-1/slurm-42.out",
    submitted_at=datetime(2026, 7, 1, 10, 0, tzinfo=UTC),
)  # fmt: skip
STATUS = JobStatus(
    Phase.FAILED, "Failed", "Failed: exit code 3", "FAILED", final=True, reason="NonZeroExitCode",
    exit_code=ExitCode(3), nodes="node[1-2]", submit=datetime(2026, 7, 1, 10, 0, tzinfo=UTC),
    start=datetime(2026, 7, 1, 10, 1, tzinfo=UTC), end=datetime(2026, 7, 1, 12, 3, 5, tzinfo=UTC),
)  # fmt: skip
SACCT = {"User": "bob", "Account": "physics", "Partition": "debug", "NodeList": "node9", "Elapsed": "02:02:05"}


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as here:
        here.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def cells(page: str) -> dict[str, str]:
    """The first table of a page: label -> value."""
    lines = page.partition("\n## ")[0].splitlines()
    rows = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| ") and line.count("|") == 3]
    return {label: value.strip() for label, value in (row for row in rows if len(row) == 2)}


def test_the_summary_says_all_that_one_asks_of_an_ended_job() -> None:
    page = summary_markdown(JOB, STATUS, SACCT)

    assert page.startswith("# Failed: exit code 3\n")
    assert cells(page) == {
        "Job": "42", "Cluster": "deep", "Name": "study", "State": "FAILED",
        # Accounting knows whose it was; the tracker knows its nodes.
        "User": "bob", "Account": "physics", "Partition": "debug", "Nodes": "node\\[1-2\\]",
        "Submitted": "2026-07-01 12:00:00 CEST", "Started": "2026-07-01 12:01:00 CEST",
        "Ended": "2026-07-01 14:03:05 CEST", "Elapsed": "02:02:05", "Exit code": "3:0", "Reason": "NonZeroExitCode",
        "Directory": "/scratch/alice/study-1", "Standard output": "/scratch/alice/study-1/slurm-42.out",
    }  # fmt: skip
    assert page.endswith("To look further:\n\n```bash\njobbergate-flows job show 42\n```")


def test_without_accounting_the_summary_says_what_is_known_and_shows_no_empty_line() -> None:
    job = JOB.model_copy(update={"standard_error": "/scratch/alice/study-1/errors"})
    found = cells(summary_markdown(job, replace(STATUS, reason=None, nodes=None), {}))

    assert found["User"] == "alice"
    assert found["Elapsed"] == "2:02:05"
    assert found["Standard error"].endswith("/errors")
    assert not {"Account", "Partition", "Nodes", "Reason"} & set(found)
    assert all(found.values())


def test_the_summary_of_a_job_that_never_started_has_no_start() -> None:
    cancelled = replace(STATUS, state="CANCELLED", start=None, exit_code=None)

    assert not {"Started", "Elapsed", "Exit code"} & set(cells(summary_markdown(JOB, cancelled, {})))


def test_the_summary_of_an_array_lists_its_tasks() -> None:
    rows = tuple(
        JobRow(f"42_{task}", "42", state, "sacct", array_task_id=task, exit_code=ExitCode(code), nodes=f"node{task}")
        for task, (state, code) in enumerate([("COMPLETED", 0), ("FAILED", 7)])
    )
    page = summary_markdown(JOB.model_copy(update={"array": True}), replace(STATUS, rows=rows), {})

    assert "| 0 | COMPLETED | 0:0 | node0 |\n| 1 | FAILED | 7:0 | node1 |" in page
    assert "Array tasks" not in summary_markdown(JOB, replace(STATUS, rows=rows[:1]), {})
