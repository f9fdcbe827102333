#!/usr/bin/python3 -I
"""The deputy: does in a user's name what a worker asks for, as that user.

As a program (`python3 -I deputy.py`, started as the user) it reads requests on standard input and answers on standard
output, one JSON object a line. It says first who it is; the worker's first line is a `Hello`; each later line is one of
`REQUESTS`: `{"id": 1, "do": "read", ...}`, answered, in any order, by `{"id": 1, "ok": {...}}` or
`{"id": 1, "error": {"kind", "message", "where", "hint"}}`. It ends when its input ends, or when nobody asked for long.
Its plain functions also serve the worker's own account (`door.py`). It needs Python 3.9 and nothing else, because it is
installed as one file.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import pickle
import pwd
import re
import select
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

PROTOCOL_VERSION = 3
MAX_REQUEST = 64 << 20
MAX_SCRIPT = 4 << 20
MAX_READ = 1 << 20
MAX_CONSENT = 1 << 20
MAX_SAID = 1 << 20
MAX_LISTED = 10_000
MAX_SECONDS = 600.0
AT_ONCE = 12
"""So many requests are served at the same time."""

PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/opt/slurm/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
SECRET_FILE = ".environment"
"""Of a flow's job: the file, in the job's directory, that holds what must not be in the script."""
SBATCH_OPTIONS = frozenset({
    "account", "array", "bb", "begin", "chdir", "cluster-constraint", "clusters", "comment", "constraint",
    "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu", "cpus-per-task", "deadline",
    "delay-boot", "dependency", "distribution", "error", "exclude", "exclusive", "gpu-bind", "gpu-freq", "gpus",
    "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "hold", "input", "job-name",
    "kill-on-invalid-dep", "licenses", "mail-type", "mail-user", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu",
    "mincpus", "nice", "no-kill", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-core", "ntasks-per-gpu",
    "ntasks-per-node", "ntasks-per-socket", "open-mode", "output", "overcommit", "oversubscribe", "parsable",
    "partition", "priority", "profile", "propagate", "qos", "reboot", "requeue", "reservation", "signal",
    "sockets-per-node", "spread-job", "switches", "thread-spec", "threads-per-core", "time", "time-min", "tmp",
    "use-min-nodes", "wait-all-nodes", "wckey",
})  # fmt: skip
"""sbatch's options that may be asked for: those of `options.py` and of `commands/sbatch.py`."""

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_POLL_SECONDS = 0.2
_ENDING_SECONDS = 5.0


