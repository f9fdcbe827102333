"""What a command gave back, and the errors that every command can end with."""

from __future__ import annotations

from dataclasses import dataclass

from jobbergate_flows.slurm.deputy import Ended
from jobbergate_flows.slurm.errors import ClusterUnreachable


@dataclass(frozen=True, slots=True)
class CommandResult:
    """A finished command. `returncode` is None when it had to be killed, mostly because its time was up."""

    stdout: str
    stderr: str
    returncode: int | None

    @classmethod
    def of(cls, ended: Ended) -> CommandResult:
        """The result of a command that ran."""
        return cls(ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace"), ended.code)

    @property
    def words(self) -> str:
        """What the command said of its failure, in one line."""
        text = " ".join((self.stderr or self.stdout).split())
        return text or f"exit code {self.returncode}"


def require_answer(command: str, result: CommandResult) -> str:
    """The standard output of a command that succeeded.

    Raises:
        ClusterUnreachable: It did not. A failed command is no information: nothing is absent because of it.
    """
    if result.returncode is None:
        raise ClusterUnreachable(f"{command} did not answer in time")
    if result.returncode != 0:
        raise ClusterUnreachable(f"{command}: {result.words}")
    return result.stdout
