"""No Slurm at all: jobs are processes of this machine.

It makes the demo and a laptop work. Of a script's options, output, error, array, time limit, job name and working
directory are honoured; partitions, memory and the like are not. Jobs outlive the process that submitted them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jobbergate_flows.slurm import local_runner
from jobbergate_flows.slurm.arrays import parse_array
from jobbergate_flows.slurm.cluster import (
    FileChunk,
    FileEntry,
    Finding,
    FoundJob,
    JobDetails,
    SubmitRequest,
    Witness,
)
from jobbergate_flows.slurm.commands.environment import clean_environment
from jobbergate_flows.slurm.directives import parse_arguments, parse_directives
from jobbergate_flows.slurm.door import OwnAccountDoor
from jobbergate_flows.slurm.errors import SubmissionAmbiguous, SubmissionRefused
from jobbergate_flows.slurm.jobs import Absent, ExitCode, JobRow, Known, Observation
from jobbergate_flows.slurm.options import resources_of
from jobbergate_flows.slurm.paths import output_paths
from jobbergate_flows.slurm.steps import JobRecord, StepRecord
from jobbergate_flows.slurm.units import time_seconds

MAX_ARRAY_SIZE = 1001
"""As Slurm's MaxArraySize by default: task numbers are smaller."""

_KILL_WAIT_SECONDS = 5
_START_GRACE = timedelta(seconds=30)


