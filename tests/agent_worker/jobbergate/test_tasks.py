"""A site's own tasks for the agent go on working: entry points that get a real scheduler."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from agent_worker.jobbergate.tasks import GROUP, TaskScheduler, TasksRefused, site_tasks
from tests.cluster.waiting import wait_until

PLUGIN = """
from datetime import datetime, timedelta
from pathlib import Path

def blocking(scheduler):
    return scheduler.add_job(Path({blocking!r}).touch)

async def note():
    Path({asynchronous!r}).touch()

def asynchronous(scheduler):
    return scheduler.add_job(note, "interval", seconds=0.05)

def late(scheduler):
    # As one whose time passed while another plugin was imported.
    return scheduler.add_job(Path({late!r}).touch, "date", run_date=datetime.now() - timedelta(minutes=1))

def nothing(scheduler):
    return None

def broken(scheduler):
    raise RuntimeError("broken")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with tasks, as a site installs it; the agent's own beside them."""
    code = PLUGIN.format(**{name: str(tmp_path / name) for name in ("blocking", "asynchronous", "late")})
    (tmp_path / "site_tasks_plugin.py").write_text(code)
    info = tmp_path / "site_tasks_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-tasks-plugin\nVersion: 1\n")
    names = ("broken", "blocking", "asynchronous", "late", "nothing")
    lines = [f"{name} = site_tasks_plugin:{name}" for name in names]
    lines += ["pending-jobs = jobbergate_agent.tasks:pending_submissions_task"]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_sites_tasks_are_found_without_the_agents_own(plugin: Path) -> None:
    assert {task.name for task in site_tasks()} == {"broken", "blocking", "asynchronous", "late", "nothing"}


def test_each_is_scheduled_whatever_it_is_and_one_that_fails_holds_up_no_other(plugin: Path) -> None:
    scheduler = TaskScheduler(site_tasks())
    scheduler.start()
    try:
        wait_until(lambda: (plugin / "asynchronous").exists(), 20, "the asynchronous task")
        wait_until(lambda: (plugin / "blocking").exists(), 20, "the blocking task")
        wait_until(lambda: (plugin / "late").exists(), 20, "the task that is late")
    finally:
        scheduler.stop()
    assert not scheduler.running


def test_without_the_scheduler_the_tasks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apscheduler.schedulers.asyncio", None)
    with pytest.raises(TasksRefused, match="nightly cannot be run") as refused:
        TaskScheduler([EntryPoint("nightly", "site:nightly", GROUP)])
    assert "agent-tasks" in str(refused.value)
