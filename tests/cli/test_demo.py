"""The demo, as somebody sees it who tries this package for the first time."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from jobbergate_flows.cli.exits import Exit
from tests.cli.command_line import run, start
from tests.cluster.waiting import wait_until

_STATE = r"^\d\d:\d\d:\d\d (Scheduled|Pending|Submitting|Running|Completed|Failed)\b"


def processes_of(folder: str) -> list[str]:
    """The processes that have a folder in their environment or their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            # It has ended by now, or is another's.
            continue
        if folder.encode() in told:
            found.append(process.name)
    return found


@pytest.mark.parametrize(
    ("job_does", "code", "end", "says"),
    [
        (
            None,
            0,
            "Completed",
            ["240 of 240 points done", "stiffness,settling_time,overshoot", "Completed: exit code 0"],
        ),
        ("echo no such study; exit 3", 1, "Failed", ["no such study", "Failed: exit code 3"]),
    ],
    ids=["completed", "failed"],
)
def test_the_demo_tells_a_run_from_its_start_to_its_end_and_leaves_nothing(
    tmp_path: Path, job_does: str | None, code: int, end: str, says: list[str]
) -> None:
    path = os.environ["PATH"]
    if job_does is not None:
        # What the example's job script calls.
        (tmp_path / "python3").write_text(f"#!/bin/sh\n{job_does}\n")
        (tmp_path / "python3").chmod(0o755)
        path = f"{tmp_path}:{path}"

    ended = run("demo", env={"PATH": path, "TMPDIR": str(tmp_path)})

    assert ended.code == code, ended.out + ended.err
    folder = re.findall(r"SQLite in (\S+)", ended.out)[0]
    assert Path(folder).parent == tmp_path
    assert not Path(folder).exists()
    assert processes_of(folder) == []
    assert re.search(rf"as Slurm job \d+ on local; its job script is {folder}/jobs/\S+\.sh$", ended.out, re.MULTILINE)
    # A job that is over at once may not be seen running: that it was Running is then told once.
    told = list(dict.fromkeys(re.findall(_STATE, ended.out, re.MULTILINE)))
    assert told == ["Scheduled", "Pending", "Submitting", "Running", end]
    for line in says:
        assert line in ended.out
    addresses = re.findall(r"the run in the UI: http://127\.0\.0\.1:\d+/runs/flow-run/[0-9a-f-]{36}$", ended.out, re.M)
    assert len(addresses) == 1


def test_an_interrupted_demo_ends_its_job_too(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (tmp_path / "python3").write_text(f"#!/bin/sh\ntouch {runs}\nexec sleep 600\n")
    (tmp_path / "python3").chmod(0o755)
    demo = start("demo", env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)})
    try:
        wait_until(runs.exists, 120, "the job")
        demo.send_signal(signal.SIGINT)
        out, _ = demo.communicate(timeout=120)
    finally:
        demo.kill()

    assert demo.returncode == Exit.INTERRUPTED
    assert "Cancelling the run and its job\n" in out
    folder = re.findall(r"SQLite in (\S+)", out)[0]
    assert not Path(folder).exists()
    assert processes_of(folder) == []
