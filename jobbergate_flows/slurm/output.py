"""A job's output, followed by offset: bounded in rate and in total, nothing skipped or doubled across a restart."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.errors import ClusterUnreachable, FileRefused
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.paths import task_path

Stream = Literal["stdout", "stderr"]
_LINE_BYTES = 8192
_PIECE_BYTES = 64 * 1024
_FILES_A_ROUND = 50
_ENTRIES = 100


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """How much of a job's output is followed, in bytes: in one round, and in all."""

    round: int = 64 * 1024
    total: int = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line of output; `task` is the array task's number."""

    text: str
    stream: Stream
    task: int | None = None


class OutputFollower:
    """Reads what a job has written since the last look.

    Args:
        offsets: Path -> bytes that were delivered before.
    """

    def __init__(
        self,
        cluster: Cluster,
        job: SlurmJob,
        offsets: Mapping[str, int] | None = None,
        limits: OutputLimits | None = None,
    ) -> None:
        self._cluster = cluster
        self._job = job
        self._limits = limits or OutputLimits()
        self.offsets: dict[str, int] = dict(offsets or {})
        """Path -> bytes delivered by now."""
        self._next_file = 0

    async def read(self, status: JobStatus | None, *, to_the_end: bool = False) -> list[OutputLine]:
        """The complete lines written since the last call, within the limits.

        Args:
            status: The job's newest status: which array tasks there are.
            to_the_end: The job is over: an unfinished last line counts as well.
        """
        files = output_files(self._job, status)
        if not to_the_end and len(files) > _FILES_A_ROUND:
            start = self._next_file % len(files)
            files = (files + files)[start : start + _FILES_A_ROUND]
            self._next_file = start + _FILES_A_ROUND
        lines: list[OutputLine] = []
        budget = self._left() if to_the_end else min(self._limits.round, self._left())
        for path, stream, task in files:
            while budget > 0:
                # A whole line at least: the limits may be passed by a part of one.
                read, found = await self._read(path, max(min(budget, _PIECE_BYTES), _LINE_BYTES), to_the_end)
                if not read:
                    break
                budget -= read
                lines += [OutputLine(text, stream, task) for text in found]
                if self._left() <= 0:
                    lines.append(OutputLine(f"[no more output is shown; all of it is in {path}]", stream, task))
        return lines

    def _left(self) -> int:
        return self._limits.total - sum(self.offsets.values())

    async def _read(self, path: str, limit: int, to_the_end: bool) -> tuple[int, list[str]]:
        offset = self.offsets.get(path, 0)
        try:
            chunk = await self._cluster.read(path, offset=offset, limit=limit)
        except (ClusterUnreachable, FileRefused, OSError):
            return 0, []
        if chunk is None:
            return 0, []
        if chunk.size < offset:
            # The file was begun anew (a requeue with open-mode truncate).
            self.offsets[path] = 0
            return await self._read(path, limit, to_the_end)
        data = chunk.data
        if not (to_the_end and offset + len(data) >= chunk.size):
            complete = data.rfind(b"\n") + 1
            if not complete and len(data) < _LINE_BYTES:
                return 0, []
            data = data[:complete] if complete else _whole_characters(data)
        self.offsets[path] = offset + len(data)
        return len(data), _lines(data)


def output_files(job: SlurmJob, status: JobStatus | None) -> list[tuple[str, Stream, int | None]]:
    """The files into which a job writes: path, stream, and the number of the array task, of those that have begun."""
    tasks: list[int | None] = [None]
    if job.array:
        tasks = [row.array_task_id for row in status.rows if row.start or row.end] if status else []
    files: list[tuple[str, Stream, int | None]] = []
    for task in tasks:
        if job.standard_output:
            files.append((task_path(job.standard_output, task), "stdout", task))
        if job.standard_error and job.standard_error != job.standard_output:
            files.append((task_path(job.standard_error, task), "stderr", task))
    return files


async def tail(cluster: Cluster, path: str, lines: int) -> list[str]:
    """The last lines of a file; empty when there is none."""
    size_probe = await cluster.read(path, offset=0, limit=0)
    if size_probe is None:
        return []
    want = min(size_probe.size, lines * 400 + 4096)
    chunk = await cluster.read(path, offset=size_probe.size - want, limit=want)
    found = _lines(chunk.data) if chunk else []
    if want < size_probe.size:
        found = found[1:]
    return found[-lines:] if lines else []


def _joined(lines: Sequence[OutputLine]) -> OutputLine:
    return OutputLine("\n".join(line.text for line in lines), lines[0].stream, lines[0].task)


def _whole_characters(data: bytes) -> bytes:
    """The data without a character of UTF-8 that is cut at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    cut, _ = decoder.getstate()
    return data[: len(data) - len(cut)]


def _lines(data: bytes) -> list[str]:
    if not data:
        return []
    found = []
    for raw in data.removesuffix(b"\n").split(b"\n"):
        # A progress bar writes over itself: its last state is what one would see.
        text = raw.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode(errors="replace")
        text = text.replace("\x00", "")
        found += [text[i : i + _LINE_BYTES] for i in range(0, len(text), _LINE_BYTES)] or [""]
    return found


def in_entries(lines: Sequence[OutputLine]) -> list[OutputLine]:
    """The lines as entries of a log: each its own, or, of a flood, many of one stream and task together.

    A job that prints a million empty lines is no reason for a million entries.
    """
    if len(lines) <= _ENTRIES:
        return list(lines)
    entries: list[OutputLine] = []
    gathered: list[OutputLine] = []
    size = 0
    for line in lines:
        another = bool(gathered) and (line.stream, line.task) != (gathered[0].stream, gathered[0].task)
        if another or size + len(line.text) > _LINE_BYTES:
            entries.append(_joined(gathered))
            gathered, size = [], 0
        gathered.append(line)
        size += len(line.text) + 1
    return [*entries, _joined(gathered)]


def with_task(lines: Sequence[OutputLine]) -> list[str]:
    """The lines for people: an array task's with its number in front."""
    return [line.text if line.task is None else f"[{line.task}] {line.text}" for line in lines]