class Refused(Exception):
    """What was asked for is not done; `kind` is the name of the error that the worker raises."""

    def __init__(self, kind: str, message: str, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.where, self.hint = kind, message, where, hint


# Files


def check_directory(directory: str) -> None:
    """Refuse a directory that is not absolute, not there, or takes no files of this user's."""
    if not os.path.isabs(directory) or _CONTROL.search(directory):
        raise Refused("DirectoryRefused", f"{directory!r} is no absolute path", "directory", "write it from / on")
    if not os.path.exists(directory):
        raise Refused("DirectoryRefused", "there is no such directory", directory, "make it, or name another")
    if not os.path.isdir(directory):
        raise Refused("DirectoryRefused", "this is no directory", directory, "name a directory")
    try:
        # Tried out: what access() says is not the whole truth on every file system, nor to root.
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        said = f"{pwd.getpwuid(os.geteuid()).pw_name} cannot write into this directory: {error.strerror}"
        raise Refused("DirectoryRefused", said, directory, "name one of your own") from error


def write_files(
    directory: str, files: Mapping[str, str], ours: Mapping[str, str], *, in_place: bool = False, mask: int = 0o077
) -> dict[str, str]:
    """Write files below a directory, which is made when its parent exists; return the digest of each.

    The directory is opened once, and from there on every folder by its descriptor: whatever is swapped for a symbolic
    link meanwhile is not followed. Nothing is written when one file is refused.

    Args:
        ours: Relative path -> digest of what may be replaced.
        in_place: The directory, and what is below, may be somebody else's. Otherwise all of it must be this user's own.
        mask: The umask of what is made.
    """
    contents = {path: text.encode() for path, text in files.items()}
    for path in contents:
        _parts(path)
    with _run_directory(directory, mask) as base:
        if not in_place:
            _check_own(base, directory, "DirectoryRefused")
        to_write = {}
        for path, content in contents.items():
            where, name = f"{directory.rstrip('/')}/{path}", _parts(path)[-1]
            with _refusing(where), _folder_of(base, path, directory, own=not in_place) as folder:
                there = None if folder is None else _digest_at(folder, name, where)
            if there is not None and there not in (digest_of(content), ours.get(path)):
                raise _not_ours(where)
            if there != digest_of(content):
                to_write[path] = there
        for path, there in to_write.items():
            where, name = f"{directory.rstrip('/')}/{path}", _parts(path)[-1]
            with _refusing(where), _folder_of(base, path, directory, mask, own=not in_place) as folder:
                assert folder is not None
                with _written(folder, contents[path], 0o666 & ~mask) as temporary:
                    _move(folder, temporary, name, there, where, digest_of(contents[path]))
    return {path: digest_of(content) for path, content in contents.items()}


def write_secret(directory: str, text: str) -> None:
    """Write `SECRET_FILE`, of mode 0600, into a run's directory that is this user's own.

    One that is there is replaced only if it is as we make it: this user's, a file, of that mode.
    """
    where = f"{directory.rstrip('/')}/{SECRET_FILE}"
    with _run_directory(directory) as folder, _refusing(where):
        _check_own(folder, directory, "DirectoryRefused")
        there = _digest_at(folder, SECRET_FILE, where)
        if there is not None:
            status = os.stat(SECRET_FILE, dir_fd=folder, follow_symlinks=False)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o600:
                raise _not_ours(where)
        with _written(folder, text.encode(), 0o600) as temporary:
            _move(folder, temporary, SECRET_FILE, there, where)


def remove_files(directory: str, paths: Sequence[str], digests: Sequence[str] | None = None) -> None:
    """Remove files below a run's directory; missing ones are no error, and links are removed, not followed.

    Args:
        digests: Only files with one of these; otherwise whatever has the name.
    """
    for path in paths:
        _parts(path)
    try:
        with _run_directory(directory) as base:
            for path in paths:
                where, name = f"{directory.rstrip('/')}/{path}", _parts(path)[-1]
                with _refusing(where), _folder_of(base, path, directory) as folder:
                    if folder is not None and (digests is None or _is_one_of(digests, folder, name, where)):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
    except Refused as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise


def read(path: str, offset: int, limit: int) -> tuple[bytes, int] | None:
    """At most `limit` bytes of a regular file from `offset` on, and its size; None when there is no such file."""
    try:
        # A FIFO in the file's place must not hold us up. A link is the user's own, read with the user's own rights.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise Refused("FileRefused", f"the file cannot be read: {error.strerror}", path) from error
    try:
        status = os.fstat(descriptor)
        # A job's output may be said to go to /proc/self/environ: that would be the reader's own.
        if not stat.S_ISREG(status.st_mode) or os.readlink(f"/proc/self/fd/{descriptor}").startswith(
            ("/proc/", "/sys/")
        ):
            raise Refused("FileRefused", "this is no regular file", path)
        return os.pread(descriptor, limit, offset), status.st_size
    except OSError as error:
        raise Refused("FileRefused", f"the file cannot be read: {error.strerror}", path) from error
    finally:
        os.close(descriptor)


def list_files(directory: str, limit: int) -> list[tuple[str, int, float]]:
    """Relative path, size and time of change of the regular files below a directory, by path, at most `limit`."""
    entries: list[tuple[str, int, float]] = []
    for seen, (folder, folders, names) in enumerate(os.walk(directory)):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                # Removed since it was listed, or not ours to see.
                continue
            if stat.S_ISREG(status.st_mode):
                entries.append((os.path.relpath(path, directory), status.st_size, status.st_mtime))
            if len(entries) >= limit:
                break
        if len(entries) >= limit or seen >= 10 * MAX_LISTED:
            break
    return sorted(entries)


def read_consent(home: str) -> str | None:
    """The text of `~/.config/jobbergate-flows/authorized_deployments`; None when there is none.

    The file and every directory from the home on must be the user's, writable by nobody else, and no links.
    """
    where = os.path.realpath(home)
    with contextlib.ExitStack() as stack:
        place: int | None = None
        for name in (where, ".config", "jobbergate-flows", "authorized_deployments"):
            where = where if place is None else f"{where}/{name}"
            last = name == "authorized_deployments"
            kind = os.O_NONBLOCK if last else os.O_DIRECTORY
            try:
                place = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=place)
            except FileNotFoundError:
                return None
            except OSError as error:
                said = f"cannot be opened, or is a symbolic link: {error.strerror}"
                raise Refused("ConsentRefused", said, where, "put what the link leads to in its place") from error
            stack.callback(os.close, place)
            status = os.fstat(place)
            if last and not stat.S_ISREG(status.st_mode):
                raise Refused("ConsentRefused", "this is no regular file", where, "write a file")
            if status.st_uid != os.geteuid():
                raise Refused("ConsentRefused", "belongs to somebody else", where, "make it anew, as yourself")
            if status.st_mode & 0o022:
                raise Refused("ConsentRefused", "may be written by others", where, f"chmod go-w {where}")
        assert place is not None
        with os.fdopen(os.dup(place), "rb") as file:
            content = file.read(MAX_CONSENT + 1)
    if len(content) > MAX_CONSENT:
        raise Refused("ConsentRefused", f"is larger than {MAX_CONSENT >> 10} KiB", where, "remove old lines")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Refused("ConsentRefused", "is not UTF-8 text", where, "write it anew") from error


