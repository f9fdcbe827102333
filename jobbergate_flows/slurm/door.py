"""The door: the one way in which anything is done in a user's name.

A door is bound to one account. `OwnAccountDoor` is this process's own. Whatever acts for others later (a helper program
started as them) is another door, and nothing outside of this file has to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import pwd
import stat
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from jobbergate_flows.slurm.cluster import FileChunk, FileEntry
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.errors import ClusterUnreachable, DirectoryRefused, FileRefused

MAX_OUTPUT_BYTES = 64 << 20
"""So much of a command's output is read; a command that says more is taken for one that failed."""


class Door(Protocol):
    """Acting as one user."""

    @property
    def user(self) -> str:
        """The account's name."""

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        """Run one of Slurm's commands to its end, or kill it after `timeout` seconds.

        Raises:
            ClusterUnreachable: It could not be started.
        """

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""

    async def write_files(
        self, directory: str, files: Mapping[str, str], *, ours: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""

    async def write_secret(self, path: str, text: str) -> None:
        """See `Cluster.write_secret`."""

    async def remove_files(self, paths: Sequence[str]) -> None:
        """See `Cluster.remove_files`."""

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""


class OwnAccountDoor:
    """The account that this process runs as."""

    def __init__(self) -> None:
        self._user = pwd.getpwuid(os.geteuid()).pw_name

    @property
    def user(self) -> str:
        """The account's name."""
        return self._user

    async def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", timeout: float
    ) -> CommandResult:
        """See `Door.run`."""
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                cwd="/",
                umask=0o077,
                # A signal to the worker's group must not cut a submission short.
                start_new_session=True,
                limit=MAX_OUTPUT_BYTES,
            )
        except FileNotFoundError as error:
            raise ClusterUnreachable(
                f"there is no {arguments[0]} on PATH", hint="install Slurm's commands on this host"
            ) from error
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await process.communicate(stdin.encode())
        except TimeoutError:
            _kill(process)
            await process.wait()
            return CommandResult("", "", None)
        except asyncio.CancelledError:
            _kill(process)
            raise
        return CommandResult(stdout.decode(errors="replace"), stderr.decode(errors="replace"), process.returncode)

    async def check_directory(self, directory: str) -> None:
        """See `Cluster.check_directory`."""
        await asyncio.to_thread(_check_directory, directory)

    async def write_files(
        self, directory: str, files: Mapping[str, str], *, ours: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """See `Cluster.write_files`."""
        return await asyncio.to_thread(_write_files, directory, files, ours or {})

    async def write_secret(self, path: str, text: str) -> None:
        """See `Cluster.write_secret`."""
        await asyncio.to_thread(_write_atomically, Path(path), text.encode(), 0o600)

    async def remove_files(self, paths: Sequence[str]) -> None:
        """See `Cluster.remove_files`."""
        await asyncio.to_thread(_remove_files, paths)

    async def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> FileChunk | None:
        """See `Cluster.read`."""
        return await asyncio.to_thread(_read, path, offset, limit)

    async def list_files(self, directory: str, *, limit: int = 1000) -> list[FileEntry]:
        """See `Cluster.list_files`."""
        return await asyncio.to_thread(_list_files, directory, limit)


def digest_of(content: bytes) -> str:
    """`sha256:` and the hex digest of a file's content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _check_directory(directory: str) -> None:
    if not os.path.isabs(directory) or "\n" in directory or "\0" in directory:
        raise DirectoryRefused(f"{directory!r} is no absolute path", where="directory", hint="write it from / on")
    if not os.path.exists(directory):
        raise DirectoryRefused("there is no such directory", where=directory, hint="make it, or name another")
    if not os.path.isdir(directory):
        raise DirectoryRefused("this is no directory", where=directory, hint="name a directory")
    user = pwd.getpwuid(os.geteuid()).pw_name
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DirectoryRefused(
            f"{user} may not write into this directory", where=directory, hint="name one of your own"
        )
    try:
        # As root, access() says yes to a read-only file system as well.
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DirectoryRefused(f"{user} cannot write into this directory: {error.strerror}", where=directory) from error


def _write_files(directory: str, files: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    base = Path(directory)
    try:
        base.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DirectoryRefused(f"the run's directory cannot be made: {error.strerror}", where=directory) from error
    contents = {path: text.encode() for path, text in files.items()}
    to_write = [path for path, content in contents.items() if _needs_writing(base, path, content, ours)]
    for path in to_write:
        target = base / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_atomically(target, contents[path], 0o600)
    return {path: digest_of(content) for path, content in contents.items()}


def _needs_writing(base: Path, path: str, content: bytes, ours: Mapping[str, str]) -> bool:
    if path.startswith("/") or ".." in Path(path).parts or not path:
        raise FileRefused("the file lies outside of the run's directory", where=path)
    current = base
    for part in Path(path).parts[:-1]:
        current /= part
        if current.is_symlink():
            raise FileRefused("the path leads through a symbolic link", where=str(current))
    target = base / path
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise FileRefused("there is something else than a file", where=str(target), hint="remove it")
    if not target.exists():
        return True
    there = digest_of(target.read_bytes())
    if there == digest_of(content):
        return False
    if ours.get(path) == there:
        return True
    raise FileRefused(
        "the file is not ours, or was changed since we wrote it",
        where=str(target),
        hint="move it away, or run in another directory",
    )


def _write_atomically(target: Path, content: bytes, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_files(paths: Sequence[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)


def _read(path: str, offset: int, limit: int) -> FileChunk | None:
    try:
        # A FIFO in the file's place must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise FileRefused(f"the file cannot be read: {error.strerror}", where=path) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused("this is no regular file", where=path)
        file.seek(offset)
        return FileChunk(file.read(limit), offset, status.st_size)


def _list_files(directory: str, limit: int) -> list[FileEntry]:
    entries: list[FileEntry] = []
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                entries.append(FileEntry(os.path.relpath(path, directory), status.st_size, modified))
            if len(entries) >= limit:
                return sorted(entries, key=lambda entry: entry.path)
    return sorted(entries, key=lambda entry: entry.path)
