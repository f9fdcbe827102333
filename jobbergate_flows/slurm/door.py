"""The door: the one way in which anything is done in a user's name.

A door is bound to one account. `OwnAccountDoor` is this process's own; `deputy_door.DeputyDoor` is anybody's. What is
done behind either is `deputy.py`'s code.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from jobbergate_flows.slurm import deputy
from jobbergate_flows.slurm.cluster import FileChunk, FileEntry
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.deputy import digest_of
from jobbergate_flows.slurm.errors import (
    ClusterUnreachable,
    ConsentRefused,
    DirectoryRefused,
    FileRefused,
    RequestRefused,
    SlurmError,
    SubmissionRefused,
)

T = TypeVar("T")

MAX_OUTPUT_BYTES = 64 << 20
"""So much of a command's output is read, in bytes; a command that says more is killed, and did not answer."""


class Door(Protocol):
    """Acting as one user."""

    @property
    def user(self) -> str:
        """The account's name."""

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        """Run one of Slurm's commands to its end, or kill it after `timeout` seconds.

        The command sees nothing but `environment`; what it creates is its user's own (umask 077).

        Raises:
            ClusterUnreachable: It could not be started.
        """

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""

    async def write_files(
        self,
        directory: str,
        files: Mapping[str, str],
        *,
        ours: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""

    async def write_secret(self, directory: str, text: str) -> None:
        """See `Cluster.write_secret`."""

    async def remove_files(self, directory: str, paths: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        """See `Cluster.remove_files`."""

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""


class OwnAccountDoor:
    """The account that this process runs as."""

    def __init__(self) -> None:
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        # Not the event loop's own threads, which are few: a sbatch that Slurm holds up would hold up everything.
        self._running = ThreadPoolExecutor(_COMMANDS_AT_ONCE, thread_name_prefix="slurm-command")

    @property
    def user(self) -> str:
        """The account's name."""
        return self._user

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        """See `Door.run`."""
        stop = threading.Event()

        def run() -> deputy.Ended:
            return deputy.run_command(
                arguments, environment, stdin.encode(), timeout, limit=MAX_OUTPUT_BYTES, stop=stop
            )

        try:
            ended = await asyncio.get_running_loop().run_in_executor(self._running, run)
        except deputy.Refused as error:
            raise error_of(error) from error
        finally:
            # Whoever no longer waits for the command wants it ended.
            stop.set()
        return CommandResult.of(ended)

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""
        await _in_thread(lambda: deputy.check_directory(directory))

    async def write_files(
        self,
        directory: str,
        files: Mapping[str, str],
        *,
        ours: Mapping[str, str] | None = None,
        in_place: bool = False,
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""
        return await _in_thread(lambda: deputy.write_files(directory, files, ours or {}, in_place=in_place))

    async def write_secret(self, directory: str, text: str) -> None:
        """See `Cluster.write_secret`."""
        await _in_thread(lambda: deputy.write_secret(directory, text))

    async def remove_files(self, directory: str, paths: Sequence[str], *, digests: Sequence[str] | None = None) -> None:
        """See `Cluster.remove_files`."""
        await _in_thread(lambda: deputy.remove_files(directory, paths, digests))

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""
        chunk = await _in_thread(lambda: deputy.read(path, offset, limit))
        return FileChunk(chunk[0], offset, chunk[1]) if chunk is not None else None

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""
        entries = await _in_thread(lambda: deputy.list_files(directory, limit))
        return [FileEntry(path, size, datetime.fromtimestamp(changed, UTC)) for path, size, changed in entries]


def error_of(refused: deputy.Refused) -> SlurmError:
    """The error that a deputy's refusal stands for."""
    kind = _ERRORS.get(refused.kind, RequestRefused)
    return kind(refused.message, where=refused.where, hint=refused.hint)


_COMMANDS_AT_ONCE = 64
_ERRORS: Mapping[str, type[SlurmError]] = {
    kind.__name__: kind
    for kind in (
        ClusterUnreachable,
        ConsentRefused,
        DirectoryRefused,
        FileRefused,
        RequestRefused,
        SubmissionRefused,
    )
}


async def _in_thread(act: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(act)
    except deputy.Refused as error:
        raise error_of(error) from error


__all__ = ["MAX_OUTPUT_BYTES", "Door", "OwnAccountDoor", "digest_of", "error_of"]