def digest_of(content: bytes) -> str:
    """`sha256:` and the hex digest of a file's content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def check_trusted(path: str, *, owners: Sequence[int]) -> None:
    """Refuse a path that anybody but `owners` could put something else into the place of, at any of its directories."""
    for start in dict.fromkeys((os.path.abspath(path), os.path.realpath(path))):
        current = start
        while True:
            try:
                status = os.stat(current)
            except OSError as error:
                hint = "make it, or name another"
                raise Refused("RequestRefused", f"cannot be used: {error.strerror}", current, hint) from error
            # In a sticky directory, as /tmp, only the owner of a file replaces it.
            safe = stat.S_ISDIR(status.st_mode) and current != start and status.st_mode & stat.S_ISVTX
            if status.st_uid not in owners or (status.st_mode & 0o022 and not safe):
                hint = f"chown root {current}; chmod go-w {current}"
                raise Refused("RequestRefused", "others could change this", current, hint)
            if current == "/":
                break
            current = os.path.dirname(current)


def _parts(path: str) -> tuple[str, ...]:
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if not parts or path.startswith("/") or path.endswith("/") or ".." in parts or _CONTROL.search(path):
        raise Refused("FileRefused", "the file lies outside of the run's directory", path)
    return parts


@contextlib.contextmanager
def _run_directory(directory: str, mask: int | None = None) -> Iterator[int]:
    """A run's directory, open, and made where a mask is given."""
    parent, name = os.path.split(directory.rstrip("/"))
    if not os.path.isabs(directory) or name in ("", ".", "..") or _CONTROL.search(directory):
        raise Refused("DirectoryRefused", f"{directory!r} is no absolute path", "directory", "write it from / on")
    try:
        above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if mask is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o777 & ~mask, dir_fd=above)
            base = os.open(name, _FOLDER, dir_fd=above)
        finally:
            os.close(above)
    except OSError as error:
        if os.path.islink(directory.rstrip("/")):
            hint = "name the directory that it leads to"
            raise Refused("DirectoryRefused", "the run's directory is a symbolic link", directory, hint) from error
        said = f"the run's directory cannot be {'used' if mask is None else 'made'}: {error.strerror}"
        raise Refused("DirectoryRefused", said, directory) from error
    try:
        yield base
    finally:
        os.close(base)


