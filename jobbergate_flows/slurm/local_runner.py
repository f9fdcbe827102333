"""Runs one local job, or all tasks of a local array, and writes down what becomes of it.

Started by `LocalCluster` (`python -I local_runner.py JOB_FOLDER`), it goes on as a process of its own that outlives
whoever submitted the job. Standard library only. `job.json` says what to run; `state.json` is this program's to write;
a file `cancel`, made by `LocalCluster`, with the uid of who wants it, asks for the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

_TICK_SECONDS = 0.05


def main(folder: str) -> None:
    """Start the job, and return in the process that was called while another one watches over it."""
    if os.fork():
        return
    os.setsid()
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        _Job(folder, json.load(file)).run()


def process_start(pid: int) -> str | None:
    """When a process began, in the kernel's count: with the pid it names one process for good. None: it is over."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in "ZX" else fields[19]


class _Job:
    def __init__(self, folder: str, job: dict[str, Any]) -> None:
        self.folder = folder
        self.job = job
        self.waiting: list[int | None] = list(job["tasks"])
        self.running: list[_Task] = []
        self.state: dict[str, Any] = {
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "tasks": {_key(task): {"state": "PENDING"} for task in self.waiting},
        }

    def run(self) -> None:
        self.save()
        while self.waiting or self.running:
            canceller = self.canceller()
            if canceller is not None:
                self.cancel(canceller)
            while self.waiting and len(self.running) < self.job["parallel"]:
                self.running.append(_Task(self.job, self.waiting.pop(0)))
                self.record(self.running[-1])
            for task in list(self.running):
                if task.look():
                    self.running.remove(task)
                    self.record(task)
            if self.running:
                time.sleep(_TICK_SECONDS)

    def cancel(self, canceller: int) -> None:
        for task in self.waiting:
            self.state["tasks"][_key(task)] = {"state": "CANCELLED", "by": canceller, "end": time.time()}
        if self.waiting:
            self.waiting.clear()
            self.save()
        for running in self.running:
            running.end("CANCELLED", by=canceller)

    def canceller(self) -> int | None:
        try:
            with open(os.path.join(self.folder, "cancel"), encoding="utf-8") as file:
                return int(file.read())
        except (OSError, ValueError):
            return None

    def record(self, task: _Task) -> None:
        self.state["tasks"][_key(task.number)] = dict(task.entry)
        self.save()

    def save(self) -> None:
        path = os.path.join(self.folder, "state.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.state, file)
        os.replace(path + ".new", path)


class _Task:
    """One process with its group; `entry` is what is written down of it."""

    def __init__(self, job: dict[str, Any], number: int | None) -> None:
        self.number = number
        self.kill_wait: float = job["kill_wait"]
        self.process = _start(job, number)
        self.deadline = time.monotonic() + job["limit"] if job["limit"] else None
        self.kill_at: float | None = None
        self.ending: dict[str, Any] = {}
        self.entry: dict[str, Any] = {"state": "RUNNING", "start": time.time(), "pid": self.process.pid}

    def look(self) -> bool:
        """Whether it is over; it is brought to its end when its time is up."""
        code = self.process.poll()
        if code is None:
            now = time.monotonic()
            if self.deadline is not None and now > self.deadline:
                self.end("TIMEOUT")
            if self.kill_at is not None and now > self.kill_at:
                self.signal(signal.SIGKILL)
            return False
        # What it left behind in its group ends with it, as under Slurm.
        self.signal(signal.SIGKILL)
        self.entry |= {"state": "COMPLETED" if code == 0 else "FAILED", "end": time.time()}
        self.entry["code"], self.entry["signal"] = (code, 0) if code >= 0 else (0, -code)
        self.entry |= self.ending
        return True

    def end(self, state: str, **more: Any) -> None:
        """SIGTERM now, and SIGKILL a few seconds later; the first cause of several counts."""
        if not self.ending:
            self.ending = {"state": state, **more}
            self.kill_at = time.monotonic() + self.kill_wait
            self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def _start(job: dict[str, Any], number: int | None) -> subprocess.Popen[bytes]:
    environment = dict(job["environment"])
    if number is not None:
        environment["SLURM_ARRAY_TASK_ID"] = str(number)
    output, error = (_with_task(job[stream], number, environment["SLURM_JOB_ID"]) for stream in ("output", "error"))
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if job["append"] else os.O_TRUNC)
    opened: list[int] = []
    try:
        opened.append(os.open(output, flags, 0o600))
        if error != output:
            opened.append(os.open(error, flags, 0o600))
        return subprocess.Popen(
            [job["script"]],
            stdin=subprocess.DEVNULL,
            stdout=opened[0],
            stderr=opened[-1],
            cwd=job["directory"],
            env=environment,
            start_new_session=True,
        )
    except OSError as problem:
        # As under Slurm, a job that cannot begin has failed.
        if opened:
            os.write(opened[-1], f"cannot start the job: {problem}\n".encode())
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", "raise SystemExit(1)"], start_new_session=True)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _with_task(path: str, number: int | None, job_id: str) -> str:
    if number is None:
        return path
    path = re.sub(r"%([0-9]*)a", lambda match: str(number).zfill(int(match[1] or 0)), path)
    return re.sub(r"%[0-9]*[jJ]", f"{job_id}_{number}", path)


def _key(number: int | None) -> str:
    return "" if number is None else str(number)


if __name__ == "__main__":
    main(sys.argv[1])
