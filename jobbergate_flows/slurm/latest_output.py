"""The last lines of a running job's output, however much it has written: what `tail` shows, of all its files."""

from __future__ import annotations

from collections.abc import Sequence

from jobbergate_flows.slurm.cluster import Cluster
from jobbergate_flows.slurm.errors import ClusterUnreachable, FileRefused
from jobbergate_flows.slurm.jobs import JobStatus, SlurmJob
from jobbergate_flows.slurm.output import OutputLine, output_files, tail, with_task


class LatestOutput:
    """Looks at the ends of a job's output files.

    Args:
        count: How many lines there are to be at most. Of several files (standard error's, an array's tasks') each has
            its share, those that changed last at the end.
    """

    def __init__(self, cluster: Cluster, job: SlurmJob, count: int) -> None:
        self._cluster = cluster
        self._job = job
        self._count = count
        self._sizes: dict[str, int] = {}
        self._ends: dict[str, Sequence[OutputLine]] = {}

    async def look(self, status: JobStatus) -> tuple[str, ...]:
        """The last lines by now, an unfinished one too; an array task's with its number in front."""
        # Of a large array, those that began last: nobody reads more than some lines.
        for path, stream, task in output_files(self._job, status)[-self._count :]:
            try:
                there = await self._cluster.read(path, offset=0, limit=0)
                if there is None or not there.size or there.size == self._sizes.get(path):
                    continue
                self._ends.pop(path, None)
                lines = await tail(self._cluster, path, self._count)
            except (ClusterUnreachable, FileRefused, OSError):
                # What was seen last is better than nothing.
                continue
            self._ends[path] = [OutputLine(text, stream, task) for text in lines]
            self._sizes[path] = there.size
        shown = list(self._ends.values())[-self._count :]
        share = self._count // max(len(shown), 1)
        return tuple(line for end in shown for line in with_task(end[-share:]))


__all__ = ["LatestOutput"]