@contextlib.contextmanager
def _folder_of(base: int, path: str, where: str, mask: int | None = None, *, own: bool = False) -> Iterator[int | None]:
    """The folder of a file, made where a mask is given; None where it is missing. `own`: nobody else has made it."""
    with contextlib.ExitStack() as stack:
        folder = base
        for part in _parts(path)[:-1]:
            where = f"{where.rstrip('/')}/{part}"
            if mask is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777 & ~mask, dir_fd=folder)
            try:
                folder = os.open(part, _FOLDER, dir_fd=folder)
            except FileNotFoundError:
                if mask is not None:
                    raise
                yield None
                return
            except NotADirectoryError as error:
                if stat.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise Refused("FileRefused", "the path leads through a symbolic link", where) from error
                raise
            stack.callback(os.close, folder)
            if own:
                _check_own(folder, where, "FileRefused")
        yield folder


def _check_own(folder: int, where: str, kind: str) -> None:
    # In a base that others may write to, one of them may have made it before us, and would own all that is in it.
    if os.fstat(folder).st_uid != os.geteuid():
        raise Refused(kind, "the directory belongs to somebody else", where, "run in a directory of your own")


def _digest_at(folder: int, name: str, where: str) -> str | None:
    """The digest of the file of that name; None when there is none, and no digest for one too large to be ours."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise Refused("FileRefused", "there is something else than a file", where, "remove it") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("FileRefused", "there is something else than a file", where, "remove it")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return digest_of(file.read()) if status.st_size <= MAX_REQUEST else "larger than ours"
    finally:
        os.close(descriptor)


def _is_one_of(digests: Sequence[str], folder: int, name: str, where: str) -> bool:
    try:
        return _digest_at(folder, name, where) in digests
    except Refused:
        # No file: it is not ours.
        return False


@contextlib.contextmanager
def _written(folder: int, content: bytes, mode: int) -> Iterator[str]:
    """A new file with the content, under a temporary name, which is gone afterwards."""
    temporary = f".jobbergate-flows-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, mode, dir_fd=folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)


def _move(folder: int, temporary: str, name: str, there: str | None, where: str, same: str | None = None) -> None:
    """Give the file its name, unless somebody has put another one there since it was looked at.

    Args:
        same: The digest of one that will do in its place: several may write the same files into one directory at once.
    """
    if there is None:
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            return
        except FileExistsError as error:
            if same is not None and _digest_at(folder, name, where) == same:
                return
            raise _not_ours(where) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    now = _digest_at(folder, name, where)
    if same is not None and now == same:
        return
    if now != there:
        raise _not_ours(where)
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


def _not_ours(where: str) -> Refused:
    hint = "move it away, or run in another directory"
    return Refused("FileRefused", "the file is not ours, or was changed since we wrote it", where, hint)


@contextlib.contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused("FileRefused", f"the file cannot be used: {error.strerror}", where) from error


# Processes


class Ended(NamedTuple):
    """How a command ended: what it said, its complaints, its exit code.

    One that had to be killed did not answer: its code is None, and `why` says what there was too much of, or `stopped`.
    """

    stdout: bytes
    stderr: bytes
    code: int | None
    why: str | None = None


def run_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdin: bytes,
    timeout: float,
    *,
    folder: str = "/",
    mask: int = 0o077,
    limit: int = MAX_SAID,
    stop: threading.Event | None = None,
    lifeline: bool = False,
) -> Ended:
    """Run a command to its end.

    It is killed after `timeout` seconds (`time`), when it says more than `limit` bytes (`output`), or at `stop`
    (`stopped`). Of its complaints the last are kept.

    Args:
        lifeline: Its standard input stays open; that it is closed is for the command the word to end all it has begun.
    """
    try:
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=folder,
            umask=mask,
            # A signal to our own group must not cut a submission short.
            start_new_session=True,
        )
    except FileNotFoundError as error:
        text, hint = f"there is no {arguments[0]} on PATH", "install Slurm's commands on this host"
        raise Refused("ClusterUnreachable", text, None, hint) from error
    except OSError as error:
        raise Refused("ClusterUnreachable", f"{arguments[0]} cannot be started: {error.strerror}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said, complaints = bytearray(), bytearray()
    rest, deadline, why = memoryview(stdin), time.monotonic() + timeout, None
    with process.stdin, process.stdout, process.stderr, selectors.DefaultSelector() as waiting:
        os.set_blocking(process.stdin.fileno(), False)
        waiting.register(process.stdin, selectors.EVENT_WRITE)
        waiting.register(process.stdout, selectors.EVENT_READ, said)
        waiting.register(process.stderr, selectors.EVENT_READ, complaints)
        while waiting.get_map() and why is None:
            left = deadline - time.monotonic()
            for key, _events in waiting.select(min(left, _POLL_SECONDS) if stop else left):
                if key.fileobj is process.stdin:
                    # A command that does not want its input may end before it has it all.
                    try:
                        rest = rest[os.write(key.fd, rest[: 1 << 16]) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        waiting.unregister(process.stdin)
                        if not lifeline:
                            process.stdin.close()
                elif piece := os.read(key.fd, 1 << 16):
                    key.data.extend(piece)
                else:
                    waiting.unregister(key.fileobj)
            del complaints[:-MAX_SAID]
            if len(said) > limit:
                why = "output"
            elif waiting.get_map() and stop and stop.is_set():
                why = "stopped"
            elif waiting.get_map() and time.monotonic() >= deadline:
                why = "time"
        if why is None:
            try:
                return Ended(bytes(said), bytes(complaints), process.wait(max(deadline - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                why = "time"
        if lifeline:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_SECONDS)
        # With what it started: a pipe that somebody holds open has no end.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return Ended(b"", b"", None, why)


def render(
    renderer: Sequence[str],
    plain: Mapping[str, Any],
    files: Mapping[str, bytes],
    limits: Mapping[str, Any],
    stop: threading.Event,
) -> Ended:
    """Have an application rendered by the renderer, a Python and its program: `applications/child/program.py`.

    It works on a temporary copy, which is removed. All that it has started ends with it. What it says is for the worker
    to read.

    Args:
        plain: What is to be rendered; it is the renderer that reads it.
    """
    with tempfile.TemporaryDirectory(prefix="jobbergate-application-", ignore_cleanup_errors=True) as name:
        folder = os.path.join(os.path.realpath(name), "application")
        os.mkdir(folder, 0o700)
        for path, content in files.items():
            target = os.path.join(folder, *_parts(path))
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            with open(target, "xb") as file:
                file.write(content)
        return run_command(
            (renderer[0], "-I", renderer[1]),
            {"PATH": ":".join(PATH), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            # Nothing is ever unpickled here; the renderer is the worker's own program.
            pickle.dumps({"do": "render", "plain": plain, "folder": folder, "limits": dict(limits)}),
            limits["seconds"],
            folder=folder,
            limit=limits["output"],
            stop=stop,
            lifeline=True,
        )


# Requests


@dataclass(frozen=True)
class Hello:
    """The worker's first line.

    Args:
        umask: Of all that is made; group and others never may write.
        slurm_conf: `SLURM_CONF`, where it is not the system's.
        renderer: A Python and the program of `applications/child`.
        path: Where Slurm's commands are looked for; only root, or the user, may write there.
        idle: After so many seconds without a request this process ends.
    """

    umask: str = "077"
    slurm_conf: str | None = None
    renderer: list[str] | None = None
    path: list[str] | None = None
    idle: float = 600.0

    @property
    def mask(self) -> int:
        return int(self.umask, 8)

    def check(self) -> None:
        """Refuse what would open files to others, and paths that are none."""
        if not re.fullmatch(r"0?[0-7]{3}", self.umask) or self.mask & 0o722 != 0o022:
            raise _bad(f"hello.umask is {self.umask!r}", "077, 027 or 022: group and others never write")
        paths = [self.slurm_conf or "/", *(self.renderer or ()), *(self.path or ())]
        if not all(path.startswith("/") and not _CONTROL.search(path) and ":" not in path for path in paths):
            raise _bad("hello names a path that is not absolute")
        if self.renderer is not None and len(self.renderer) != 2:
            raise _bad("hello.renderer is not a Python and its program")
        if not self.idle > 0:
            raise _bad("hello.idle is not positive")


class State:
    """What all requests share: whose deputy this is, and the worker's settings."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.account = pwd.getpwuid(os.geteuid())
        self.path = tuple(hello.path or PATH)
        self.stop = threading.Event()
        # Whose programs are run.
        self.owners = (0, os.geteuid())


