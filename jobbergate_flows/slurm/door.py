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
import signal
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from jobbergate_flows.slurm.cluster import FileChunk, FileEntry
from jobbergate_flows.slurm.commands.result import CommandResult
from jobbergate_flows.slurm.errors import ClusterUnreachable, DirectoryRefused, FileRefused

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
            )
        except FileNotFoundError as error:
            raise ClusterUnreachable(
                f"there is no {arguments[0]} on PATH", hint="install Slurm's commands on this host"
            ) from error
        except OSError as error:
            raise ClusterUnreachable(f"{arguments[0]} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await _communicate(process, stdin.encode())
        except (TimeoutError, _TooMuch):
            _kill(process)
            await _discard(process)
            return CommandResult("", "", None)
        except BaseException:
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
        await asyncio.to_thread(_write_secret, Path(path), text)

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


class _TooMuch(Exception):
    pass


async def _communicate(process: asyncio.subprocess.Process, stdin: bytes) -> tuple[bytes, bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(stdin)
    reading = asyncio.gather(_read_all(process.stdout), _read_all(process.stderr))
    # A command that does not want its input may end before it has it all.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await process.stdin.drain()
    process.stdin.close()
    stdout, stderr = await reading
    await process.wait()
    return stdout, stderr


async def _read_all(stream: asyncio.StreamReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await stream.read(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT_BYTES:
            raise _TooMuch
    return b"".join(pieces)


def _kill(process: asyncio.subprocess.Process) -> None:
    # With what it started: a pipe that somebody holds open has no end.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _discard(process: asyncio.subprocess.Process) -> None:
    """Read the rest of a killed command's output, without which asyncio does not see its end."""
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(1 << 20):
            pass
    await process.wait()


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
        with _refusing(target):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_atomically(target, contents[path])
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
    with _refusing(target):
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


def _write_secret(target: Path, text: str) -> None:
    with _refusing(target):
        _write_atomically(target, text.encode())


def _write_atomically(target: Path, content: bytes) -> None:
    # The temporary file has mode 0600, and a symbolic link in the target's place is replaced, not followed.
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
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
        with _refusing(Path(path)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileRefused(f"the file cannot be used: {error.strerror}", where=str(path)) from error


def _read(path: str, offset: int, limit: int) -> FileChunk | None:
    try:
        # A FIFO in the file's place must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise FileRefused(f"the file cannot be read: {error.strerror}", where=path) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileRefused("this is no regular file", where=path)
        return FileChunk(os.pread(descriptor, limit, offset), offset, status.st_size)
    except OSError as error:
        raise FileRefused(f"the file cannot be read: {error.strerror}", where=path) from error
    finally:
        os.close(descriptor)


def _list_files(directory: str, limit: int) -> list[FileEntry]:
    entries: list[FileEntry] = []
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                # Removed since it was listed, or not ours to see.
                continue
            if stat.S_ISREG(status.st_mode):
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                entries.append(FileEntry(os.path.relpath(path, directory), status.st_size, modified))
            if len(entries) >= limit:
                folders.clear()
                break
    return sorted(entries, key=lambda entry: entry.path)
