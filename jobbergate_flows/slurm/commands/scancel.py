"""scancel: asking for the end of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobbergate_flows.slurm.commands.result import CommandResult, require_answer


@dataclass(frozen=True, slots=True)
class Scancel:
    """Cancel jobs, arrays with all their tasks."""

    job_ids: Sequence[str]
    cluster: str | None = None

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        where = (f"--clusters={self.cluster}",) if self.cluster else ()
        return ("scancel", *where, *self.job_ids)

    def parse(self, result: CommandResult) -> None:
        """Nothing: whether a job is over is seen by looking at it. Unknown ids exit with 0 or complain.

        Raises:
            ClusterUnreachable
        """
        harmless = ("Invalid job id", "already completing or completed", "already finished")
        troubles = [line for line in result.stderr.splitlines() if not any(words in line for words in harmless)]
        if result.returncode is None or (result.returncode and troubles):
            require_answer("scancel", result)