@dataclass(frozen=True)
class Run:
    """Run sbatch or scancel."""

    command: str
    arguments: list[str]
    stdin: str = field(repr=False)
    timeout: float

    def serve(self, state: State) -> dict[str, Any]:
        self._check()
        script = self.stdin.encode()
        if len(script) > MAX_SCRIPT:
            raise _bad(f"the script is larger than {MAX_SCRIPT >> 20} MiB", kind="SubmissionRefused")
        ended = run_command(
            (self._program(state), *self.arguments),
            self._environment(state),
            script,
            self.timeout,
            mask=state.hello.mask,
            # A submission is never cut short: it would be in doubt.
            stop=None if self.command == "sbatch" else state.stop,
        )
        return _in_json(ended)

    def _check(self) -> None:
        if self.command not in ("sbatch", "scancel") or not 0 < self.timeout <= MAX_SECONDS:
            raise _bad(f"{self.command!r} is not run here", "only sbatch and scancel are, for a limited time")
        if len(self.arguments) > 2000 or sum(map(len, self.arguments)) > 1 << 20:
            raise _bad("too many arguments", kind="SubmissionRefused")
        for argument in self.arguments if self.arguments != ["--version"] else ():
            name, _, value = argument.partition("=")
            if self.command == "sbatch":
                good = name.startswith("--") and name[2:] in SBATCH_OPTIONS
            else:
                good = bool(re.fullmatch(r"[0-9]{1,20}(_[0-9]{1,20})?", argument)) or (
                    name == "--clusters" and bool(re.fullmatch(r"[A-Za-z0-9_.-]+", value))
                )
            if not good or _CONTROL.search(argument):
                raise _bad(f"{argument[:200]!r} is no argument for {self.command}", kind="SubmissionRefused")
            if name == "--chdir" and not value.startswith("/"):
                raise _bad(f"{value[:200]!r} is no absolute path", kind="SubmissionRefused")

    def _program(self, state: State) -> str:
        for folder in state.path:
            program = os.path.join(folder, self.command)
            if os.access(program, os.X_OK) and not os.path.isdir(program):
                check_trusted(program, owners=state.owners)
                return program
        hint = "install Slurm's commands on this host, or set where they are"
        raise Refused("ClusterUnreachable", f"there is no {self.command} in {':'.join(state.path)}", None, hint)

    def _environment(self, state: State) -> dict[str, str]:
        account = state.account
        environment = {
            "PATH": ":".join(state.path),
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "LOGNAME": account.pw_name,
            "SHELL": account.pw_shell or "/bin/sh",
            # sbatch hands its environment on to the job.
            "LC_ALL": "C.UTF-8" if self.command == "sbatch" else "C",
        }
        return environment | {"SLURM_CONF": state.hello.slurm_conf} if state.hello.slurm_conf else environment