class LocalCluster:
    """Jobs as processes of this machine, kept in files.

    Args:
        name: The cluster's name.
        root: Where jobs, their scripts and states are kept; made when it is not there.
        max_parallel: How many tasks of one array run at once; otherwise as many as there are processors.
    """

    def __init__(self, name: str = "local", *, root: Path, max_parallel: int | None = None) -> None:
        self._name = name
        self._root = root
        self._max_parallel = max_parallel or os.cpu_count() or 1
        self._door = OwnAccountDoor()

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self._name

    @property
    def user(self) -> str:
        """The own account."""
        return self._door.user

    async def query(self, jobs: Mapping[str, datetime]) -> dict[str, Observation]:
        """See `Cluster.query`."""
        return await asyncio.to_thread(lambda: {job_id: self._observe(job_id) for job_id in jobs})

    async def find(self, job_name: str, *, since: datetime, witness: Witness | None = None) -> list[FoundJob]:
        """See `Cluster.find`. The jobs are in files, so that absence is always proved."""
        return await asyncio.to_thread(self._find, job_name)

    async def submit(self, request: SubmitRequest) -> str:
        """See `Cluster.submit`."""
        return await asyncio.to_thread(self._submit, request)

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """See `Cluster.cancel`."""
        await asyncio.to_thread(self._cancel, job_ids)

    async def details(self, job_id: str, *, since: datetime) -> JobDetails:
        """See `Cluster.details`; there is no accounting."""
        return JobDetails({"User": self.user, "NodeList": platform.node()})

    async def steps(self, job_id: str, *, since: datetime | None = None) -> list[JobRecord]:
        """See `Cluster.steps`: the script is the only step, and what it used is known when it has ended."""
        return await asyncio.to_thread(self._records, job_id)

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""
        await self._door.check_directory(directory)

    async def write_files(
        self,
        directory: str,
        files: Mapping[str, str],
        *,
        ours: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""
        return await self._door.write_files(directory, files, ours=ours, in_place=in_place)

    async def write_secret(self, directory: str, text: str) -> None:
        """See `Cluster.write_secret`."""
        await self._door.write_secret(directory, text)

    async def remove_files(self, directory: str, paths: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        """See `Cluster.remove_files`."""
        await self._door.remove_files(directory, paths, digests=digests)

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""
        return await self._door.read(path, offset=offset, limit=limit)

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""
        return await self._door.list_files(directory, limit=limit)

    async def check(self) -> list[Finding]:
        """See `Cluster.check`."""
        return [
            Finding("local", True, f"jobs are processes of {platform.node()}, kept in {self._root}"),
            Finding("parallel", True, f"up to {self._max_parallel} tasks of an array at once"),
        ]

    def _submit(self, request: SubmitRequest) -> str:
        if not request.script.startswith("#!"):
            raise SubmissionRefused(
                "This does not look like a batch script: the first line must start with #! and an interpreter",
                hint="begin the template with #!/bin/bash",
            )
        said, asked = parse_directives(request.script), parse_arguments(request.arguments)
        if faults := (*said.faults, *asked.faults):
            raise SubmissionRefused(faults[0], hint="correct the script's #SBATCH lines")
        options = {**said.options, **asked.options}
        resources = resources_of(asked).over(resources_of(said))
        array = "array" in options
        tasks, parallel = self._tasks(options.get("array"))
        job_id, folder = self._new_folder()
        output, error = output_paths(
            options, directory=request.directory, job_id=job_id, job_name=request.job_name,
            user=self.user, array=array,
        )  # fmt: skip
        script = folder / "script"
        script.write_text(request.script)
        script.chmod(0o700)
        environment = clean_environment() | {
            "SLURM_CLUSTER_NAME": self.name,
            "SLURM_JOB_ID": job_id,
            "SLURM_JOBID": job_id,
            "SLURM_JOB_NAME": request.job_name,
            "SLURM_SUBMIT_DIR": request.directory,
            "SLURM_JOB_NODELIST": platform.node(),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS": str(resources.tasks or 1),
            "SLURM_CPUS_ON_NODE": str(os.cpu_count() or 1),
            "SLURM_CPUS_PER_TASK": str(resources.cpus_per_task or 1),
        }
        numbers = [task for task in tasks if task is not None]
        if numbers:
            environment |= {
                "SLURM_ARRAY_JOB_ID": job_id,
                "SLURM_ARRAY_TASK_COUNT": str(len(numbers)),
                "SLURM_ARRAY_TASK_MIN": str(numbers[0]),
                "SLURM_ARRAY_TASK_MAX": str(numbers[-1]),
            }
        self._write(
            folder / "job.json",
            {
                "name": request.job_name,
                "submit": datetime.now(UTC).timestamp(),
                "tasks": tasks,
                "parallel": parallel,
                "limit": _seconds(resources.time_limit),
                "kill_wait": _KILL_WAIT_SECONDS,
                "script": str(script),
                "directory": request.directory,
                "output": output,
                "error": error,
                "append": options.get("open-mode") == "append",
                "environment": environment,
            },
        )
        try:
            # It returns at once, with the job's own process begun.
            subprocess.run(
                [sys.executable, "-I", local_runner.__file__, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": environment["PATH"], "LC_ALL": "C.UTF-8"},
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SubmissionAmbiguous(f"the job's process did not begin: {error}") from error
        return job_id

    def _tasks(self, array: str | None) -> tuple[list[int | None], int]:
        if array is None:
            return [None], 1
        try:
            spec = parse_array(array)
        except ValueError as error:
            raise SubmissionRefused(f"Invalid job array specification: {error}") from error
        if spec.largest >= MAX_ARRAY_SIZE:
            raise SubmissionRefused(
                f"Invalid job array specification: task {spec.largest} is beyond {MAX_ARRAY_SIZE - 1}",
                hint="this cluster is one machine without Slurm",
            )
        return list(spec.tasks()), min(spec.at_once or self._max_parallel, self._max_parallel)

    def _new_folder(self) -> tuple[str, Path]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._root / "next").open("a+") as counter:
            fcntl.flock(counter, fcntl.LOCK_EX)
            counter.seek(0)
            number = int(counter.read() or 1)
            # The one before may have died before it counted on.
            while (folder := self._root / str(number)).exists():
                number += 1
            folder.mkdir(mode=0o700)
            counter.seek(0)
            counter.truncate()
            counter.write(str(number + 1))
        return str(number), folder

    def _observe(self, job_id: str) -> Observation:
        folder = self._root / job_id
        job = self._read_json(folder / "job.json")
        if job is None or not _is_id(job_id):
            return Absent()
        state = self._read_json(folder / "state.json")
        # A job whose runner never wrote a state lost it in the moment of its start.
        begun = datetime.fromtimestamp(job["submit"], UTC)
        lost = not _is_running(state) if state is not None else datetime.now(UTC) - begun > _START_GRACE
        if lost:
            # The runner may have written its last word just before it ended.
            state = self._read_json(folder / "state.json")
        entries = state["tasks"] if state else {}
        return Known(tuple(_row(job_id, job, task, entries, lost) for task in job["tasks"]))

    def _records(self, word: str) -> list[JobRecord]:
        job_id, _, task = word.partition("_")
        observed = self._observe(job_id)
        rows = observed.rows if isinstance(observed, Known) else ()
        state = self._read_json(self._root / job_id / "state.json") if rows else None
        entries = state["tasks"] if state else {}
        return [
            _record(row, entries.get("" if row.array_task_id is None else str(row.array_task_id), {}))
            for row in rows
            if not task or row.job_id == word
        ]

    def _find(self, job_name: str) -> list[FoundJob]:
        found = []
        for folder in self._root.glob("[0-9]*"):
            job = self._read_json(folder / "job.json")
            if job is not None and job["name"] == job_name:
                observed = self._observe(folder.name)
                state = observed.rows[0].state if isinstance(observed, Known) else "PENDING"
                found.append(FoundJob(folder.name, datetime.fromtimestamp(job["submit"], UTC), state))
        return sorted(found, key=lambda job: int(job.job_id))

    def _cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            folder = self._root / job_id
            if _is_id(job_id) and folder.is_dir():
                (folder / "cancel").write_text(str(os.getuid()))

    @staticmethod
    def _write(path: Path, content: Mapping[str, Any]) -> None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content))
        new.replace(path)

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            content: dict[str, Any] = json.loads(path.read_text())
            return content
        return None


def _row(job_id: str, job: Mapping[str, Any], task: int | None, entries: Mapping[str, Any], lost: bool) -> JobRow:
    entry = entries.get("" if task is None else str(task), {"state": "PENDING"})
    state = entry["state"]
    if lost and state in ("PENDING", "RUNNING"):
        state = "NODE_FAIL"
    return JobRow(
        job_id=job_id if task is None else f"{job_id}_{task}",
        array_job_id=job_id,
        array_task_id=task,
        state=state,
        source="local",
        reason="Resources" if state == "PENDING" else None,
        exit_code=ExitCode(entry["code"], entry["signal"]) if "code" in entry else None,
        cancelled_by=entry.get("by"),
        user_id=os.getuid(),
        submit=datetime.fromtimestamp(job["submit"], UTC),
        start=datetime.fromtimestamp(entry["start"], UTC) if "start" in entry else None,
        end=datetime.fromtimestamp(entry["end"], UTC) if "end" in entry else None,
        nodes=platform.node() if "start" in entry else None,
        time_limit=math.ceil(job["limit"] / 60) if job["limit"] else None,
        node_count=1,
        cpus=int(job["environment"]["SLURM_NTASKS"]) * int(job["environment"]["SLURM_CPUS_PER_TASK"]),
    )


def _record(row: JobRow, entry: Mapping[str, Any]) -> JobRecord:
    until = row.end or datetime.now(UTC)
    elapsed = int((until - row.start).total_seconds()) if row.start else 0
    user, system = entry.get("cpu", (None, None))
    step = StepRecord(
        "batch", row.state, start=row.start, end=row.end, elapsed=elapsed, cpus=row.cpus or 0, nodes=1, tasks=1,
        total_cpu=None if user is None else user + system, user_cpu=user, system_cpu=system,
        max_rss=entry.get("max_rss"), max_rss_node=row.nodes,
    )  # fmt: skip
    return JobRecord(
        row.job_id, "", row.state, row.exit_code, submit=row.submit, eligible=row.submit, start=row.start,
        end=row.end, elapsed=elapsed, time_limit=row.time_limit, cpus=row.cpus or 0, nodes=1,
        steps=(step,) if row.start else (),
    )  # fmt: skip


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_running(state: Mapping[str, Any]) -> bool:
    pid: int = state["pid"]
    started: str | None = state["started"]
    return started is not None and local_runner.process_start(pid) == started


def _seconds(limit: str | None) -> float | None:
    """sbatch's time forms in seconds; None for no limit."""
    seconds = time_seconds(limit) if limit else math.inf
    return seconds if seconds < math.inf else None