@dataclass(frozen=True)
class CheckDirectory:
    """See `check_directory`."""

    directory: str

    def serve(self, state: State) -> dict[str, Any]:
        check_directory(self.directory)
        return {}


@dataclass(frozen=True)
class WriteFiles:
    """See `write_files`."""

    directory: str
    files: dict[str, str] = field(repr=False)
    ours: dict[str, str]
    in_place: bool

    def serve(self, state: State) -> dict[str, Any]:
        mask = state.hello.mask
        return {"digests": write_files(self.directory, self.files, self.ours, in_place=self.in_place, mask=mask)}


@dataclass(frozen=True)
class WriteSecret:
    """See `write_secret`."""

    directory: str
    text: str = field(repr=False)

    def serve(self, state: State) -> dict[str, Any]:
        write_secret(self.directory, self.text)
        return {}


@dataclass(frozen=True)
class RemoveFiles:
    """See `remove_files`."""

    directory: str
    paths: list[str]
    digests: list[str] | None = None

    def serve(self, state: State) -> dict[str, Any]:
        remove_files(self.directory, self.paths, self.digests)
        return {}


@dataclass(frozen=True)
class Read:
    """See `read`; the data in base64."""

    path: str
    offset: int
    limit: int

    def serve(self, state: State) -> dict[str, Any]:
        if not 0 <= self.offset < 1 << 62 or not 0 <= self.limit <= MAX_READ:
            raise _bad(f"only {MAX_READ} bytes are read at once")
        chunk = read(self.path, self.offset, self.limit)
        if chunk is None:
            return {"data": None, "size": 0}
        return {"data": base64.b64encode(chunk[0]).decode(), "size": chunk[1]}


@dataclass(frozen=True)
class ListFiles:
    """See `list_files`."""

    directory: str
    limit: int

    def serve(self, state: State) -> dict[str, Any]:
        if not 0 < self.limit <= MAX_LISTED:
            raise _bad(f"only {MAX_LISTED} files are listed at once")
        return {"entries": list_files(self.directory, self.limit)}


@dataclass(frozen=True)
class Home:
    """Where the user's home is."""

    def serve(self, state: State) -> dict[str, Any]:
        return {"home": state.account.pw_dir}


@dataclass(frozen=True)
class ReadConsent:
    """See `read_consent`."""

    def serve(self, state: State) -> dict[str, Any]:
        return {"text": read_consent(state.account.pw_dir)}


@dataclass(frozen=True)
class Render:
    """See `render`. The files are in base64."""

    plain: dict[str, Any] = field(repr=False)
    files: dict[str, str] = field(repr=False)
    limits: dict[str, float]

    def serve(self, state: State) -> dict[str, Any]:
        renderer, limits = state.hello.renderer, self.limits
        if renderer is None:
            raise _bad("this deputy was told of no renderer")
        for path in renderer:
            check_trusted(path, owners=state.owners)
        if set(limits) != {"seconds", "memory", "output", "processes"} or not all(
            0 < value <= (MAX_SECONDS if name == "seconds" else 1 << 40) for name, value in limits.items()
        ):
            raise _bad("these are no limits")
        whole = {name: value if name == "seconds" else int(value) for name, value in limits.items()}
        whole["output"] = min(int(whole["output"]), MAX_REQUEST)
        files = {path: base64.b64decode(content, validate=True) for path, content in self.files.items()}
        return _in_json(render(renderer, self.plain, files, whole, state.stop))


REQUESTS: dict[str, Any] = {
    "run": Run,
    "check_directory": CheckDirectory,
    "write_files": WriteFiles,
    "write_secret": WriteSecret,
    "remove_files": RemoveFiles,
    "read": Read,
    "list_files": ListFiles,
    "home": Home,
    "read_consent": ReadConsent,
    "render": Render,
}


def answer(line: bytes, state: State) -> bytes:
    """The line that answers a request's line, whatever that is."""
    request_id = None
    try:
        request = _object(line)
        request_id, do = request.pop("id", None), request.pop("do", None)
        if type(request_id) is not int:
            request_id = None
            raise _bad("the request has no number")
        if not isinstance(do, str) or do not in REQUESTS:
            raise _bad(
                f"there is no request {str(do)[:100]!r}", "the worker is newer than this deputy: install it again"
            )
        done = built(REQUESTS[do], request).serve(state)
        return json.dumps({"id": request_id, "ok": done}).encode() + b"\n"
    except Refused as error:
        return _in_error(request_id, error)
    except Exception as error:
        return _in_error(request_id, Refused("Failed", f"{type(error).__name__}: {error}"))


def built(kind: Any, values: Mapping[str, Any]) -> Any:
    """A request (or `Hello`) of these values, each of its type and none unknown."""
    known = {entry.name: entry for entry in fields(kind)}
    for name in values:
        if name not in known:
            raise _bad(f"{kind.__name__} has no {name[:100]!r}")
    for name, entry in known.items():
        if name not in values:
            if entry.default is MISSING:
                raise _bad(f"{kind.__name__} lacks {name!r}")
        elif not _SHAPES[str(entry.type)](values[name]):
            raise _bad(f"{kind.__name__}.{name} is no {entry.type}")
    return kind(**values)


def _in_error(request_id: int | None, error: Refused) -> bytes:
    said = {"kind": error.kind, "message": error.message, "where": error.where, "hint": error.hint}
    return json.dumps({"id": request_id, "error": said}).encode() + b"\n"


def _in_json(ended: Ended) -> dict[str, Any]:
    text = {name: base64.b64encode(getattr(ended, name)).decode() for name in ("stdout", "stderr")}
    return {**text, "code": ended.code, "why": ended.why}


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad("this is no JSON") from error
    if not isinstance(value, dict):
        raise _bad("this is no JSON object")
    return value


def _bad(message: str, hint: str | None = None, kind: str = "RequestRefused") -> Refused:
    return Refused(kind, message, None, hint)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1 << 62


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_mapping(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "str | None": lambda value: value is None or isinstance(value, str),
    "bool": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int,
    "float": _is_number,
    "list[str]": _is_texts,
    "list[str] | None": lambda value: value is None or _is_texts(value),
    "dict[str, str]": lambda value: _is_mapping(value, _is_text),
    "dict[str, float]": lambda value: _is_mapping(value, _is_number),
    "dict[str, Any]": lambda value: isinstance(value, dict),
}


# The program


class _Lines:
    """The lines of a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def next(self, timeout: float) -> bytes | None:
        """The next line; None at the end; TimeoutError when none comes; Refused when none can be told any more."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_REQUEST:
                raise _bad(f"a request is larger than {MAX_REQUEST >> 20} MiB")
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise TimeoutError
            try:
                piece = os.read(self._descriptor, 1 << 20)
            except OSError:
                piece = b""
            if not piece:
                if self._buffer:
                    raise _bad("the last request has no end")
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def main() -> int:
    """Serve the worker at the other end of standard input and output; the exit code."""
    by_sudo = "SUDO_UID" in os.environ
    os.environ.clear()
    os.umask(0o077)
    os.chdir("/")
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    if by_sudo and os.geteuid() == 0:
        sys.stderr.write("the deputy acts for users, not for root\n")
        return 3
    writing = threading.Lock()

    def say(line: bytes) -> None:
        # Whole lines; and that the worker is gone is seen at its input.
        with writing, contextlib.suppress(OSError):
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(1, rest) :]

    def complain(error: Refused) -> int:
        say(_in_error(None, error))
        return 2

    user = pwd.getpwuid(os.geteuid()).pw_name
    greeting = {"deputy": PROTOCOL_VERSION, "user": user, "uid": os.geteuid(), "gid": os.getegid()}
    say(json.dumps({**greeting, "groups": os.getgroups()}).encode() + b"\n")
    lines = _Lines(0)
    try:
        first = lines.next(60)
        if first is None:
            return 0
        hello = _object(first)
        if set(hello) != {"hello"} or not isinstance(hello["hello"], dict):
            raise _bad("the first line is no hello")
        settings: Hello = built(Hello, hello["hello"])
        settings.check()
    except TimeoutError:
        return 0
    except Refused as error:
        return complain(error)
    os.umask(settings.mask)
    state = State(settings)
    return _serve(lines, state, say, complain)


def _serve(lines: _Lines, state: State, say: Callable[[bytes], None], complain: Callable[[Refused], int]) -> int:
    pool = ThreadPoolExecutor(AT_ONCE)
    pending: set[Future[None]] = set()
    code = 0
    while True:
        try:
            line = lines.next(state.hello.idle)
        except TimeoutError:
            if not pending:
                break
            continue
        except Refused as error:
            code = complain(error)
            break
        if line is None:
            break
        serving = pool.submit(lambda line: say(answer(line, state)), line)
        pending.add(serving)
        serving.add_done_callback(pending.discard)
    # The worker is gone: what was not begun is not begun, and only a submission is still brought to its end.
    state.stop.set()
    begun = {serving for serving in tuple(pending) if not serving.cancel()}
    wait(begun, MAX_SECONDS)
    return code


if __name__ == "__main__":
    # Without waiting for a thread that a dead file system holds.
    os._exit(main())
